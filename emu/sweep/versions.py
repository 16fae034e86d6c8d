"""What made a result: versions, and a hash of this package's source, as one version can be many."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from emu.analysis.environment import environment

_PACKAGE = Path(__file__).resolve().parent.parent
_MATTERS = ("emu", "source")
"""Where these are the same, the same description gives the same figures on virtual clocks."""


@cache
def versions() -> dict[str, str]:
    """Of this process: `emu`, `source` (16 hex digits), `python`, `numba`, `numpy`."""
    known = environment()
    return {
        "emu": known["emu"],
        "source": _source(),
        **{name: str(known[name]) for name in ("python", "numba", "numpy")},
    }


def differing(other: dict[str, str]) -> str | None:
    """In what another process has another emu, for a line to the user; None where it has the same."""
    here = versions()
    if all(other.get(name) == here[name] for name in _MATTERS):
        return None
    return f"emu {other.get('emu')} (source {other.get('source')}), and this is {here['emu']} (source {here['source']})"


def _source() -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*_PACKAGE.rglob("*.py"), *_PACKAGE.glob("presets/*.toml")]):
        digest.update(f"{path.relative_to(_PACKAGE)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
