"""Map calls: which chunks of a trace were mapped together, and which unmap ended them.

A scatter-gather mapping is one `map` event for each physically contiguous chunk and *one* later `unmap`. The unmap's
range says which chunks belong together; for mappings that were never unmapped the flush at the end of the map call
says it, else that the chunks follow each other on one CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from emu.capture.events import MAP, PAGE_SHIFT, RPCIT, SYNC_MAP, UNMAP, CaptureReport, mapping_t

_Indices = npt.NDArray[np.int64]


def group_mappings(
    events: npt.NDArray[np.void], report: CaptureReport
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """Find which chunks were mapped by one call, and when each mapping was unmapped.

    The chunks inside the range of one unmap are one mapping, whatever happened between them: other CPUs map at the
    same time, and an interrupt may unmap and map on the very CPU. Those never unmapped are one mapping when a
    `SYNC_MAP` or `RPCIT` on their CPU spans exactly them, or else when they are adjacent and nothing else happened
    between them on that CPU in that context.

    Args:
        events: in trace order, shape (n,), dtype `event_t`.
        report: its counts of unmatched, supplied and partial unmaps are filled in.

    Returns:
        The mappings in the order of their first chunk, shape (m,), dtype `mapping_t`, and the chunks' event indices,
        mapping after mapping.
    """
    ended_by = _ended_by(events, report)
    is_unmapped = (ended_by >= 0) & (events["kind"][ended_by] == UNMAP)
    chunks = np.flatnonzero(events["kind"] == MAP)
    never_unmapped = len(events) + _calls_never_unmapped(events, ~is_unmapped)
    call, first_of_call = _numbered_by_first(np.where(is_unmapped, ended_by, never_unmapped)[chunks])
    map_events = chunks[first_of_call]
    chunks = chunks[np.lexsort((events["start"][chunks], call))]
    mappings = _measured(events, chunks, np.bincount(call))
    mappings["map_event"] = map_events
    mappings["unmap_event"] = _first_end(ended_by[chunks], mappings["first_chunk"])
    mappings["supplied"] = (mappings["unmap_event"] >= 0) & ~is_unmapped[map_events]
    report.supplied_unmaps = int(np.count_nonzero(mappings["supplied"]))
    return mappings, chunks


def _ended_by(events: npt.NDArray[np.void], report: CaptureReport) -> _Indices:
    """For every event, if it maps a chunk: the unmap that ended it, or the later map that shows its unmap was lost."""
    steps = np.flatnonzero((events["kind"] == MAP) | (events["kind"] == UNMAP))
    start, end, is_map = events["start"][steps], events["end"][steps], events["kind"][steps] == MAP
    step_after = _follow_live_chunks(start, end, is_map)
    _count_odd_unmaps(start, end, is_map, step_after, report)
    ended_by = np.full(len(events), -1)
    ended_by[steps] = np.where(step_after >= 0, steps[step_after], -1)
    return ended_by


def _measured(events: npt.NDArray[np.void], chunks: _Indices, nents: _Indices) -> npt.NDArray[np.void]:
    """Mappings with their size and place, from the chunks in mapping order and their number in each mapping."""
    mappings = np.zeros(len(nents), mapping_t)
    mappings["nents"] = nents
    mappings["first_chunk"] = np.cumsum(nents) - nents
    mappings["start"] = events["start"][chunks[mappings["first_chunk"]]]
    pages = (events["end"] - events["start"])[chunks] >> PAGE_SHIFT
    mappings["pages"] = np.add.reduceat(pages, mappings["first_chunk"])
    return mappings


def _first_end(ended_by: _Indices, first_chunk: _Indices) -> _Indices:
    """The first event that ended any chunk of each mapping, -1 if none did."""
    never = np.iinfo(np.int64).max
    first = np.minimum.reduceat(np.where(ended_by >= 0, ended_by, never), first_chunk)
    return np.where(first == never, -1, first)


def _numbered_by_first(labels: _Indices) -> tuple[_Indices, _Indices]:
    """Number the distinct labels 0, 1, … as they first appear: every element's number, and where each appears first."""
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    number = np.empty_like(by_first)
    number[by_first] = np.arange(len(by_first))
    return number[label], first[by_first]


def _follow_live_chunks(start: _Indices, end: _Indices, is_map: npt.NDArray[np.bool_]) -> _Indices:
    """For every step that maps a chunk: the next step, map or unmap, that touches any of it; -1 if there is none.

    The address space is cut into cells at every address where something begins or ends, so that each step covers whole
    cells, usually one; a list of the cells' owners is followed through the trace.
    """
    borders = np.unique(np.concatenate([start, end]))
    lows: list[int] = np.searchsorted(borders, start).tolist()
    highs: list[int] = np.searchsorted(borders, end).tolist()
    owner = [-1] * len(borders)
    ended_by = [-1] * len(start)
    for step, (maps, low, high) in enumerate(zip(is_map.tolist(), lows, highs, strict=True)):
        for chunk in {owner[low]} if high - low == 1 else set(owner[low:high]):
            if chunk >= 0:
                ended_by[chunk] = step
                owner[lows[chunk] : highs[chunk]] = [-1] * (highs[chunk] - lows[chunk])
        if maps:
            owner[low:high] = [step] * (high - low)
    return np.array(ended_by, np.int64)


def _count_odd_unmaps(
    start: _Indices, end: _Indices, is_map: npt.NDArray[np.bool_], ended_by: _Indices, report: CaptureReport
) -> None:
    """Count the unmaps that ended no chunk, and those that ended others than exactly the chunks of their range."""
    chunks = np.flatnonzero(ended_by >= 0)
    by = ended_by[chunks]
    ended_bytes, inside = np.zeros_like(start), np.ones(len(start), bool)
    np.add.at(ended_bytes, by, (end - start)[chunks])
    np.logical_and.at(inside, by, (start[by] <= start[chunks]) & (end[chunks] <= end[by]))
    unmatched = ~is_map & (ended_bytes == 0)
    partial = ~is_map & ~unmatched & ~(inside & (ended_bytes == end - start))
    report.unmatched_unmaps = int(np.count_nonzero(unmatched))
    report.partial_unmaps = int(np.count_nonzero(partial))


def _calls_never_unmapped(events: npt.NDArray[np.void], is_left: npt.NDArray[np.bool_]) -> _Indices:
    """For every event, if it maps a chunk and is left: the first chunk of its call, as event indices."""
    left = (events["kind"] == MAP) & is_left
    call = np.full(len(events), -1)
    for spanned in _calls_by_sync(events, left):
        call[spanned] = min(spanned)
        left[spanned] = False
    chunks, first = _calls_by_adjacency(events, left)
    call[chunks] = first
    return call


def _calls_by_sync(events: npt.NDArray[np.void], left: npt.NDArray[np.bool_]) -> Iterator[list[int]]:
    """Chunks of `left` that a later synchronisation on the same CPU spans exactly, call by call."""
    is_sync = np.isin(events["kind"], [RPCIT, SYNC_MAP]) & np.isin(events["start"], events["start"][left])
    pending: dict[tuple[int, int], int] = {}
    for index in np.flatnonzero(left | is_sync).tolist():
        event = events[index]
        cpu, address = int(event["cpu"]), int(event["start"])
        if event["kind"] == MAP:
            pending[cpu, address] = index
            continue
        chunks = []
        while address < event["end"] and (cpu, address) in pending:
            chunks.append(pending[cpu, address])
            address = int(events["end"][chunks[-1]])
        if address == event["end"]:
            for chunk in chunks:
                del pending[cpu, int(events["start"][chunk])]
            yield chunks


def _calls_by_adjacency(events: npt.NDArray[np.void], left: npt.NDArray[np.bool_]) -> tuple[_Indices, _Indices]:
    """Chunks of `left`, and for each the first chunk of the run of adjacent ones it belongs to."""
    events_seen = np.flatnonzero(np.isin(events["kind"], [MAP, UNMAP, RPCIT, SYNC_MAP]))
    context = events["cpu"].astype(np.int64) * 2 + events["irq"]
    order = events_seen[np.argsort(context[events_seen], kind="stable")]
    here, before = order[1:], order[:-1]
    joins = left[here] & left[before] & (context[here] == context[before])
    joins &= events["start"][here] == events["end"][before]
    begins = np.concatenate([np.ones(len(order) - len(here), bool), ~joins])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return order[left[order]], first[left[order]]
