"""Progress of a sweep on a terminal: cells done, and how long the rest will take at the pace of those of this call."""

from __future__ import annotations

import time
from typing import Self

from rich.progress import TextColumn

from emu.report.progress import Bars


class SweepProgress(Bars):
    """One bar, whatever is done.

    Args:
        quiet: stay silent on a terminal too.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(TextColumn("{task.fields[left]}"), quiet=quiet)
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        if self._bars:
            self._task = self._bars.add_task("", total=1.0, left="")
        return self

    def compiled(self, done: int, known: int) -> None:
        """Functions compiled; happens once for each version of the source."""
        self._draw("compiling, once", done / known if known else 1.0, "")

    def advanced(self, done: int, most: int) -> None:
        """Cells done, of how many at most."""
        now = time.monotonic()
        first, since = self._first = self._first or (done, now)
        left = time_left(done - first, most - done, now - since)
        self._draw(f"{done} of {most} cells", done / most if most else 1.0, left)

    def _draw(self, label: str, fraction: float, left: str) -> None:
        if self._bars is None or self._task is None:
            return
        self._bars.update(self._task, description=label, completed=fraction, left=left)
        self._refresh(self._bars, fraction)


def time_left(done: int, left: int, took_s: float) -> str:
    """How long what is left will take, at the pace so far; nothing where there is none yet."""
    if not done or not left:
        return ""
    seconds = round(took_s / done * left)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes:02} min left" if hours else f"{minutes}:{seconds % 60:02} left"
