"""Where the events of the CPUs and of the timer go while the machine runs: to files, or into memory.

The rings never wait for the disk: what does not fit is lost and counted. When a file cannot be written any longer,
recording ends with a sentence, and the run goes on.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emu.machine.layout import Layout
from emu.native.events import EventFile, drain, event_t


class EventCollector:
    """Keeps the events of one run in memory; their order is that of the rings, each oldest first.

    Attributes:
        recorded: events kept.
        lost: events that found their ring full.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.lost = 0
        self.problem: str | None = None
        self._rings: Any = []
        self._chunks: list[npt.NDArray[np.void]] = []

    def attach(self, layout: Layout) -> Self:
        """Say which machine's rings to empty."""
        self._rings = layout.segment["event_rings"]
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drain()
        self.lost = sum(int(ring.lost) for ring in self._rings)
        self._rings = []

    def drain(self) -> None:
        """Take what the rings hold."""
        for ring in self._rings:
            events = drain(ring)
            if len(events):
                self._chunks.append(events.copy())
                self.recorded += len(events)

    def events(self) -> npt.NDArray[np.void]:
        """All events in order of time, shape (n,), dtype event_t; `ticks` are ns on virtual clocks."""
        whole = np.concatenate(self._chunks) if self._chunks else np.zeros(0, event_t)
        return whole[np.argsort(whole["ticks"], kind="stable")]


class EventWriter:
    """The files `events-cpuN.bin` and `events-timer.bin` of one run; does nothing where nothing is recorded.

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
            for cpu in range(layout.cpus):
                self._files.append(EventFile(folder, f"cpu{cpu}"))
            self._files.append(EventFile(folder, "timer"))
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


EventSink = EventWriter | EventCollector
"""What a machine tells its events to."""
