"""Writing the CPUs' event rings to files while the machine runs.

The rings never wait for the disk: what does not fit is lost and counted. When a file cannot be written any longer,
recording ends with a sentence, and the run goes on.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from emu.machine.layout import Layout
from emu.native.events import EventFile, drain


class EventWriter:
    """The files `events-cpuN.bin` of one run; does nothing where nothing is recorded.

    Attributes:
        recorded: events written.
        lost: events that found their ring full, or came after recording had ended.
        problem: why recording ended early, as one line, or None.
    """

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        self.recorded = 0
        self.lost = 0
        self.problem: str | None = None
        self._files: list[EventFile] = []
        self._rings: Any = layout.segment["event_rings"] if layout.config.machine.record else []
        if not len(self._rings):
            return
        if folder is None:
            self.problem = "machine.record is on, but there is no folder to record to: every event counts as lost"
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for cpu in range(len(self._rings)):
                self._files.append(EventFile(folder, cpu))
        except OSError as error:
            self._give_up(f"{folder}: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drain()
        for file in self._files:
            file.close()
        self.lost += sum(int(ring.lost) for ring in self._rings)

    def drain(self) -> None:
        """Move what the rings hold to the files."""
        if not len(self._rings):
            return
        for cpu in np.flatnonzero(self._rings.tail != self._rings.head):
            events = drain(self._rings[cpu])
            if cpu >= len(self._files):
                self.lost += len(events)
                continue
            try:
                self._files[cpu].append(events)
            except OSError as error:
                self.lost += len(events)
                self._give_up(f"{self._files[cpu].path}: {error.strerror}")
            else:
                self.recorded += len(events)

    def _give_up(self, reason: str) -> None:
        self.problem = f"recording has ended: {reason}; the run went on"
        for file in self._files:
            try:
                file.close()
            except OSError:
                continue
        self._files = []
