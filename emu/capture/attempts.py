"""Requests as attempts: what a block driver tried to map for one request, and whether it had to take it back.

A trace shows no map that failed. It shows what the driver had mapped of the request before, and that it unmapped all of
that again at once, in the order in which it was mapped, where a completed request is unmapped in an interrupt. So a
replay that is to fail where the kernel did has to try what the kernel tried, and must be told what it could not get.

The requests of virtio-blk can be told apart (`virtqueue_add_split()` in `drivers/virtio/virtio_ring.c`): a header of
one page, then the data, then the status byte, which lies in the header's page, then the table of all these. A completed
one is unmapped table first. Which memory is mapped is known where the capture was read with `physical=True`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emu.capture.events import MAP, PAGE_SHIFT, UNMAP
from emu.capture.ftrace import Capture

attempt_t = np.dtype(
    [("first", "i8"), ("count", "i8"), ("wanted_pages", "i4"), ("cpu", "i4"), ("failed", "?")], align=True
)
"""One attempt on one CPU: its maps are `Attempts.mappings[first : first + count]`. `failed` says that the kernel took
them back, because it did not get `wanted_pages` more (0 where it is not known what it wanted)."""

CACHED_PAGES = 32
"""Ranges up to this size come out of the allocator's caches (`IOVA_RANGE_CACHE_MAX_SIZE` in `iova.c`)."""

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts in a capture.

    Attributes:
        attempts: those that follow the driver's pattern from end to end, in the order of their first maps, shape (n,),
            dtype `attempt_t`.
        mappings: indices into `Capture.mappings`, attempt after attempt, each in the order of the maps.
        unclaimed_maps: mappings made in process context that belong to no such attempt.
        unclaimed_roll_backs: unmaps in process context that belong to no such attempt.
    """

    attempts: npt.NDArray[np.void]
    mappings: _Indices
    unclaimed_maps: int
    unclaimed_roll_backs: int

    @property
    def failed(self) -> int:
        """How many the kernel took back."""
        return int(np.count_nonzero(self.attempts["failed"]))

    @property
    def roll_backs(self) -> int:
        """How many unmaps that took."""
        return int(self.attempts["count"][self.attempts["failed"]].sum())

    def maps_of(self, attempt: int) -> _Indices:
        """What one attempt mapped, as indices into `Capture.mappings`."""
        first, count = self.attempts["first"][attempt], self.attempts["count"][attempt]
        return self.mappings[first : first + count]


@dataclass(slots=True)
class _Attempt:
    """One that is being made, or has come to its end: its maps, whether the status is among them, unmaps so far."""

    cpu: int
    maps: list[int]
    has_status: bool = False
    rolled_back: int = 0


def find_attempts(capture: Capture) -> Attempts:
    """Find the attempts of a capture.

    Raises:
        ValueError: the capture was read without physical addresses.
    """
    if capture.paddrs is None:
        raise ValueError("the capture was read without physical addresses")
    memory = _memory_of(capture, capture.paddrs)
    found = [attempt for attempt in _attempts_in(capture, memory) if _ends_like_a_request(capture, attempt)]
    found.sort(key=lambda attempt: attempt.maps[0])
    rows = np.zeros(len(found), attempt_t)
    rows["count"] = [len(attempt.maps) for attempt in found]
    rows["first"] = np.cumsum(rows["count"]) - rows["count"]
    rows["cpu"] = [attempt.cpu for attempt in found]
    rows["failed"] = [attempt.rolled_back > 0 for attempt in found]
    rows["wanted_pages"] = _wanted_pages(capture, memory, found)
    maps = np.array([mapping for attempt in found for mapping in attempt.maps], np.int64)
    in_process = ~capture.events["irq"]
    unmaps = int(np.count_nonzero(in_process & (capture.events["kind"] == UNMAP)))
    return Attempts(
        attempts=rows,
        mappings=maps,
        unclaimed_maps=int(np.count_nonzero(in_process[capture.mappings["map_event"]])) - len(maps),
        unclaimed_roll_backs=unmaps - sum(attempt.rolled_back for attempt in found),
    )


def _memory_of(capture: Capture, paddrs: _Indices) -> _Indices:
    """The first page frame that each mapping maps, -1 where it is not known."""
    number = np.cumsum(capture.events["kind"] == MAP) - 1
    chunks: _Indices = number[capture.chunks[capture.mappings["first_chunk"]]]
    return paddrs[chunks] >> PAGE_SHIFT


def _attempts_in(capture: Capture, memory: _Indices) -> list[_Attempt]:
    """What begins like an attempt and was either mapped whole or taken back whole."""
    events, mappings = capture.events, capture.mappings
    mapping_at = np.full(len(events), -1, np.int64)
    mapping_at[mappings["map_event"]] = np.arange(len(mappings))
    unmapped = np.flatnonzero((mappings["unmap_event"] >= 0) & ~mappings["supplied"])
    mapping_at[mappings["unmap_event"][unmapped]] = unmapped
    steps = np.flatnonzero((mapping_at >= 0) & ~events["irq"])
    may_begin = ((mappings["pages"] == 1) & (mappings["nents"] == 1) & (memory >= 0)).tolist()
    found: list[_Attempt] = []
    made: dict[int, _Attempt] = {}
    rows = mapping_at[steps].tolist(), (events["kind"][steps] == MAP).tolist(), events["cpu"][steps].tolist()
    for mapping, is_map, cpu in zip(*rows, strict=True):
        attempt = made.pop(cpu, None)
        if is_map:
            if attempt is None or attempt.rolled_back:
                attempt = _Attempt(cpu, [mapping]) if may_begin[mapping] else None
            else:
                attempt.maps.append(mapping)
                if attempt.has_status:
                    found.append(attempt)
                    continue
                attempt.has_status = bool(memory[mapping] == memory[attempt.maps[0]])
        elif attempt is not None and attempt.maps[attempt.rolled_back] == mapping:
            attempt.rolled_back += 1
            if attempt.rolled_back == len(attempt.maps):
                found.append(attempt)
                continue
        else:
            continue
        if attempt is not None:
            made[cpu] = attempt
    return found


def _ends_like_a_request(capture: Capture, attempt: _Attempt) -> bool:
    """Whether it was taken back, or one CPU unmapped the table first, then the others in their order, or nobody did."""
    if attempt.rolled_back:
        return True
    ended = capture.mappings[[attempt.maps[-1], *attempt.maps[:-1]]]
    ends = ended["unmap_event"]
    if (ends < 0).all():
        return True
    last_map = capture.mappings["map_event"][attempt.maps[-1]]
    is_in_order = bool((np.diff(ends) > 0).all()) and ends[0] > last_map
    return is_in_order and not ended["supplied"].any() and len(np.unique(capture.events["cpu"][ends])) == 1


def _wanted_pages(capture: Capture, memory: _Indices, found: list[_Attempt]) -> list[int]:
    """What the failed attempts did not get, in pages.

    Buffers are used again: an attempt that mapped the same memory first, and got further, shows what comes next. One
    that failed at its first data is the next on its CPU that succeeds with the same header, past requests so small
    that the caches serve them: those come from the process meanwhile, and overtake it.
    """
    pages = capture.mappings["pages"]
    parts = [[(int(memory[m]), int(pages[m])) for m in attempt.maps] for attempt in found]
    by_first_data: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    by_header: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, attempt in enumerate(found):
        if not attempt.rolled_back:
            by_first_data[parts[number][1]].append(number)
            by_header[attempt.cpu, parts[number][0][0]].append(number)
    wanted = [0] * len(found)
    for number, attempt in enumerate(found):
        if not attempt.rolled_back:
            continue
        got = len(attempt.maps)
        if got > 1:
            like = [
                n
                for n in by_first_data[parts[number][1]]
                if len(parts[n]) > got and parts[n][1:got] == parts[number][1:]
            ]
            # The request itself comes later, so later ones go before.
            like.sort(key=lambda other: (other < number, abs(other - number)))
        else:
            others = by_header[attempt.cpu, parts[number][0][0]]
            like = [n for n in others if n > number and parts[n][1][1] > CACHED_PAGES]
        wanted[number] = parts[like[0]][got][1] if like else 0
    return wanted
