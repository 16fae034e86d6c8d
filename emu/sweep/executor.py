"""What runs cells: this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from emu.sweep.cell_process import CellResult
from emu.sweep.cells import Cell

OnBegin = Callable[[Cell], None]


class SweepError(Exception):
    """A sweep cannot begin, or go on; the message is one line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Executor(Protocol):
    """Runs cells, each to a result, whatever becomes of the process it runs in."""

    def run(self, cells: Sequence[Cell], on_begin: OnBegin) -> Iterator[CellResult]:
        """Results as they come, one for each cell.

        Raises:
            SweepError: there is nobody left who could run them.
        """

    def close(self) -> None:
        """End what was started."""
