"""Progress on a terminal: a bar for compiling, then one for each domain, on stderr.

Nothing refreshes by itself: a thread that draws could hold a lock at the moment the machine's processes are forked.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

_REDRAW_S = 0.1


class Bars:
    """Bars on stderr; silent unless that is a terminal.

    Args:
        columns: what stands right of a bar.
        quiet: stay silent on a terminal too.
    """

    def __init__(self, *columns: ProgressColumn, quiet: bool) -> None:
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._drawn_at = 0.0
        if not quiet and sys.stderr.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                *columns,
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def _refresh(self, bars: Progress, fraction: float) -> None:
        """Draw, unless that has just been done and there is more to come."""
        if fraction >= 1.0 or time.monotonic() - self._drawn_at >= _REDRAW_S:
            bars.refresh()
            self._drawn_at = time.monotonic()


class ProgressBars(Bars):
    """What the user watches while a command runs.

    Args:
        quiet: stay silent on a terminal too.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(), quiet=quiet)
        self._label = ""

    def read(self, done: int, total: int) -> None:
        """Bytes of a capture read."""
        self._advance("reading", done / total if total else 1.0)

    def compiled(self, done: int, known: int) -> None:
        """Functions compiled; happens once for each version of the source."""
        self._advance("compiling, once", done / known if known else 1.0)

    def explored(self, preemptions: int, runs: int, fraction: float) -> None:
        """Schedules run so far; `fraction` of the time or number allowed, 0 where there is no limit."""
        self._advance(f"{preemptions} preemptions, {runs} schedules", fraction)

    def ran(self, domain: str, fraction: float) -> None:
        """Part of a domain's run, or of whatever the label names, that has passed, 0 to 1."""
        self._advance(domain, fraction)

    def _advance(self, label: str, fraction: float) -> None:
        if not self._bars:
            return
        if label != self._label or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._label = self._bars.add_task(label, total=1.0), label
            self._drawn_at = 0.0
        self._bars.update(self._task, completed=fraction)
        self._refresh(self._bars, fraction)
