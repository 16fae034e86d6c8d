"""A capture's events as lists, and what a replay of its addresses must look up in them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

import numpy as np

from emu.capture.events import FLUSH, MAP, PAGE_SHIFT, TIMER, UNMAP
from emu.capture.ftrace import Capture
from emu.iommu.iova import IOVA_RANGE_CACHE_MAX_SIZE

KINDS = (MAP, UNMAP, TIMER, FLUSH)
"""The events that are replayed."""
NEAR_NS = 300_000
"""Two CPUs' events within this time may be logged in the other order."""


def order_of(pages: int) -> int:
    """log2 of a size, rounded up."""
    return (pages - 1).bit_length()


def rounded(pages: int) -> int:
    """Pages that are allocated for so many."""
    return 1 << order_of(pages) if pages < 1 << (IOVA_RANGE_CACHE_MAX_SIZE - 1) else pages


class Log:
    """The events, their mappings, and when which CPU did what.

    Attributes:
        kind, cpu, irq, time_ns: of each event. pfn, pages, map_event, unmap_event: of each mapping.
        mapped_by, unmapped_by: the mapping that an event makes or ends.
        full_flushes: events of unmaps that met a full ring.
        longest_flush_ns: a bound for how long a flush and its frees take.
        most_live: mappings at once.
    """

    def __init__(self, capture: Capture) -> None:
        events, mappings = capture.events, capture.mappings
        self.kind: list[int] = events["kind"].tolist()
        self.cpu: list[int] = events["cpu"].tolist()
        self.irq: list[bool] = events["irq"].tolist()
        self.time_ns: list[int] = events["time_ns"].tolist()
        self.pfn: list[int] = (mappings["start"] >> PAGE_SHIFT).tolist()
        self.pages: list[int] = mappings["pages"].tolist()
        self.map_event: list[int] = mappings["map_event"].tolist()
        self.unmap_event: list[int] = mappings["unmap_event"].tolist()
        self.mapped_by = {event: i for i, event in enumerate(self.map_event)}
        self.unmapped_by = {event: i for i, event in enumerate(self.unmap_event) if event >= 0}
        self._by_cpu: defaultdict[int, list[int]] = defaultdict(list)
        self._by_cache: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for i, event in enumerate(self.map_event):
            self._by_cpu[self.cpu[event]].append(i)
            self._by_cache[self.cpu[event], order_of(self.pages[i])].append(i)
        self.full_flushes, self.longest_flush_ns = self._flushes()
        changes = np.zeros(len(events) + 1, np.int64)
        np.add.at(changes, mappings["map_event"], 1)
        np.add.at(changes, mappings["unmap_event"][mappings["unmap_event"] >= 0], -1)
        self.most_live = int(changes.cumsum().max())

    def _flushes(self) -> tuple[set[int], int]:
        """Unmaps that met a full ring; and four times what a short pause is between a flush and its CPU's next event.

        A CPU frees what it has flushed before it does anything else, so most pauses are longer, and none is shorter.
        """
        met_full: set[int] = set()
        gaps_ns: list[int] = []
        last: dict[int, int] = {}
        for event, (kind, cpu) in enumerate(zip(self.kind, self.cpu, strict=True)):
            if kind not in KINDS:
                continue
            before = last.get(cpu)
            if before is not None and self.kind[before] == FLUSH:
                gaps_ns.append(self.time_ns[event] - self.time_ns[before])
            if kind == FLUSH and before is not None and self.kind[before] == UNMAP:
                met_full.add(before)
            last[cpu] = event
        gaps_ns.sort()
        return met_full, 4 * (gaps_ns[len(gaps_ns) // 10] if gaps_ns else 0)

    def timer_phase_ns(self, tick_ns: int) -> int:
        """When in a tick the timer fires, on the trace's clock: an early one of its moments."""
        moments = sorted(t % tick_ns for t, kind in zip(self.time_ns, self.kind, strict=True) if kind == TIMER)
        return moments[len(moments) // 10] if moments else 0

    def next_on(self, cpu: int, i: int, count: int) -> list[int]:
        """The mappings, at most so many, that a CPU makes soon after mapping `i` was made."""
        mine = self._by_cpu[cpu]
        first = bisect_right(mine, i)
        until_ns = self.time_ns[self.map_event[i]] + NEAR_NS
        return [m for m in mine[first : first + count] if self.time_ns[self.map_event[m]] < until_ns]

    def next_of_others(self, cpu: int, i: int, count: int) -> list[int]:
        """The same of all other CPUs, in the order of the trace."""
        return sorted(m for other in self._by_cpu if other != cpu for m in self.next_on(other, i, count))

    def next_pfns(self, cpu: int, order: int, i: int, count: int) -> list[int]:
        """The next pfns that the kernel gave to a CPU for an order."""
        mine = self._by_cache[cpu, order]
        first = bisect_right(mine, i)
        return [self.pfn[m] for m in mine[first : first + count]]
