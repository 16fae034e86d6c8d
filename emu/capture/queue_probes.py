"""What probes in the flush queue tell: when each call of queue_iova() looked and appended, when flushes were counted.

Probes lag. A virtual CPU may be preempted between a probe's line and what the line is about, for tens of ms: the line
of a flush's beginning may be long before its start is counted, that of an append long after it read the count, that of
a flush's end long after its finish freed another CPU's entries. Taken at their word, such lines contradict each other,
and a replay of them loses rings that were never lost. But they tell more than their times: the stamp of every entry
says which starts had been counted when it was appended, and a head that has moved past an entry says which finishes
had been. Between those bounds each moment is taken as close to its line as it can be:

- a start right after the line of a flush's beginning, but not before a CPU went on to append with the older stamp;
- a finish right before the line of a flush's end, but before any ring was seen freed by it;
- an append at its line, but before the start that made its stamp an old one;
- a look at a full ring at its line, but before the CPU's own flush, and before the finish that would have made room.

Which flush counts the n-th start, or finish, no line tells; of those under way it is the one that is over first.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emu.capture.events import (
    FLUSH,
    FLUSH_END,
    RING_FLUSHED,
    RING_FULL,
    TIMER,
    UNMAP,
)
from emu.capture.ftrace import Capture
from emu.capture.scanner import MOST_OWNERS

call_t = np.dtype(
    [
        ("event", "i8"),
        ("begin_ns", "i8"),
        ("append_ns", "i8"),
        ("stamp", "i8"),
        ("head", "i4"),
        ("tail", "i4"),
        ("cpu", "i4"),
        ("number", "i4"),
        ("full", "?"),
    ],
    align=True,
)
"""One call of queue_iova(), told by its append at `event`: the `number`-th unmap of its CPU, from 1. `begin_ns` is when
it looked at its ring, which with `full` had no room; `stamp` the starts counted when it appended, `head` and `tail` the
ring's afterwards."""

probed_flush_t = np.dtype(
    [
        ("cause_ns", "i8"),
        ("start_ns", "i8"),
        ("finish_ns", "i8"),
        ("resume_ns", "i8"),
        ("call", "i8"),
        ("cpu", "i4"),
        ("timer", "?"),
    ],
    align=True,
)
"""One flush of the queue: when its timer fired or its call found the ring full, when it was counted as started, when as
finished, and when its CPU went on, to free all rings or to append. `call` is the index of its call, -1 with `timer`."""

_opened_t = np.dtype([("cause", "i8"), ("begin", "i8"), ("end", "i8"), ("call", "i8"), ("cpu", "i4")], align=True)
"""A flush as its lines tell of it: indices of events; `call` as in probed_flush_t."""

_LARGEST_RING = 1 << 24
_APART_NS = 8
"""No two lines are closer, so that there is time for what happened between them."""
_NEXT_NS = 2
_NEVER_NS = 1 << 62

_Longs = npt.NDArray[np.int64]


class _Untold(Exception):  # noqa: N818 - not an error: such a trace is used without its probes
    """The probes do not tell enough, or contradict each other."""


@dataclass(frozen=True, slots=True)
class QueueTimes:
    """When things happened in the flush queue of a recorded machine, on the trace's clock.

    Attributes:
        events_ns: when each event of the capture happened, in its order; no two at once. Appends have their call's
            `begin_ns`.
        calls: in trace order, shape (n,), dtype call_t.
        flushes: in the order of their causes, shape (m,), dtype probed_flush_t.
    """

    events_ns: _Longs
    calls: npt.NDArray[np.void]
    flushes: npt.NDArray[np.void]


def queue_times(capture: Capture) -> QueueTimes | None:
    """When each call looked and appended, and when each flush started and finished.

    Returns:
        None where the probes do not tell: it takes one of every append, with head, tail and stamp (and no other line of
        unmaps), of every full ring with its head, and of every flush's beginning and end, none of them lost, from a
        time on when no flush was under way.
    """
    try:
        return _queue_times(capture)
    except _Untold:
        return None


def recorded_full_rings(capture: Capture) -> list[tuple[int, int]]:
    """(CPU, number of its unmap, from 1) of each call that found its ring full, in trace order; needs probes."""
    try:
        events, calls = capture.events, _calls(capture)
        found = _calls_of_full_rings(events, calls)
    except _Untold:
        return []
    chosen = calls[found[found < len(calls)]]
    return list(zip(chosen["cpu"].tolist(), chosen["number"].tolist(), strict=True))


def recorded_overruns(capture: Capture) -> list[tuple[int, int]]:
    """(CPU, number of its unmap, from 1) of each append that wrapped onto the head of its full ring, in trace order.

    The ring reads as empty afterwards. Without probes there are none to be found.
    """
    try:
        calls = _calls(capture)
    except _Untold:
        return []
    chosen = calls[calls["head"] == calls["tail"]]
    return list(zip(chosen["cpu"].tolist(), chosen["number"].tolist(), strict=True))


def _queue_times(capture: Capture) -> QueueTimes:
    events = capture.events
    calls = _calls(capture)
    opened = _opened_flushes(events, calls)
    times = strictly_increasing(events["time_ns"], _APART_NS)
    # Counts before the first start: the trace begins with no flush under way.
    base = int(calls["stamp"][0]) - int(np.count_nonzero(opened["end"] < calls["event"][0]))
    rings = _Rings(capture, calls)
    starts = _starts(opened, calls, times, _previous_on_cpu(events, times), base)
    finishes = _finishes(opened, starts, rings, times, base)
    _place(calls, opened, starts, finishes, rings, times, base)
    flushes = np.zeros(len(opened), probed_flush_t)
    timer = opened["call"] < 0
    flushes["call"], flushes["cpu"], flushes["timer"] = opened["call"], opened["cpu"], timer
    flushes["start_ns"], flushes["finish_ns"] = starts, finishes
    fired = events["time_ns"][opened["cause"]]
    flushes["cause_ns"] = np.where(timer, fired, calls["begin_ns"][opened["call"]])
    flushes["resume_ns"] = np.where(timer, times[opened["end"]], calls["append_ns"][opened["call"]])
    times[calls["event"]] = calls["begin_ns"]
    return QueueTimes(times, calls, flushes[np.argsort(flushes["cause_ns"], kind="stable")])


def strictly_increasing(times: _Longs, apart: int = 1) -> _Longs:
    """The same times, none closer than `apart` to the one before it; later where they must be."""
    count = np.arange(len(times)) * apart
    return np.maximum.accumulate(times - count) + count


# --- what the lines say ---------------------------------------------------------------------------------------------


def _calls(capture: Capture) -> npt.NDArray[np.void]:
    """The calls in trace order, their moments still open."""
    events, states = capture.events, capture.ring_states
    report = capture.report
    if not report.queued_as_unmaps or report.lost_events or report.supplied_unmaps:
        raise _Untold
    appends = states[events["kind"][states["event"]] == UNMAP]
    if len(appends) != np.count_nonzero(events["kind"] == UNMAP) or (appends["started"] < 0).any():
        raise _Untold
    if (appends["head"] < 0).any() or (appends["tail"] < 0).any():
        raise _Untold
    if max(appends["head"].max(), appends["tail"].max()) >= _LARGEST_RING:
        raise _Untold
    calls = np.zeros(len(appends), call_t)
    calls["event"], calls["stamp"] = appends["event"], appends["started"]
    calls["head"], calls["tail"] = appends["head"], appends["tail"]
    calls["cpu"] = events["cpu"][calls["event"]]
    for mine in _groups(calls["cpu"]):
        calls["number"][mine] = np.arange(len(mine)) + 1
    return calls


def _groups(of: npt.NDArray[np.signedinteger]) -> list[_Longs]:
    """Indices of those of each CPU, or ring, in their order."""
    order = np.argsort(of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of[order])) + 1)


def _calls_of_full_rings(events: npt.NDArray[np.void], calls: npt.NDArray[np.void]) -> _Longs:
    """For each full ring, in trace order, the index of the call that found it: its CPU's next append."""
    full = np.flatnonzero(events["kind"] == RING_FULL)
    cpus = events["cpu"][full]
    found = np.full(len(full), len(calls))
    for mine in _groups(calls["cpu"]):
        here = cpus == calls["cpu"][mine[0]]
        after = np.searchsorted(calls["event"][mine], full[here])
        found[here] = np.append(mine, len(calls))[after]
    return found


def _opened_flushes(events: npt.NDArray[np.void], calls: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Every flush, in the order of the lines of their beginnings.

    The lines of a flush belong to the call on their CPU that found its ring full, else to the timer that fired there.
    """
    fulls = iter(_calls_of_full_rings(events, calls).tolist())
    ends_at = np.append(calls["event"], len(events)).tolist()
    told = np.flatnonzero(np.isin(events["kind"], (TIMER, RING_FULL, FLUSH, FLUSH_END)))
    in_call: dict[int, list[int]] = {}
    in_timer: dict[int, list[int]] = {}
    found: list[list[int]] = []
    for event, kind, cpu in zip(
        told.tolist(), events["kind"][told].tolist(), events["cpu"][told].tolist(), strict=True
    ):
        if kind in (TIMER, RING_FULL):
            flush = [event, -1, -1, next(fulls) if kind == RING_FULL else -1, cpu]
            found.append(flush)
            (in_call if kind == RING_FULL else in_timer)[cpu] = flush
            continue
        call = in_call.get(cpu)
        flush = call if call and event < ends_at[call[3]] else in_timer.get(cpu, [])
        line = 1 if kind == FLUSH else 2
        if not flush or flush[line] >= 0:
            raise _Untold
        flush[line] = event
    opened = np.array([tuple(flush) for flush in found], _opened_t)
    # What was under way when the trace ended has nobody left to tell of it.
    opened = opened[(opened["end"] >= 0) & (opened["call"] < len(calls))]
    if not len(opened) or (opened["begin"] < 0).any():
        raise _Untold
    return opened[np.argsort(opened["begin"])]


def _previous_on_cpu(events: npt.NDArray[np.void], times: _Longs) -> _Longs:
    """For each event the time of the one before it on its CPU, of whatever kind; 0 for the first."""
    before = np.zeros(len(events), np.int64)
    for mine in _groups(events["cpu"]):
        before[mine[1:]] = times[mine[:-1]]
    return before


class _Rings:
    """What was in which slot of which ring, and when heads moved."""

    def __init__(self, capture: Capture, calls: npt.NDArray[np.void]) -> None:
        self._count = len(capture.events)
        self._size = 1 << int(max(calls["head"].max(), calls["tail"].max())).bit_length()
        rings = _ring_numbers(capture.events)
        keys = self._keys(rings[calls["event"]], calls["tail"] - 1, calls["event"])
        order = np.argsort(keys)
        self._written, self._stamps = keys[order], calls["stamp"][order]
        kinds = capture.events["kind"][capture.ring_states["event"]]
        self._seen = capture.ring_states[
            np.isin(kinds, (UNMAP, RING_FULL, RING_FLUSHED)) & (capture.ring_states["head"] >= 0)
        ]
        self._seen_of = rings[self._seen["event"]]

    def head_stamps(self, full_rings: _Longs) -> _Longs:
        """The stamps of the heads of rings that were found full, at these events; -1 where not told."""
        rows = np.searchsorted(self._seen["event"], full_rings)
        if (self._seen["event"][np.minimum(rows, len(self._seen) - 1)] != full_rings).any():
            raise _Untold
        return self._stamps_before(self._seen_of[rows], self._seen["head"][rows], full_rings)

    def freed(self) -> tuple[_Longs, _Longs]:
        """Events at which a head had moved, and the stamp of the last entry that it had moved past."""
        moved = [mine[1:][np.diff(self._seen["head"][mine]) != 0] for mine in _groups(self._seen_of)]
        rows = np.concatenate(moved)
        events = self._seen["event"][rows].astype(np.int64)
        return events, self._stamps_before(self._seen_of[rows], self._seen["head"][rows] - 1, events)

    def _stamps_before(self, rings: _Longs, slots: _Longs, events: _Longs) -> _Longs:
        """The stamp that each slot had just before an event, -1 where it had none."""
        wanted = self._keys(rings, slots, events)
        last = np.searchsorted(self._written, wanted) - 1
        same = (last >= 0) & (self._written[last] // self._count == wanted // self._count)
        return np.where(same, self._stamps[last], -1)

    def _keys(self, rings: _Longs, slots: _Longs, events: _Longs) -> _Longs:
        return (rings * self._size + slots % self._size) * self._count + events


def _ring_numbers(events: npt.NDArray[np.void]) -> _Longs:
    """Which ring each event belongs to: the one it names, else its CPU's."""
    owner = events["owner"].astype(np.int64)
    return np.where(owner > 0, owner, MOST_OWNERS + events["cpu"])


# --- when it must have happened -------------------------------------------------------------------------------------


def _starts(
    opened: npt.NDArray[np.void], calls: npt.NDArray[np.void], times: _Longs, before: _Longs, base: int
) -> _Longs:
    """When each flush was counted as started."""
    count = len(opened)
    begins = times[opened["begin"]]
    nth = calls["stamp"] - base
    if nth.min() < 0 or nth.max() > count:
        raise _Untold
    not_before, before_ns = begins + _NEXT_NS, np.full(count, _NEVER_NS)
    older, newer = nth < count, nth > 0
    # The CPU that appended with the older stamp did so after its line before.
    np.maximum.at(not_before, nth[older], before[calls["event"][older]] + _NEXT_NS)
    np.minimum.at(before_ns, nth[newer] - 1, times[calls["event"][newer]])
    before_ns = np.minimum.accumulate(before_ns[::-1])[::-1]
    of = _whose(begins, times[opened["end"]], before_ns)
    nth_ns = strictly_increasing(np.maximum(not_before, begins[of] + _NEXT_NS))
    if (nth_ns >= before_ns).any() or (nth_ns >= times[opened["end"]][of]).any():
        raise _Untold
    starts = np.empty(count, np.int64)
    starts[of] = nth_ns
    return starts


def _finishes(opened: npt.NDArray[np.void], starts: _Longs, rings: _Rings, times: _Longs, base: int) -> _Longs:
    """When each flush was counted as finished."""
    count = len(opened)
    ends = times[opened["end"]]
    latest = np.sort(ends) - _NEXT_NS
    events, stamps = rings.freed()
    known = (stamps >= base) & (stamps < base + count)
    np.minimum.at(latest, stamps[known] - base, times[events[known]] - _NEXT_NS)
    order = np.arange(count)
    latest = np.minimum.accumulate((latest - order)[::-1])[::-1] + order
    of = _whose(starts, ends, latest)
    finishes = np.empty(count, np.int64)
    finishes[of] = strictly_increasing(np.maximum(np.minimum(latest, ends[of] - _NEXT_NS), starts[of] + 1))
    return finishes


def _whose(since: _Longs, until: _Longs, before: _Longs) -> _Longs:
    """Which flush makes the n-th count, before `before[n]`: of those under way since then, the one that ends first."""
    order = np.argsort(since, kind="stable").tolist()
    begins, ends = since.tolist(), until.tolist()
    under_way: list[tuple[int, int]] = []
    whose, begun = np.empty(len(order), np.int64), 0
    for nth, before_ns in enumerate(before.tolist()):
        while begun < len(order) and begins[order[begun]] < before_ns:
            heapq.heappush(under_way, (ends[order[begun]], order[begun]))
            begun += 1
        if not under_way:
            raise _Untold
        whose[nth] = heapq.heappop(under_way)[1]
    return whose


def _place(
    calls: npt.NDArray[np.void],
    opened: npt.NDArray[np.void],
    starts: _Longs,
    finishes: _Longs,
    rings: _Rings,
    times: _Longs,
    base: int,
) -> None:
    """Set when each call looked at its ring, and when it appended; one after the other on every CPU."""
    nth_start, nth_finish = np.sort(starts), np.sort(finishes)
    append = times[calls["event"]]
    outdated = calls["stamp"] - base < len(starts)
    append[outdated] = np.minimum(append[outdated], nth_start[calls["stamp"][outdated] - base] - 1)
    begin = append.copy()
    by_call = opened["call"] >= 0
    full, found_full = opened["call"][by_call], opened["cause"][by_call]
    calls["full"][full] = True
    begin[full] = np.minimum(times[found_full], starts[by_call] - 1)
    stamps = rings.head_stamps(found_full) - base
    known = (stamps >= 0) & (stamps < len(finishes))
    begin[full[known]] = np.minimum(begin[full[known]], nth_finish[stamps[known]] - 1)
    for mine in _groups(calls["cpu"]):
        append[mine] = strictly_increasing(append[mine])
        begin[mine[1:]] = np.maximum(begin[mine[1:]], append[mine[:-1]] + 1)
    calls["begin_ns"] = np.where(calls["full"], begin, append)
    calls["append_ns"] = append
