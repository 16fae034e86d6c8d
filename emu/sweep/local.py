"""Cells on this machine: those on virtual clocks side by side, those that measure one at a time and nothing beside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait

from emu.sweep.cell_process import Attempts, CellProcess, CellProcessDiedError, CellResult, given_up
from emu.sweep.cells import Cell
from emu.sweep.executor import OnBegin


class LocalExecutor:
    """Processes of this machine that live until it is closed.

    Args:
        jobs: how many cells at a time, of those on virtual clocks.
        on_compile: told (functions compiled, functions known) while something is compiled.
    """

    def __init__(self, jobs: int, on_compile: Callable[[int, int], None] | None = None) -> None:
        self._jobs = jobs
        self._on_compile = on_compile
        self._idle: list[CellProcess] = []
        self._busy: dict[CellProcess, Cell] = {}
        self._attempts = Attempts()

    def run(self, cells: Sequence[Cell], on_begin: OnBegin) -> Iterator[CellResult]:
        """Results as they come, one for each cell."""
        for jobs, some in (
            (self._jobs, [cell for cell in cells if not cell.is_measured]),
            (1, [cell for cell in cells if cell.is_measured]),
        ):
            waiting = deque(some)
            while waiting or self._busy:
                self._fill(waiting, jobs, on_begin)
                results = self._finished(waiting)
                # Before they are written down, so that nobody waits for that.
                self._fill(waiting, jobs, on_begin)
                yield from results

    def close(self) -> None:
        """End the processes, and with them the cells that they run."""
        for process in (*self._busy, *self._idle):
            process.close()
        self._busy.clear()
        self._idle.clear()

    def _fill(self, waiting: deque[Cell], jobs: int, on_begin: OnBegin) -> None:
        while waiting and len(self._busy) < jobs:
            cell = waiting.popleft()
            process = self._idle.pop() if self._idle else CellProcess()
            self._busy[process] = cell
            on_begin(cell)
            process.begin(cell)

    def _finished(self, waiting: deque[Cell]) -> list[CellResult]:
        """Wait until somebody has something to say; a cell whose process has died is `waiting` again."""
        results = []
        by_connection = {process.connection: process for process in self._busy}
        for connection in wait(list(by_connection)):
            process = by_connection[connection]  # type: ignore[index]
            try:
                result = process.receive(self._on_compile)
            except CellProcessDiedError as death:
                cell = self._busy.pop(process)
                process.close()
                if self._attempts.may_retry(cell):
                    waiting.appendleft(cell)
                else:
                    results.append(given_up(cell, str(death)))
                continue
            if result:
                del self._busy[process]
                self._idle.append(process)
                results.append(result)
        return results
