"""What processes did, put together from what they noted: maps and unmaps, requests to the hypervisor, lock waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from emu.analysis.machine_log import Clock
from emu.iommu.tracepoints import (
    CAUSE_FULL,
    CAUSE_SHIFT,
    CAUSE_TIMEOUT,
    EVENT_FLUSH,
    EVENT_FLUSH_TIMEOUT,
    EVENT_FLUSHED,
    EVENT_MAP,
    EVENT_RPCIT,
    EVENT_RPCIT_DONE,
    EVENT_UNMAP,
    PAGES_BITS,
)
from emu.machine.lock_names import lock_name, lock_number
from emu.native.lock import EVENT_LOCK_WAIT

Rows = npt.NDArray[np.void]

slice_t = np.dtype(
    [("started_ticks", "i8"), ("finished_ticks", "i8"), ("slot", "i4"), ("cpu", "i4"), ("kind", "i4"), ("a", "i8"),
     ("b", "i8")]
)  # fmt: skip
"""A time in the life of a process. Of MAPPED and UNMAPPED `a` is the first pfn (0: the map failed), `b` the pages; of
WAITED `a` is the lock's id."""
MAPPED, UNMAPPED, WAITED = range(3)

request_t = np.dtype(
    [("served_ns", "i8"), ("posted_ticks", "i8"), ("answered_ticks", "i8"), ("slot", "i4"), ("cpu", "i4"),
     ("pfn", "i8"), ("pages", "i8"), ("walked", "i8"), ("changed", "i8"), ("wait_ns", "i8"), ("service_ns", "i8")]
)  # fmt: skip
"""A request that was answered; `pages` is negative where it was for everything. See EVENT_RPCIT_DONE. `served_ns`: when
a server was free for it, in ns since the start of the load."""

line_t = np.dtype(
    [("order", "i8"), ("ticks", "i8"), ("kind", "i4"), ("slot", "i4"), ("cpu", "i4"), ("pfn", "i8"), ("pages", "i8")]
)
"""A line of a kernel's trace; `order` is that of lines."""
LINE_UNMAP, LINE_TIMER, LINE_FLUSH, LINE_MAP, LINE_RPCIT, LINE_FLUSH_END = range(6)
"""In their order where they are of the same moment."""
_ORDER_BITS = 3


def lock_label(identity: int) -> tuple[str, int]:
    """What WAITED waited for: the lock's name, and which of that name."""
    return lock_name(identity), lock_number(identity)


def slices_of(events: Rows) -> Rows:
    """The maps, unmaps and lock waits among a process's events, in the order of their ends; dtype slice_t."""
    chosen = events[np.isin(events["code"], (EVENT_MAP, EVENT_UNMAP, EVENT_LOCK_WAIT))]
    found = np.zeros(len(chosen), slice_t)
    is_wait = chosen["code"] == EVENT_LOCK_WAIT
    took = np.where(is_wait, chosen["b"], chosen["b"] >> PAGES_BITS)
    found["started_ticks"], found["finished_ticks"] = chosen["ticks"] - took, chosen["ticks"]
    found["slot"], found["cpu"], found["a"] = chosen["slot"], chosen["cpu"], chosen["a"]
    found["b"] = np.where(is_wait, 0, chosen["b"] & ((1 << PAGES_BITS) - 1))
    found["kind"] = np.where(is_wait, WAITED, np.where(chosen["code"] == EVENT_UNMAP, UNMAPPED, MAPPED))
    return found


def requests_of(stream: Iterable[Rows], clock: Clock) -> Iterator[Rows]:
    """The answered requests of one process, chunk by chunk, in their order; dtype request_t."""
    held = None
    for chunk in stream:
        told = chunk[np.isin(chunk["code"], (EVENT_RPCIT, EVENT_RPCIT_DONE))]
        told = told if held is None else np.concatenate([held, told])
        is_post = told["code"] == EVENT_RPCIT
        held = told[-1:] if len(told) and is_post[-1] else None
        # A process waits for one answer at a time; one that died has none, and its successor goes on with another post.
        posts = np.flatnonzero(is_post[:-1] & ~is_post[1:])
        posted, answered = told[posts], told[posts + 1]
        found = np.zeros(len(posts), request_t)
        found["posted_ticks"], found["answered_ticks"] = posted["ticks"], answered["ticks"]
        for name, field in (("slot", "slot"), ("cpu", "cpu"), ("pfn", "a"), ("pages", "b")):
            found[name] = posted[field]
        found["walked"], found["changed"] = answered["a"] >> 32, answered["a"] & 0xFFFFFFFF
        found["wait_ns"], found["service_ns"] = answered["b"] >> 32, answered["b"] & 0xFFFFFFFF
        found["served_ns"] = clock.times_since_start_ns(found["posted_ticks"]) + found["wait_ns"]
        yield found


def lines_of(events: Rows, *, is_lazy: bool) -> Rows:
    """The lines that a kernel's trace would have of what a process did, in their order; dtype line_t.

    A map has its line when it begins, since it first takes its addresses. Strictly an unmap has its line when its flush
    is over, after which its addresses are given back; lazily when it is about to be queued, before the flush that makes
    room. So on each CPU addresses are handed out and given back in the order of lines, and between CPUs nearly so.
    Requests for everything that are not the queue's own flushes are no more than requests.

    Args:
        events: of one process, cut by `whole_operations`.
        is_lazy: whether unmaps wait in a queue.
    """
    code, ticks = events["code"], events["ticks"]
    ends = np.flatnonzero((code == EVENT_MAP) | (code == EVENT_UNMAP))
    is_map = code[ends] == EVENT_MAP
    begins = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    flushes, flushed = _flushes_of_queue(events)
    if is_lazy:
        unmapped = _first_within(flushes, begins, ends, ticks)
    else:
        unmapped = _last_within(np.flatnonzero(code == EVENT_RPCIT_DONE), begins, ends, ticks)
    place = np.where(is_map, ticks[ends] - (events["b"][ends] >> PAGES_BITS), unmapped)
    succeeded = events["a"][ends] != 0
    rows = [
        _lines(events[ends], np.where(is_map, LINE_MAP, LINE_UNMAP), place)[succeeded],
        _lines(events[code == EVENT_RPCIT], LINE_RPCIT),
        _lines(events[flushes], LINE_FLUSH),
        _lines(events[flushed], LINE_FLUSH_END),
        _firings(events),
    ]
    lines = np.concatenate(rows)
    return lines[np.argsort(lines["order"], kind="stable")]


def _lines(events: Rows, kind: int | npt.NDArray[np.int64], ticks: npt.NDArray[np.int64] | None = None) -> Rows:
    lines = np.zeros(len(events), line_t)
    lines["ticks"] = events["ticks"] if ticks is None else ticks
    lines["kind"] = kind
    lines["order"] = lines["ticks"] << _ORDER_BITS | lines["kind"]
    lines["slot"], lines["cpu"], lines["pfn"] = events["slot"], events["cpu"], events["a"]
    is_operation = (events["code"] == EVENT_MAP) | (events["code"] == EVENT_UNMAP)
    lines["pages"] = np.where(is_operation, events["b"] & ((1 << PAGES_BITS) - 1), np.abs(events["b"]))
    return lines


def _firings(events: Rows) -> Rows:
    """The timer has its line right before its flush: a CPU does nothing in between, but here another process may."""
    fired = np.flatnonzero(events["code"] == EVENT_FLUSH_TIMEOUT)
    flushes = np.flatnonzero(events["code"] == EVENT_FLUSH)
    following = np.searchsorted(flushes, fired)
    followed = following < len(flushes)
    return _lines(events[fired[followed]], LINE_TIMER, events["ticks"][flushes[following[followed]]])


def _flushes_of_queue(events: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where flushes begin and end that a full ring or a timer asked for."""
    edges = np.flatnonzero((events["code"] == EVENT_FLUSH) | (events["code"] == EVENT_FLUSHED))
    is_begin = events["code"][edges] == EVENT_FLUSH
    cause = np.where(is_begin, events["b"][edges] >> CAUSE_SHIFT, -1)
    wanted = is_begin & np.isin(cause, (CAUSE_FULL, CAUSE_TIMEOUT))
    begins = np.flatnonzero(wanted)
    # What a process begins it ends before it begins another; one that died has no end.
    ended = begins[begins + 1 < len(edges)]
    ended = ended[~is_begin[ended + 1]]
    return edges[wanted], edges[ended + 1]


def _first_within(
    chosen: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    ticks: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The ticks of the first chosen event of each operation, else of its end."""
    first = np.append(chosen, len(ticks))[np.searchsorted(chosen, begins)]
    found: npt.NDArray[np.int64] = ticks[np.minimum(first, ends)]
    return found


def _last_within(
    chosen: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    ticks: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The ticks of the last chosen event of each operation, else of its end."""
    last = np.append(-1, chosen)[np.searchsorted(chosen, ends)]
    found: npt.NDArray[np.int64] = ticks[np.where(last >= begins, last, ends)]
    return found
