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
"""A domain-wide `flush_iotlb_all()` began."""
TIMER = 7
"""The flush queue's timer fired; its flush follows."""
QUEUED = 8
"""`queue_iova()` appended [`start`, `end`): stands in for `UNMAP` in a trace that has none."""

event_t = np.dtype(
    [("kind", "i1"), ("irq", "?"), ("cpu", "i4"), ("time_ns", "i8"), ("start", "i8"), ("end", "i8")], align=True
)
"""One event. `time_ns` is the trace clock's, `start` and `end` are byte addresses, `irq` says that it happened in a
hard or soft interrupt (never set where the trace does not tell)."""

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
map that proves it, before which it must have happened."""

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
        lines: lines read, headers included.
        map_events: `map` lines used, one for each chunk.
        unmap_events: `unmap` lines used (or `queue_iova()` probes, see `queued_as_unmaps`).
        other_events: well-formed lines of events that say nothing about mappings.
        broken_lines: torn lines, binary garbage, `map` and `unmap` lines whose numbers make no sense.
        lost_events: events the kernel says it overwrote: the `[LOST n EVENTS]` lines or the buffer's header, whichever
            says more, since both tell of the same loss.
        unmatched_unmaps: unmaps of what no map event had mapped: the capture began in the middle.
        supplied_unmaps: mappings whose unmap was lost, known from a later map over a range still live.
        partial_unmaps: unmaps that cover some chunk only in part, or more than the chunks known.
        late_events: events with a time before that of the line above.
        queued_as_unmaps: the trace has no `unmap` events and its `queue_iova()` probes were taken for them.
        truncated: the gzip stream is cut off or damaged; what came before was used.
    """

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
    truncated: bool = False

    def sentences(self) -> list[str]:
        """What a reader of results must know, one sentence each; nothing for a flawless capture."""
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
