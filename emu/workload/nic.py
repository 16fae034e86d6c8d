"""Network traffic as a NIC driver does it: each CPU has a receive ring that is refilled in batches, and transmits.

The receive ring is always full of one-page buffers. A poll (Linux: NAPI) first unmaps the transmissions that have
completed since the last one, then takes `batch` received buffers, unmaps them and maps as many new ones in their place,
and then maps as many transmissions. Half of those are headers of one page, half are payloads handed down in one piece
(TSO) of 1 to 16 pages, up to 64 KiB. Payloads come out of 32 KiB blocks of adjoining pages (Linux:
`SKB_FRAG_PAGE_ORDER`), wherever the last one ended in its block, so one that does not fit the rest of the block is a
scatter-gather list.

CPUs share nothing here, so no program waits for another one. A loop goes round the whole ring, and leaves every slot
mapped as it found it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emu.config import Config
from emu.workload.program import OP_MAP, OP_UNMAP, Program, Workload, op_t

MAX_PAYLOAD_PAGES = 16
_BLOCK_PAGES = 8
_HEADER_SHARE = 0.5


def nic_workload(config: Config, pairs: int) -> Workload:
    """Build the load of one receive ring and its transmissions on each CPU.

    A batch ends at the end of the ring, so the last one is smaller where `batch` does not divide `ring`; a batch larger
    than the ring is the ring.

    Args:
        config: the run; `ring` and `batch` of its workload count.
        pairs: about how many map+unmap pairs the loop of each CPU should have. It has at least twice `ring`.
    """
    load, cpus = config.workload, config.machine.cpus
    batch = min(load.batch, load.ring)
    slots = load.ring + batch
    round_ops = _once_round(load.ring, batch)
    rounds = max(1, 2 * pairs // len(round_ops))
    ops = np.concatenate([_all_mapped(slots), np.tile(round_ops, rounds)])
    transmissions = np.flatnonzero((ops["code"] == OP_MAP) & (ops["slot"] >= load.ring))
    lists = [_payload(pages, place) for pages in range(1, MAX_PAYLOAD_PAGES + 1) for place in range(_BLOCK_PAGES)]
    programs = []
    for cpu, seed in enumerate(np.random.SeedSequence(config.machine.seed).spawn(cpus)):
        own = ops.copy()
        own["slot"] += cpu * slots
        own[transmissions] = _transmitted(own[transmissions], lists, np.random.default_rng(seed))
        programs.append(Program(own, loop_start=slots))
    segments = np.concatenate(lists).astype(np.int32)
    return Workload("nic", programs, slots=cpus * slots, segments=segments, max_pages=MAX_PAYLOAD_PAGES)


def _all_mapped(slots: int) -> npt.NDArray[np.void]:
    return _on_slots(OP_MAP, np.arange(slots))


def _once_round(ring: int, batch: int) -> npt.NDArray[np.void]:
    polls = []
    for first in range(0, ring, batch):
        received = np.arange(first, min(first + batch, ring))
        transmitted = np.arange(ring, ring + len(received))
        polls += [
            _on_slots(OP_UNMAP, transmitted),
            _on_slots(OP_UNMAP, received),
            _on_slots(OP_MAP, received),
            _on_slots(OP_MAP, transmitted),
        ]
    return np.concatenate(polls)


def _on_slots(code: int, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    ops = np.zeros(len(slots), op_t)
    ops["code"] = code
    ops["slot"] = slots
    if code == OP_MAP:
        ops["pages"] = 1
        ops["nents"] = 1
    return ops


def _payload(pages: int, place: int) -> list[int]:
    # Segments of a payload that begins `place` pages into a block.
    ends = np.append(np.arange(_BLOCK_PAGES - place, pages, _BLOCK_PAGES), pages)
    return [int(segment) for segment in np.diff(ends, prepend=0)]


def _transmitted(maps: npt.NDArray[np.void], lists: list[list[int]], rng: np.random.Generator) -> npt.NDArray[np.void]:
    nents = np.array([len(segments) for segments in lists])
    pages = np.array([sum(segments) for segments in lists])
    is_payload = rng.random(len(maps)) >= _HEADER_SHARE
    chosen = rng.integers(len(lists), size=len(maps))[is_payload]
    maps["pages"][is_payload] = pages[chosen]
    maps["nents"][is_payload] = nents[chosen]
    maps["arg"][is_payload] = (np.cumsum(nents) - nents)[chosen]
    return maps
