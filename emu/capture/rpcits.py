"""Maps and unmaps of a kernel that has no events for them: s390 before Linux 6.7, from its RPCITs alone.

There the DMA API was `arch/s390/pci/pci_dma.c`. A guest whose hypervisor must be told of maps issues one RPCIT for each
map, and strictly one for each unmap. Which it was, the context tells: drivers of block devices map in process context
and unmap in interrupts. Lazily an unmap has no RPCIT at all, and of those that have one, some are missing, because a
probe does not fire inside another.

Missing unmaps are supplied. When they happened cannot be known and matters little: the allocator only goes forward, so
no address, and no count, depends on it as long as it does not come round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from emu.capture.events import ATTACH, FAULT, MAP, MARK, PAGE_SHIFT, RPCIT, RPCIT_END, UNMAP, CaptureReport
from emu.capture.phases import phase_changes_in

_KINDS = (MARK, RPCIT, RPCIT_END, ATTACH, FAULT)
"""What a trace of such a kernel can hold: one with anything else has another DMA API, or events of its own for maps."""
_LIFE_NS = 500_000
"""How long after its map an unmap is supplied: in the captures in which both are seen the median is 0.15 to 2.4 ms."""
_REORDERED_NS = 30_000_000
"""How long a map may take from its address to its RPCIT, so that others overtake it: a guest's CPU can be held up in
between. Maps further apart are in their order."""

_MOST_OVERTAKEN = 1024
"""More maps than that are not overtaken meanwhile."""

_Events = npt.NDArray[np.void]
_Indices = npt.NDArray[np.int64]
_SUPPLIED, _INSERTED, _RECORDED = range(3)


def has_maps_in_rpcits(events: _Events, report: CaptureReport) -> bool:
    """Whether the trace has nothing but RPCITs to tell of maps, and says which of them were issued in an interrupt."""
    kinds = events["kind"]
    if not np.isin(kinds, _KINDS).all() or report.tool == "perf script":
        return False
    return bool((~events["irq"][_rpcits_of_ranges(events)]).any())


def with_maps_of_rpcits(
    events: _Events, marks: Sequence[str], report: CaptureReport, kept_pages: Mapping[str, int]
) -> _Events:
    """Insert a `MAP` before each RPCIT of a map, an `UNMAP` before each of an unmap, and the unmaps that are missing.

    A map goes to where it took its address, when its RPCIT was overtaken by those of higher addresses. Lazily (without
    any unmap seen) and strictly alike, a map without an unmap gets one 0.5 ms later, in any case before the phase
    changes; but for some, the largest first, of those that the kernel says stayed mapped.

    Args:
        events: in trace order.
        marks: see `Capture.marks`.
        report: what was taken from RPCITs and what was supplied is filled in.
        kept_pages: see `KernelCounters.kept_pages`; nothing stays mapped where that is empty.

    Returns:
        The events with those inserted, in their order.
    """
    rpcits = _rpcits_of_ranges(events)
    in_irq = events["irq"][rpcits]
    maps, unmaps = rpcits[~in_irq], rpcits[in_irq]
    changes = phase_changes_in(events, marks)
    missing = _without_unmap(events, rpcits)
    # The first change to a name counts: a phase that ran twice has one reading of its counters.
    bounds = {change.name: change.event for change in reversed(changes)}
    kept = _kept(events, missing, [(bounds[name], pages) for name, pages in kept_pages.items() if name in bounds])
    supplied_for = np.setdiff1d(missing, kept)
    supplied, supplied_at = _supplied(events, supplied_for, np.array([change.event for change in changes], np.int64))
    allocated_at = _allocated_at(events, maps)
    inserted = [_copies(events, maps, MAP, allocated_at), _copies(events, unmaps, UNMAP, unmaps), supplied]
    report.from_rpcits = True
    report.map_events, report.unmap_events, report.unseen_unmaps = len(maps), len(unmaps), len(supplied)
    report.knows_kept_pages = bool(kept_pages)
    everything = np.concatenate([events, *inserted])
    where = np.concatenate([np.arange(len(events)), allocated_at, unmaps, supplied_at])
    rank = np.repeat((_RECORDED, _INSERTED, _SUPPLIED), (len(events), len(rpcits), len(supplied)))
    return everything[np.lexsort((everything["start"], everything["time_ns"], rank, where))]


def _rpcits_of_ranges(events: _Events) -> _Indices:
    """RPCITs of single mappings: all but the global ones, whose range begins before and ends after all others."""
    found = np.flatnonzero(events["kind"] == RPCIT)
    starts, ends = events["start"][found], events["end"][found]
    if not len(found):
        return found
    is_global = (starts == starts.min()) & (ends == ends.max())
    return found if is_global.all() else found[~is_global]


def _without_unmap(events: _Events, rpcits: _Indices) -> _Indices:
    """Maps of which no unmap is seen: none in an interrupt of exactly their range."""
    rows = zip(*(events[name][rpcits].tolist() for name in ("irq", "owner", "start", "end")), strict=True)
    live: dict[tuple[int, int, int], int] = {}
    missing: list[int] = []
    for event, (in_irq, owner, start, end) in zip(rpcits.tolist(), rows, strict=True):
        before = live.pop((owner, start, end), None)
        if not in_irq:
            live[owner, start, end] = event
            if before is not None:
                missing.append(before)
    return np.array(sorted([*missing, *live.values()]), np.int64)


def _kept(events: _Events, missing: _Indices, readings: Sequence[tuple[int, int]]) -> _Indices:
    """Maps that stay mapped: as many pages as the kernel counted, the largest first, as rings and the like are.

    Args:
        events: all.
        missing: maps without an unmap.
        readings: (event, pages): so many pages more than at the reading before were still mapped at that event.
    """
    pages = (events["end"] - events["start"]) >> PAGE_SHIFT
    kept: list[int] = []
    since = 0
    for until, left in sorted(readings):
        room = left
        window = missing[(missing >= since) & (missing < until)]
        for event in window[np.argsort(-pages[window], kind="stable")].tolist():
            if pages[event] <= room:
                kept.append(event)
                room -= int(pages[event])
        since = until
    return np.array(kept, np.int64)


def _supplied(events: _Events, maps: _Indices, changes: _Indices) -> tuple[_Events, _Indices]:
    """Unmaps of these maps, and the events that each is to go before."""
    times = np.maximum.accumulate(events["time_ns"])
    due_ns = times[maps] + _LIFE_NS
    bounds = np.append(changes, len(events))
    at = np.minimum(np.searchsorted(times, due_ns), bounds[np.searchsorted(changes, maps, side="right")])
    unmaps = _copies(events, maps, UNMAP, maps)
    unmaps["irq"] = True
    unmaps["time_ns"] = np.minimum(due_ns, np.append(times, due_ns.max(initial=0))[at])
    return unmaps, at


def _allocated_at(events: _Events, maps: _Indices) -> _Indices:
    """For each map, the event before which it took its address: its own, or an earlier one of a higher address.

    The allocator goes forward, so within a short time lower addresses were taken first. Where it comes round,
    addresses fall by more than half of what there is.
    """
    come_round = int(events["end"][maps].max() - events["start"][maps].min()) // 2
    rows = zip(*(events[name][maps].tolist() for name in ("owner", "start", "time_ns")), strict=True)
    in_order: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    allocated_at = maps.copy()
    for index, (owner, start, time_ns) in enumerate(rows):
        before = in_order[owner]
        place = len(before)
        furthest = max(place - _MOST_OVERTAKEN, 0)
        while place > furthest:
            other, other_ns, other_at = before[place - 1]
            if not 0 < other - start <= come_round or other_ns < time_ns - _REORDERED_NS:
                break
            allocated_at[index] = other_at
            place -= 1
        before.insert(place, (start, time_ns, int(allocated_at[index])))
    return allocated_at


def _copies(events: _Events, of: _Indices, kind: int, at: _Indices) -> _Events:
    """Copies of some events, of another kind, at the time of others."""
    copies = events[of].copy()
    copies["kind"] = kind
    copies["time_ns"] = events["time_ns"][at]
    return copies
