"""What the processes of a machine have noted, as entries of the event log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.analysis.flushes import cause_name, flushes_of
from emu.iommu.tracepoints import EVENT_FLUSH_TIMEOUT, EVENT_OVERRUN, EVENT_TIMER_ARMED
from emu.machine.lock_names import lock_name, lock_number
from emu.native.lock import EVENT_LOCK_TAKEN_OVER

MOST_ENTRIES = 4000
"""Of one run, the earliest: a line of text takes far longer than an event, and the files of events have all of them."""

_OTHERS = (EVENT_FLUSH_TIMEOUT, EVENT_OVERRUN, EVENT_TIMER_ARMED, EVENT_LOCK_TAKEN_OVER)

Entry = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Clock:
    """How ticks of a machine become times.

    Attributes:
        tick_ns: length of a tick.
        start_ticks, start_ns: the same moment, the start of the load, in ticks and in ns of the machine's clock:
            CLOCK_MONOTONIC, or a virtual one.
        is_virtual: whether it is a virtual one.
    """

    tick_ns: float
    start_ticks: int
    start_ns: int
    is_virtual: bool

    def since_start_ns(self, ticks: int) -> int:
        """The time of an event, in ns since the start of the load."""
        return round((ticks - self.start_ticks) * self.tick_ns)

    def times_since_start_ns(self, ticks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same of many."""
        times: npt.NDArray[np.int64] = np.rint((ticks - self.start_ticks) * self.tick_ns).astype(np.int64)
        return times


def log_entries(events: npt.NDArray[np.void], clock: Clock, names: list[str], pids: list[int]) -> Iterator[Entry]:
    """The entries, in order of time: names as in emu.analysis.log_schema.

    Args:
        events: of all processes, each one's in its order; shape (n,), dtype event_t.
        clock: the machine's.
        names: of its processes by slot.
        pids: of the same.
    """
    flushes = flushes_of(events)
    others = events[np.isin(events["code"], _OTHERS)]
    others = others[np.argsort(others["ticks"], kind="stable")]
    count = len(flushes) + np.count_nonzero(flushes["finished_ticks"] >= 0) + len(others)
    rows = [*_flushes(flushes[:MOST_ENTRIES], clock), *_others(others[:MOST_ENTRIES], clock)]
    rows.sort(key=lambda row: row[0])
    for ticks, slot, event, values in rows[:MOST_ENTRIES]:
        at_ns = clock.since_start_ns(ticks)
        when = {"at_ns": at_ns} if clock.is_virtual else {"at_ns": at_ns, "time_ns": clock.start_ns + at_ns}
        yield event, {**when, "role": names[slot], "pid": pids[slot], **values}
    if count > MOST_ENTRIES:
        yield "log_truncated", {"left_out": int(count) - MOST_ENTRIES}


_Row = tuple[int, int, str, dict[str, Any]]


def _flushes(flushes: npt.NDArray[np.void], clock: Clock) -> Iterator[_Row]:
    for flush in flushes:
        slot, cpu = int(flush["slot"]), int(flush["cpu"])
        known = {"cpu": cpu, "cause": cause_name(int(flush["cause"])), "entries": int(flush["entries"])}
        yield int(flush["started_ticks"]), slot, "flush_started", known
        if flush["finished_ticks"] < 0:
            continue
        took_ns = round(int(flush["finished_ticks"] - flush["started_ticks"]) * clock.tick_ns)
        figures = {name: int(flush[name]) for name in ("walked", "changed", "wait_ns", "service_ns")}
        yield int(flush["finished_ticks"]), slot, "flush_finished", {**known, "took_ns": took_ns, **figures}


def _others(events: npt.NDArray[np.void], clock: Clock) -> Iterator[_Row]:
    for event in events:
        code, cpu, b = int(event["code"]), int(event["cpu"]), int(event["b"])
        values: dict[str, Any]
        if code == EVENT_TIMER_ARMED:
            name, values = "timer_armed", {"due_at_ns": b - clock.start_ns}
        elif code == EVENT_FLUSH_TIMEOUT:
            name, values = "timer_fired", {"due_at_ns": b - clock.start_ns}
        elif code == EVENT_OVERRUN:
            name, values = "overrun", {"lost_iovas": b}
        else:
            identity = int(event["a"])
            waited_ns = round(b * clock.tick_ns)
            name = "lock_taken_over"
            values = {"lock": lock_name(identity), "number": lock_number(identity), "waited_ns": waited_ns}
        yield int(event["ticks"]), int(event["slot"]), name, {"cpu": cpu, **values}
