"""What a kernel's trace is made of: its events, the map calls found in them, and a report of what could not be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OTHER = 0
MAP = 1
"""One chunk was mapped: [`start`, `end`)."""
UNMAP = 2
"""A whole mapping was unmapped: [`start`, `end`)."""
MARK = 3
"""Somebody wrote a line into the trace: `start` is its index in `Capture.marks`."""
RPCIT = 4
"""s390: one call of `zpci_refresh_trans()` over [`start`, `end`)."""
SYNC_MAP = 5
"""s390: `iotlb_sync_map()` over [`start`, `end`), the end of a map call."""
FLUSH = 6
"""A domain-wide `flush_iotlb_all()` began (probe `fl_in`: `fq_flush_iotlb()` did, its start already counted)."""
TIMER = 7
"""The flush queue's timer fired; its flush follows."""
QUEUED = 8
"""`queue_iova()` appended [`start`, `end`): stands in for `UNMAP` in a trace that has none."""
FLUSH_END = 9
"""What `FLUSH` began is over (probe `fl_out`: its finish already counted)."""
FQ_FLUSH = 10
"""`fq_flush_iotlb()` began: it counts its start, does the `FLUSH`, and counts its finish."""
FQ_FLUSH_END = 11
"""`fq_flush_iotlb()` returned."""
TIMER_END = 12
"""The flush queue's timer has done its flush and freed the rings."""
RING_FREE = 13
"""`fq_ring_free()` began on one ring: after a timer's flush, and in Linux 6.1 in every `queue_iova()` as well."""
RING_FREE_LOCKED = 14
"""`fq_ring_free_locked()` began: once in every `queue_iova()`, once more after its own flush."""
FREED = 15
"""`free_iova_fast()` took back [`start`, `end`)."""
RING_FULL = 16
"""`queue_iova()` found its ring full; its flush follows."""
RING_FLUSHED = 17
"""`queue_iova()` has flushed and freed, and is about to append [`start`, `end`), whether there is room or not."""
RPCIT_END = 18
"""s390: `zpci_refresh_trans()` returned `start`: 0, or an error below 0."""
SYNC = 19
"""`iotlb_sync()` began, the flush of a strict unmap, over [`start`, `end`); both 0 where nothing was gathered."""
SYNC_END = 20
"""`iotlb_sync()` returned."""
SYNC_MAP_END = 21
"""`iotlb_sync_map()` returned `start`: 0, or an error below 0."""
INVALIDATION = 22
"""VT-d: `qi_submit_sync()` began to hand requests to the hardware, or to a hypervisor that traps it."""
INVALIDATION_END = 23
"""VT-d: `qi_submit_sync()` returned: the requests are done."""
CACHE_TAG_FLUSH = 24
"""VT-d: `cache_tag_flush_all()` began, inside a `FLUSH`."""
FQ_INIT = 25
"""`iommu_dma_init_fq()` began: the domain is to become lazy."""
FQ_INIT_END = 26
"""`iommu_dma_init_fq()` returned `start`: 0, or an error below 0."""
ATTACH = 27
"""A device was attached to a domain: `start` is the index of its name in `Capture.devices`."""
FAULT = 28
"""A device reached for the address `start` and found it unmapped."""

event_t = np.dtype(
    [
        ("kind", "i1"),
        ("irq", "?"),
        ("owner", "u2"),
        ("cpu", "i4"),
        ("time_ns", "i8"),
        ("start", "i8"),
        ("end", "i8"),
    ],
    align=True,
)
"""One event, 32 bytes. `time_ns` is the trace clock's, `start` and `end` are byte addresses where the kind says nothing
else (0 where it has none), `irq` says that it happened in a hard or soft interrupt (never set where the trace does not
tell). `owner` is the index in `Capture.owners` of the domain (`dom=`), the ring (`fq=`) or the s390 function (`fn=`) it
belongs to, 0 where the trace does not tell."""

ring_state_t = np.dtype(
    [("event", "u4"), ("head", "i4"), ("tail", "i4"), ("mask", "i4"), ("started", "i8"), ("finished", "i8")], align=True
)
"""What a probe in the flush queue said of it, 32 bytes: `event` is the index of the event; `head`, `tail` and `mask`
(its size - 1) are the ring's, `started` and `finished` the cookie's counts of flushes, or for `QUEUED` the entry's
stamp in `started`. -1 where it did not say."""

mapping_t = np.dtype(
    [
        ("map_event", "i8"),
        ("unmap_event", "i8"),
        ("first_chunk", "i8"),
        ("start", "i8"),
        ("pages", "i8"),
        ("nents", "i4"),
        ("supplied", "?"),
    ],
    align=True,
)
"""One map call. `map_event` is the index of its first chunk's event; its chunks are the events
`Capture.chunks[first_chunk : first_chunk + nents]`; `start` is its lowest byte address. `unmap_event` is the index of
its unmap, -1 if it was never unmapped; with `supplied` the unmap was lost, and `unmap_event` is the event of the later
map that proves it, before which it must have happened. 48 bytes."""

PAGE_SHIFT = 12
"""Sizes are counted in pages of 4 KiB, the smallest that the IOMMUs here map."""


class CaptureError(Exception):
    """A capture that cannot be used. The message is one line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(slots=True)
class CaptureReport:
    """What a capture held, and what of it could not be used.

    Attributes:
        tool: whose text it is: "tracefs", "trace-cmd report" or "perf script".
        lines: lines read, headers included.
        map_events: `map` lines used, one for each chunk.
        unmap_events: `unmap` lines used (or `queue_iova()` probes, see `queued_as_unmaps`).
        other_events: well-formed lines of events that say nothing about mappings.
        broken_lines: torn lines, binary garbage, `map` and `unmap` lines whose numbers make no sense.
        lost_events: events the kernel says it overwrote: the lines about it (`[LOST n EVENTS]`, trace-cmd's
            `[n EVENTS DROPPED]`, perf's `PERF_RECORD_LOST`; 1 for a line without a number) or the buffer's header,
            whichever says more, since both tell of the same loss.
        unmatched_unmaps: unmaps of what no map event had mapped: the capture began in the middle.
        supplied_unmaps: mappings whose unmap was lost, known from a later map over a range still live.
        partial_unmaps: unmaps that cover some chunk only in part, or more than the chunks known.
        late_events: events with a time before that of the line above.
        queued_as_unmaps: the trace has no `unmap` events and its `queue_iova()` probes were taken for them.
        from_rpcits: the trace has no `map` events and its RPCITs were taken for maps and unmaps.
        unseen_unmaps: with `from_rpcits`, unmaps supplied for maps that had none.
        knows_kept_pages: with `from_rpcits`, counters of the kernel told how much stayed mapped.
        truncated: the gzip stream is cut off or damaged; what came before was used.
    """

    tool: str = "tracefs"
    lines: int = 0
    map_events: int = 0
    unmap_events: int = 0
    other_events: int = 0
    broken_lines: int = 0
    lost_events: int = 0
    unmatched_unmaps: int = 0
    supplied_unmaps: int = 0
    partial_unmaps: int = 0
    late_events: int = 0
    queued_as_unmaps: bool = False
    from_rpcits: bool = False
    unseen_unmaps: int = 0
    knows_kept_pages: bool = False
    truncated: bool = False

    def sentences(self) -> list[str]:
        """What a reader of results must know, one sentence each; nothing for a flawless capture with map events."""
        return [*self.flaws(), *self._origin()]

    def flaws(self) -> list[str]:
        """Why a replay may count something else than the kernel did, one sentence each."""
        said = [
            (self.truncated, "The gzip file is cut off or damaged; it is used as far as it goes."),
            (self.lost_events, f"The kernel lost {self.lost_events} events while it recorded."),
            (self.broken_lines, f"{self.broken_lines} lines could not be read and are left out."),
            (self.unmatched_unmaps, f"{self.unmatched_unmaps} unmaps of mappings older than the capture are left out."),
            (self.supplied_unmaps, f"{self.supplied_unmaps} lost unmaps are supplied, each before the next map there."),
            (self.partial_unmaps, f"{self.partial_unmaps} unmaps do not cover exactly what was mapped."),
            (self.late_events, f"{self.late_events} events have a time before that of the line above."),
            (self.queued_as_unmaps, f"{self.unmap_events} unmaps are taken from queue_iova probes."),
        ]
        return [sentence for applies, sentence in said if applies]

    def _origin(self) -> list[str]:
        """Where maps are from, when not from map events."""
        if not self.from_rpcits:
            return []
        which = "all but what the kernel's counters say stayed mapped"
        if not self.knows_kept_pages:
            which = "all, since no counters say what stayed mapped"
        taken = f"{self.map_events} maps and {self.unmap_events} unmaps are taken from rpcit probes, by context"
        supplied = f"{self.unseen_unmaps} more unmaps are supplied, each soon after its map, for {which}"
        return [f"There are no map events: {taken}; {supplied}."]
