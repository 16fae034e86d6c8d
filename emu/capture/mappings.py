"""Map calls: which chunks of a trace were mapped together, and which unmap ended them.

A scatter-gather mapping is one `map` event for each physically contiguous chunk and *one* later `unmap`. The unmap's
range says which chunks belong together; for mappings that were never unmapped the flush at the end of the map call
says it, else that the chunks follow each other on one CPU.

The trace is gone through in order. Live chunks are kept in a tree by address; an unmap takes out those that it touches
and links them into a call. What is left goes through twice more, for the two weaker signs. Beside the result this needs
16 bytes for each chunk and a tree as large as the most chunks ever live.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emu.capture.events import MAP, PAGE_SHIFT, RPCIT, SYNC_MAP, UNMAP, CaptureReport, event_t, mapping_t
from emu.native.compile import compile_entries, entry, inline, jit
from emu.native.rbtree import rb_erase, rb_link_before, rb_link_last, rb_node, rb_root
from emu.native.record import deref, element, int64_t, struct

_NODES_AT_ONCE = 1 << 16
_CONTEXTS_OF_A_CPU = 2
_LAST = (1 << 63) - 1
_LOW_BITS = (1 << 40) - 1
_MOST_CHUNKS = 4096
"""No call maps more chunks: so far is looked for the end of one that a synchronisation spans."""

live_t = struct(node=rb_node, start="i8", end="i8", owner="i8", chunk="i8")
"""A live chunk, in the tree by owner and address; no two of one owner overlap."""

chunk_t = struct(event="u4", ended_by="i4", next="i4", first="i4")
"""A chunk, in trace order: its event, the event that ended it (-1), and how its call hangs together.

`next` is the chunk that follows it in its call by address (-1 at the end); `first` is, in the chunk of a call that
comes first in the trace, the one with the lowest address, and -1 in the others. `_LEFT` in `next` says that no call is
known.
"""
_NONE, _LEFT = -1, -2

index_t = struct(value="i4")
"""An index into the chunks, or -1."""

grouping_t = struct(
    events="i8",
    event_count="i8",
    next_event="i8",
    chunks="i8",
    chunk_count="i8",
    by_owner="i8",
    root=rb_root,
    free="i8",
    last="i8",
    calls="i8",
    pending="i8",
    pending_mask="i8",
    contexts="i8",
    left="i8",
    unmatched_unmaps="i8",
    partial_unmaps="i8",
    supplied_unmaps="i8",
)
"""The work in hand: addresses of the events, of the chunks and of the tables of its passes, and what was counted.

`last` is the tree's last node, above all addresses; `free` a list of nodes through `node.next`. `pending` is a hash
table of the chunks left, by CPU and address; `contexts` has the chunk that came last on each CPU, in and out of
interrupts.
"""


@inline
def _event(work: Any, index: int) -> Any:
    return element(event_t, work.events, index)


@inline
def _chunk(work: Any, index: int) -> Any:
    return element(chunk_t, work.chunks, index)


@inline
def _chunk_event(work: Any, index: int) -> Any:
    return element(event_t, work.events, int(element(chunk_t, work.chunks, index).event))


@jit
def _first_touched(work: Any, owner: int, start: int) -> int:
    """The first node that ends behind `start`, in the order of the tree."""
    at, found = work.root.node, work.last
    while at:
        live = deref(live_t, at)
        if live.owner > owner or (live.owner == owner and live.end > start):
            found = at
            at = live.node.left
        else:
            at = live.node.right
    return found


@jit
def _take_out(work: Any, node: int) -> None:
    rb_erase(work.root, node)
    deref(rb_node, node).next = work.free
    work.free = node


@jit
def _put_in(work: Any, owner: int, event: Any, chunk: int) -> None:
    successor = _first_touched(work, owner, event.start)
    node = work.free
    work.free = deref(rb_node, node).next
    live = deref(live_t, node)
    live.start = event.start
    live.end = event.end
    live.owner = owner
    live.chunk = chunk
    rb_link_before(work.root, node, successor)


@jit
def _end_touched(work: Any, owner: int, event: Any, index: int, is_unmap: int) -> None:
    """Take out the chunks that an event touches; those that an unmap touches are one call."""
    node = _first_touched(work, owner, event.start)
    ended_bytes, inside, before, lowest, earliest = np.int64(0), 1, -1, -1, -1
    while True:
        live = deref(live_t, node)
        if live.owner != owner or live.start >= event.end:
            break
        here = live.chunk
        ended_bytes += live.end - live.start
        if live.start < event.start or live.end > event.end:
            inside = 0
        _chunk(work, here).ended_by = index
        if is_unmap:
            _chunk(work, here).next = _NONE
            if before < 0:
                lowest = earliest = here
            else:
                _chunk(work, before).next = here
                earliest = min(earliest, here)
        before = here
        after = live.node.next
        _take_out(work, node)
        node = after
    if not is_unmap:
        return
    if before < 0:
        work.unmatched_unmaps += 1
        return
    _chunk(work, earliest).first = lowest
    work.calls += 1
    if not inside or ended_bytes != event.end - event.start:
        work.partial_unmaps += 1


@entry
def begin_grouping(work_address: int) -> int:
    """Make a tree of the last node alone."""
    work = deref(grouping_t, work_address)
    rb_link_last(work.root, work.last)
    return 0


@entry
def follow_live_chunks(work_address: int) -> int:
    """Go through the trace until all events are done, or no node is free; returns whether all are done."""
    work = deref(grouping_t, work_address)
    for index in range(work.next_event, work.event_count):
        event = _event(work, index)
        if event.kind not in (MAP, UNMAP):
            continue
        if work.free == 0:
            work.next_event = index
            return 0
        owner = np.int64(event.owner) if work.by_owner else 0
        _end_touched(work, owner, event, index, event.kind == UNMAP)
        if event.kind == MAP:
            chunk = _chunk(work, work.chunk_count)
            chunk.event = index
            chunk.ended_by = _NONE
            chunk.next = _LEFT
            chunk.first = _NONE
            _put_in(work, owner, event, work.chunk_count)
            work.chunk_count += 1
    return 1


@entry
def count_left(work_address: int) -> int:
    """How many chunks belong to no known call."""
    work = deref(grouping_t, work_address)
    left = 0
    for index in range(work.chunk_count):
        if _chunk(work, index).next == _LEFT:
            left += 1
    return left


@jit
def _pending_slot(work: Any, cpu: int, start: int) -> int:
    """Where a chunk left on that CPU, that starts there, is or would be."""
    page = start >> PAGE_SHIFT
    # Ranges are aligned to their sizes, so what tells them apart may be in the high bits alone.
    page = (page ^ (page >> 9) ^ (page >> 18) ^ (page >> 27)) & _LOW_BITS
    at = (page * 1_000_003 + cpu * 7919) & work.pending_mask
    while True:
        chunk = element(index_t, work.pending, at).value
        if chunk < 0:
            return at
        event = _chunk_event(work, chunk)
        if event.cpu == cpu and event.start == start:
            return at
        at = (at + 1) & work.pending_mask


@inline
def _pending(work: Any, cpu: int, start: int) -> int:
    """The latest chunk left on that CPU that starts there, -1 if there is none."""
    chunk = element(index_t, work.pending, _pending_slot(work, cpu, start)).value
    return chunk if chunk >= 0 and _chunk(work, chunk).next == _LEFT else -1


@jit
def _link_spanned(work: Any, sync: Any) -> None:
    """Make one call of the chunks left that a synchronisation on their CPU spans exactly, if there are such."""
    at, chunks = sync.start, 0
    while at < sync.end:
        chunk = _pending(work, sync.cpu, at)
        chunks += 1
        if chunk < 0 or chunks > _MOST_CHUNKS:
            return
        at = _chunk_event(work, chunk).end
    if at != sync.end:
        return
    lowest = _pending(work, sync.cpu, sync.start)
    here = earliest = lowest
    while True:
        end = _chunk_event(work, here).end
        after = _pending(work, sync.cpu, end) if end < sync.end else _NONE
        _chunk(work, here).next = after
        if after < 0:
            break
        earliest = min(earliest, after)
        here = after
    _chunk(work, earliest).first = lowest
    work.calls += 1


@entry
def link_by_sync(work_address: int) -> int:
    """Find the calls among the chunks left by the synchronisation that ended them; returns how many are known now."""
    work = deref(grouping_t, work_address)
    chunk = 0
    for index in range(work.event_count):
        event = _event(work, index)
        if event.kind == MAP:
            if _chunk(work, chunk).next == _LEFT:
                element(index_t, work.pending, _pending_slot(work, event.cpu, event.start)).value = chunk
            chunk += 1
        elif event.kind in (RPCIT, SYNC_MAP):
            _link_spanned(work, event)
    return work.calls


@entry
def link_by_adjacency(work_address: int) -> int:
    """Find the calls among the chunks still left: adjacent, with nothing between them; returns how many are known."""
    work = deref(grouping_t, work_address)
    chunk = 0
    for index in range(work.event_count):
        event = _event(work, index)
        if event.kind in (MAP, UNMAP, RPCIT, SYNC_MAP):
            context = element(index_t, work.contexts, np.int64(event.cpu) * _CONTEXTS_OF_A_CPU + event.irq)
            before, context.value = context.value, -1
            if event.kind == MAP:
                if _chunk(work, chunk).next == _LEFT:
                    _chunk(work, chunk).next = _NONE
                    if before >= 0 and _follows(_chunk_event(work, before), event):
                        _chunk(work, before).next = chunk
                    else:
                        _chunk(work, chunk).first = chunk
                        work.calls += 1
                    context.value = chunk
                chunk += 1
    return work.calls


@inline
def _follows(before: Any, event: Any) -> bool:
    return before.end == event.start and before.owner == event.owner


@entry
def write_mappings(work_address: int, mappings: int, chunk_events: int) -> int:
    """Write the calls and the events of their chunks, in the order of each call's first chunk; returns how many."""
    work = deref(grouping_t, work_address)
    calls, written = 0, 0
    for index in range(work.chunk_count):
        if _chunk(work, index).first < 0:
            continue
        mapping = element(mapping_t, mappings, calls)
        mapping.map_event = np.int64(_chunk(work, index).event)
        mapping.first_chunk = written
        mapping.start = _chunk_event(work, _chunk(work, index).first).start
        pages, nents, end = np.int64(0), 0, np.int64(_LAST)
        here = np.int64(_chunk(work, index).first)
        while here >= 0:
            chunk = _chunk(work, here)
            event = _chunk_event(work, here)
            pages += (event.end - event.start) >> PAGE_SHIFT
            if chunk.ended_by >= 0:
                end = min(end, np.int64(chunk.ended_by))
            element(int64_t, chunk_events, written).value = np.int64(chunk.event)
            written += 1
            nents += 1
            here = np.int64(chunk.next)
        mapping.pages = pages
        mapping.nents = nents
        mapping.unmap_event = end if end != _LAST else -1
        mapping.supplied = end != _LAST and _event(work, end).kind != UNMAP
        work.supplied_unmaps += mapping.supplied
        calls += 1
    return calls


ENTRIES = (begin_grouping, follow_live_chunks, count_left, link_by_sync, link_by_adjacency, write_mappings)


def group_mappings(
    events: npt.NDArray[np.void], report: CaptureReport, *, by_owner: bool = False
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """Find which chunks were mapped by one call, and when each mapping was unmapped.

    The chunks inside the range of one unmap are one mapping, whatever happened between them: other CPUs map at the
    same time, and an interrupt may unmap and map on the very CPU. Those never unmapped are one mapping when a
    `SYNC_MAP` or `RPCIT` on their CPU spans exactly them, or else when they are adjacent and nothing else happened
    between them on that CPU in that context.

    Args:
        events: in trace order, shape (n,), dtype `event_t`, less than 2**31 of them.
        report: its counts of unmatched, supplied and partial unmaps are filled in.
        by_owner: the owners of `MAP` and `UNMAP` events have address spaces of their own.

    Returns:
        The mappings in the order of their first chunk, shape (m,), dtype `mapping_t`, and the chunks' event indices,
        mapping after mapping, each in the order of addresses.
    """
    compile_entries(ENTRIES)
    chunks = np.empty(np.count_nonzero(events["kind"] == MAP), chunk_t)
    work = np.zeros(1, grouping_t)
    held = _start(work, events, chunks, by_owner=by_owner)
    address = work.ctypes.data
    while not follow_live_chunks(address):
        held.append(_more_nodes(work, _NODES_AT_ONCE))
    if left := count_left(address):
        _link_left(work, events, left)
    mappings = np.zeros(int(work["calls"][0]), mapping_t)
    chunk_events = np.empty(len(chunks), np.int64)
    write_mappings(address, mappings.ctypes.data, chunk_events.ctypes.data)
    report.unmatched_unmaps = int(work["unmatched_unmaps"][0])
    report.partial_unmaps = int(work["partial_unmaps"][0])
    report.supplied_unmaps = int(work["supplied_unmaps"][0])
    return mappings, chunk_events


def _start(
    work: npt.NDArray[np.void], events: npt.NDArray[np.void], chunks: npt.NDArray[np.void], *, by_owner: bool
) -> list[npt.NDArray[np.void]]:
    """Point the work at its arrays, with a tree of nothing but its last node; what must be kept alive meanwhile."""
    last = np.zeros(1, live_t)
    last["start"] = last["end"] = last["owner"] = _LAST
    work["events"], work["event_count"] = events.ctypes.data, len(events)
    work["chunks"] = chunks.ctypes.data
    work["by_owner"] = by_owner
    work["last"] = last.ctypes.data
    begin_grouping(work.ctypes.data)
    # One is free at any time, also when all chunks are live.
    return [last, _more_nodes(work, min(len(chunks) + 1, _NODES_AT_ONCE))]


def _more_nodes(work: npt.NDArray[np.void], count: int) -> npt.NDArray[np.void]:
    """Give the tree more free nodes; they must be kept alive."""
    nodes = np.zeros(count, live_t)
    addresses = nodes.ctypes.data + np.arange(len(nodes)) * live_t.itemsize
    nodes["node"]["next"][:-1] = addresses[1:]
    nodes["node"]["next"][-1] = work["free"][0]
    work["free"] = addresses[0]
    return nodes


def _link_left(work: npt.NDArray[np.void], events: npt.NDArray[np.void], left: int) -> None:
    """Find the calls of the chunks that no unmap holds together."""
    pending = np.full(1 << (2 * left).bit_length(), -1, np.int32)
    contexts = np.full((int(events["cpu"].max()) + 1) * _CONTEXTS_OF_A_CPU, -1, np.int32)
    work["pending"], work["pending_mask"] = pending.ctypes.data, len(pending) - 1
    work["contexts"] = contexts.ctypes.data
    link_by_sync(work.ctypes.data)
    link_by_adjacency(work.ctypes.data)
