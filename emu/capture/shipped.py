"""The captures that come with the package, to try a replay without a trace of one's own."""

from __future__ import annotations

from pathlib import Path

from emu.capture.events import CaptureError

FOLDER = Path(__file__).resolve().parent.parent / "captures"
_ENDING = ".trace.gz"


def shipped_captures() -> list[str]:
    """Names of the captures in the package, sorted."""
    return sorted(path.name.removesuffix(_ENDING) for path in FOLDER.glob(f"*{_ENDING}"))


def find_capture(file_or_name: Path) -> Path:
    """The file itself, or the capture of that name in the package.

    Raises:
        CaptureError: there is neither.
    """
    if file_or_name.exists():
        return file_or_name
    names = shipped_captures()
    if str(file_or_name) in names:
        return FOLDER / f"{file_or_name}{_ENDING}"
    raise CaptureError(f"{file_or_name}: no such capture; give a trace, or one of the package's: {', '.join(names)}")
