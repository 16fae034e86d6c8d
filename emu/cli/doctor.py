"""`emu doctor`: what this machine offers, for reports of problems and to know what to expect.

With `--calibrate` also what the steps of a CPU cost here, in a file that `emu run --engine sim --costs` reads.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from emu.analysis.environment import environment
from emu.analysis.summary import as_json
from emu.cli.failure import FINE, Failure
from emu.cli.options import QuietOption
from emu.config import CostsConfig, cores

if TYPE_CHECKING:
    from emu.machine.calibration import Calibration

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where segments live, not a file we make


_COSTS_FILE = Path("costs.toml")


def doctor(
    *,
    calibrate: Annotated[
        bool,
        Parameter(
            negative=(), help="Measure what the steps of a CPU cost here, for --engine sim, and write them to a file."
        ),
    ] = False,
    out: Annotated[
        Path | None, Parameter(metavar="FILE", help="New file for what --calibrate measures; default costs.toml.")
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object instead of the list.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Show cores, versions, shared memory and the cache of compiled code."""
    if calibrate:
        return _calibrate(out or _COSTS_FILE, json=json, quiet=quiet)
    if out:
        raise Failure("--out: only --calibrate writes a file; add it")
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


def _calibrate(target: Path, *, json: bool, quiet: bool) -> int:
    """Measure, write the file, say what was measured."""
    if target.exists():
        raise Failure(f"{target} exists; name another file with --out, or remove it")
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise Failure(f"--out {target}: {target.parent} is no folder that can be written; name another")

    from emu.machine.calibration import CalibrationError, calibrate
    from emu.machine.supervisor import MachineError
    from emu.native.segment import SegmentError
    from emu.report.progress import ProgressBars

    before = environment()
    try:
        with ProgressBars(quiet=quiet) as bars:
            found = calibrate(on_compile=bars.compiled, on_progress=lambda fraction: bars.ran("measuring", fraction))
    except (CalibrationError, MachineError, SegmentError) as error:
        raise Failure(str(error)) from None
    _write(target, _as_toml(found, before))
    if json:
        sys.stdout.write(as_json({"file": str(target), "environment": before, **_as_dict(found)}))
    else:
        _print(found, before, target)
    return FINE


def _as_toml(found: Calibration, place: dict[str, Any]) -> str:
    import tomli_w

    about = f"{place['cpu']}, {place['cores_usable']} cores, {place['kernel']}, load average {place['load'][0]}"
    left_out = [f"# {name}_ns was not measured: {why}.\n" for name, why in found.not_measured.items()]
    costs = {f"{name}_ns": cost_ns for name, cost_ns in found.costs_ns.items()}
    return f"# Measured by emu doctor --calibrate on {about}.\n{''.join(left_out)}\n{tomli_w.dumps({'costs': costs})}"


def _as_dict(found: Calibration) -> dict[str, Any]:
    operations = [
        {"name": name, "measured_ns": round(measured_ns, 1), "added_up_ns": round(added_ns, 1)}
        for name, measured_ns, added_ns in found.operations
    ]
    return {
        "costs_ns": found.costs_ns,
        "spread_ns": found.spread_ns,
        "not_measured": found.not_measured,
        "operations": operations,
        "passes": found.passes,
    }


def _write(target: Path, text: str) -> None:
    """Write the file whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise Failure(f"--out {target} cannot be written: {error.strerror}; name another file") from None


def _print(found: Calibration, place: dict[str, Any], target: Path) -> None:
    from rich.console import Console

    from emu.report.calibration import Step, print_operations, print_steps
    from emu.report.plain import plain

    console = Console(highlight=False)
    meanings = {name.removesuffix("_ns"): key.description or "" for name, key in CostsConfig.model_fields.items()}
    print_steps(
        console,
        [
            Step(
                f"{name}_ns",
                found.costs_ns.get(name),
                found.spread_ns.get(name),
                f"not measured: {found.not_measured[name]}" if name in found.not_measured else meanings[name],
            )
            for name in (*found.costs_ns, *found.not_measured)
        ],
    )
    console.print()
    print_operations(console, found.operations)
    console.print()
    console.print(f"Spread: lowest and highest of {found.passes} passes.")
    if place["load"][0] > cores():
        console.print(
            f"[yellow]Note[/yellow]: load average {place['load'][0]:.1f} on {cores()} cores: other programs may have "
            "disturbed it, wake_ns most of all"
        )
    console.print(f"Written to {plain(str(target))}; use it with: emu run --engine sim --costs {plain(str(target))}")
