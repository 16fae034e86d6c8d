"""Progress of a sweep on a terminal: cells done, and how long the rest will take at the pace of those of this call."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_REDRAW_S = 0.1


class SweepProgress:
    """A bar on stderr; silent unless that is a terminal.

    Args:
        quiet: stay silent on a terminal too.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first: tuple[int, float] | None = None
        self._drawn_at = 0.0
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

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
        if self._bar is None or self._task is None:
            return
        self._bar.update(self._task, description=label, completed=fraction, left=left)
        if fraction >= 1.0 or time.monotonic() - self._drawn_at >= _REDRAW_S:
            self._bar.refresh()
            self._drawn_at = time.monotonic()


def time_left(done: int, left: int, took_s: float) -> str:
    """How long what is left will take, at the pace so far; nothing where there is none yet."""
    if not done or not left:
        return ""
    seconds = round(took_s / done * left)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes:02} min left" if hours else f"{minutes}:{seconds % 60:02} left"
