"""Where the events of CPUs, timer and hypervisor go while the machine runs: to files, or into memory.

The rings never wait for the disk: what does not fit is lost and counted. When a file cannot be written any longer,
recording ends with a sentence, and the run goes on.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emu.iommu.tracepoints import EVENT_MAP, EVENT_RPCIT, EVENT_UNMAP
from emu.machine.layout import Layout
from emu.native.events import EventFile, drain, event_t
from emu.native.lock import EVENT_LOCK_WAIT

MOST_LOGGED = 1 << 17
_IS_RARE = np.ones(1 << 15, np.bool_)
_IS_RARE[[EVENT_MAP, EVENT_UNMAP, EVENT_RPCIT, EVENT_LOCK_WAIT]] = False


class EventCollector:
    """Keeps the events of one run in memory; their order is that of the rings, each oldest first.

    Attributes:
        recorded: events kept.
        lost: events that found their ring full.
        log: empty; who collects them has them.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.lost = 0
        self.problem: str | None = None
        self.log: list[npt.NDArray[np.void]] = []
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

    def fill_disk(self) -> None:
        """Memory is no disk: nothing changes."""

    def drain(self) -> bool:
        """Take what the rings hold; False, as there is time."""
        for ring in self._rings:
            events = drain(ring)
            if len(events):
                self._chunks.append(events.copy())
                self.recorded += len(events)
        return False

    def events(self) -> npt.NDArray[np.void]:
        """All events in order of time, shape (n,), dtype event_t; `ticks` are ns on virtual clocks."""
        whole = np.concatenate(self._chunks) if self._chunks else np.zeros(0, event_t)
        return whole[np.argsort(whole["ticks"], kind="stable")]


class EventWriter:
    """The files of events of one run: with `machine.record` one for each process, `events-cpuN.bin` and so on.

    Without it all processes' events, which are few then, go to `events-machine.bin`.

    Attributes:
        recorded: events written.
        lost: events that found their ring full, or came after recording had ended.
        problem: why recording ended early, as one line, or None.
        log: what the event log tells, up to MOST_LOGGED events, chunk by chunk, each process's in its order.
    """

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        self.recorded = 0
        self.lost = 0
        self.problem: str | None = None
        self.log: list[npt.NDArray[np.void]] = []
        self._files: list[EventFile] = []
        self._rings: Any = layout.segment["event_rings"]
        self._soon = layout.events_per_cpu // 4
        self._logged = 0
        self._is_recording = layout.config.machine.record
        if folder is None:
            if layout.config.machine.record:
                self.problem = "machine.record is on, but there is no folder to record to: every event counts as lost"
            return
        names = ["machine"]
        if layout.config.machine.record:
            names = [layout.name_of(slot).replace(" ", "") for slot in range(len(self._rings))]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = [EventFile(folder, name) for name in names]
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

    def fill_disk(self) -> None:
        """Have every later write fail, as on a disk that is full."""
        for file in self._files:
            file.fill_disk()

    def drain(self) -> bool:
        """Move what the rings hold to the files; True when one was so full that it had better be done again soon."""
        most = 0
        for slot in np.flatnonzero(self._rings.tail != self._rings.head):
            events = drain(self._rings[slot])
            self._keep_for_log(events)
            most = max(most, len(events))
            if not self._files:
                self.lost += len(events)
                continue
            file = self._files[slot if len(self._files) > 1 else 0]
            try:
                file.append(events)
            except OSError as error:
                self.lost += len(events)
                self._give_up(f"{file.path}: {error.strerror}")
            else:
                self.recorded += len(events)
        return most > self._soon

    def _keep_for_log(self, events: npt.NDArray[np.void]) -> None:
        if self._logged >= MOST_LOGGED:
            return
        # A copy: what is kept must not hold on to the whole ring's worth.
        kept = events[_IS_RARE[events["code"]]] if self._is_recording else events.copy()
        self._logged += len(kept)
        self.log.append(kept)

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
