"""The domain-wide flushes in a trace: when each began and ended, why, and where the kernel's jiffies stood."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emu.capture.events import (
    ATTACH,
    CACHE_TAG_FLUSH,
    FLUSH,
    FLUSH_END,
    FQ_FLUSH,
    FQ_FLUSH_END,
    INVALIDATION,
    INVALIDATION_END,
    MAP,
    MARK,
    RING_FLUSHED,
    RING_FREE,
    RING_FREE_LOCKED,
    RING_FULL,
    RPCIT,
    RPCIT_END,
    TIMER,
    UNMAP,
)

BY_TIMER, BY_FULL_RING, BY_ATTACH = range(3)

flush_t = np.dtype(
    [("event", "i8"), ("begin_ns", "i8"), ("end_ns", "i8"), ("timer_ns", "i8"), ("cpu", "i4"), ("cause", "i4"),
     ("unmaps", "i8"), ("cause_ns", "i8")],
    align=True,
)  # fmt: skip
"""One flush: the `event` that tells of it, its times on the trace clock, when the timer fired that caused it (0 where
none did), and how many unmaps its CPU had begun before: with BY_FULL_RING the last of them found the ring full.
`cause_ns`: when its cause happened, as far as that is told: the timer fired, an unmap began, a ring was found full."""

_CAUSES = (TIMER, UNMAP, MAP, RING_FULL)
_INSIDE = (FQ_FLUSH, FLUSH, CACHE_TAG_FLUSH, INVALIDATION, INVALIDATION_END, RPCIT)
"""What one CPU does between the beginning and the end of a flush."""
_ENDS = (FLUSH_END, FQ_FLUSH_END, RPCIT_END, RING_FREE, RING_FREE_LOCKED)
_SHORT_NS = 50_000
"""How long the last step of a flush takes where the trace shows no end and the CPU is idle afterwards."""
_MANY = 1000
_FREE_NS = 1000
"""What it takes to free one entry where nothing tells of it."""
_LONG_NS = 60_000_000
"""Longer than that a flush does not last, of which only the beginning is in the trace."""


def flushes_in(events: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The flushes of a trace in the order of their beginnings, shape (n,), dtype flush_t.

    A flush ends where a probe says so. If none does, a CPU that found its ring full goes on as soon as the flush is
    over, so its next event ends it; a timer's flush ends with what its CPU was last seen to do for it, or if nothing
    was seen, with that CPU's next event, where that comes soon; else it lasts as long as the others do.
    """
    rows: list[tuple[int, ...]] = []
    for cpu in np.unique(events["cpu"][events["kind"] == FLUSH]).tolist():
        mine = np.flatnonzero((events["cpu"] == cpu) & (events["kind"] != MARK))
        rows += _flushes_of(events, mine, cpu)
    found = np.array(rows, flush_t)
    known = found["end_ns"] > 0
    typical_ns = int(np.median((found["end_ns"] - found["begin_ns"])[known])) if known.any() else _SHORT_NS
    found["end_ns"][~known] = found["begin_ns"][~known] + typical_ns
    return found[np.argsort(found["begin_ns"], kind="stable")]


def cost_of_freeing_ns(flushes: npt.NDArray[np.void], events: npt.NDArray[np.void]) -> float:
    """What it took to free one entry after a timer's flush: the median where the CPU had something to do afterwards."""
    costs = []
    before = 0
    unmaps = np.flatnonzero(events["kind"] == UNMAP)
    for flush in flushes[flushes["cause"] == BY_TIMER]:
        queued = int(np.searchsorted(unmaps, flush["event"])) - before
        before += queued
        later = np.flatnonzero((events["cpu"] == flush["cpu"]) & (events["time_ns"] > flush["end_ns"]))
        ends = (events["cpu"] == flush["cpu"]) & (events["time_ns"] == flush["end_ns"])
        if queued >= _MANY and len(later) and np.isin(events["kind"][ends], _ENDS).any():
            took_ns = int(events["time_ns"][later[0]] - flush["end_ns"])
            costs += [took_ns / queued] if took_ns < _LONG_NS else []
    return float(np.median(costs)) if costs else _FREE_NS


def _flushes_of(events: npt.NDArray[np.void], mine: npt.NDArray[np.int64], cpu: int) -> list[tuple[int, ...]]:
    kinds, times = events["kind"][mine], events["time_ns"][mine]
    causes = np.flatnonzero(np.isin(kinds, _CAUSES))
    unmaps = np.cumsum(kinds == UNMAP) + _shown_late(events["start"][mine], kinds)
    rows: list[tuple[int, ...]] = []
    for place in np.flatnonzero(kinds == FLUSH).tolist():
        before = causes[np.searchsorted(causes, place) - 1] if len(causes) and causes[0] < place else -1
        cause = BY_TIMER if before >= 0 and kinds[before] == TIMER else BY_FULL_RING
        if place + 1 < len(kinds) and kinds[place + 1] == ATTACH:
            cause = BY_ATTACH
        counted = place - 1 if place and kinds[place - 1] == FQ_FLUSH else place
        end_ns = _end_of(kinds, times, place, waits=cause == BY_FULL_RING)
        timer_ns = int(times[before]) if cause == BY_TIMER else 0
        cause_ns = int(times[before if before >= 0 else counted])
        rows.append((int(mine[place]), int(times[counted]), end_ns, timer_ns, cpu, cause, int(unmaps[place]), cause_ns))
    return rows


def _shown_late(starts: npt.NDArray[np.int64], kinds: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """1 where an unmap is under way that has its line only after its flush: where appends stand for unmaps."""
    late = np.zeros(len(kinds), np.int64)
    unmaps = np.flatnonzero(kinds == UNMAP)
    flushed = np.flatnonzero(kinds == RING_FLUSHED)
    full = np.flatnonzero(kinds == RING_FULL)
    appended, found = np.searchsorted(unmaps, flushed), np.searchsorted(full, flushed) - 1
    for after, append, before in zip(flushed.tolist(), appended.tolist(), found.tolist(), strict=True):
        if append < len(unmaps) and before >= 0 and starts[unmaps[append]] == starts[after]:
            late[full[before] : unmaps[append]] = 1
    return late


def _end_of(kinds: npt.NDArray[np.int8], times: npt.NDArray[np.int64], place: int, *, waits: bool) -> int:
    """0 where nothing tells of it."""
    last = place
    while last + 1 < len(kinds) and kinds[last + 1] in _INSIDE and kinds[last + 1] != FLUSH:
        last += 1
    following = int(times[last + 1]) if last + 1 < len(kinds) else 1 << 62
    if waits or (last + 1 < len(kinds) and kinds[last + 1] in _ENDS):
        return following
    if last > place:
        return min(following, int(times[last]) + _SHORT_NS)
    return following if following < times[place] + _LONG_NS else 0


def jiffies_granule_ns(timeout_ns: int, tick_ns: int) -> int:
    """How finely a timer of that length fires: a jiffy, or as many as its level of the timer wheel has (timer.c)."""
    jiffies, granule = -(-timeout_ns // tick_ns), 1
    while jiffies >= 63 * granule:
        granule *= 8
    return granule * tick_ns


def jiffies_start_ns(fired_ns: npt.NDArray[np.int64], granule_ns: int) -> int:
    """Where the granules of a timer begin on the trace clock, from when it fired: just before the promptest of them.

    Returns:
        0 ≤ start < `granule_ns`; 0 where nothing fired.
    """
    if not len(fired_ns):
        return 0
    phases = np.unique(fired_ns % granule_ns)
    lateness = (fired_ns[None, :] - phases[:, None]) % granule_ns
    # A timer never fires early, and seldom very late.
    cost = np.minimum(lateness, granule_ns // 2).sum(axis=1)
    return int(phases[np.argmin(cost)])
