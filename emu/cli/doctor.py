"""`emu doctor`: what this machine offers, for reports of problems and to know what to expect."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from emu.analysis.environment import environment
from emu.analysis.summary import as_json
from emu.cli.failure import FINE

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where segments live, not a file we make


def doctor(
    *, json: Annotated[bool, Parameter(negative=(), help="Print one JSON object instead of the list.")] = False
) -> int:
    """Show cores, versions, shared memory and the cache of compiled code."""
    found = {**environment(), **_shared_memory(), **_cache()}
    if json:
        sys.stdout.write(as_json(found))
        return FINE
    width = max(len(name) for name in found)
    for name, value in found.items():
        print(f"{name:<{width}}  {_written(name, value)}")
    return FINE


def _shared_memory() -> dict[str, Any]:
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        free = None
    return {"shared_memory_free_bytes": free}


def _cache() -> dict[str, Any]:
    """Where compiled code is kept, how much there is, and whether that of this version is among it."""
    from numba.core import config

    from emu.native.compile import cache_root

    # Where code really goes: not below the root if that cannot be written.
    folder = Path(config.CACHE_DIR)
    return {
        "cache": str(folder),
        "cache_bytes": sum(path.stat().st_size for path in cache_root().rglob("*") if path.is_file()),
        "cache_warm": any(folder.rglob("*.nbi")),
    }


def _written(name: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return f"{value / (1 << 20):.0f} MiB" if name.endswith("_bytes") else str(value)
