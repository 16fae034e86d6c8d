"""What steps of a CPU cost on virtual clocks; on real ones they take the time they take.

A few steps stand for all: what an operation costs depends on how many pages it maps, which locks it takes, whether
another CPU had them last, and how often the allocator's tree is asked. `emu doctor --calibrate` measures them.
"""

from __future__ import annotations

COSTS = (
    *("map", "unmap", "map_page", "unmap_page", "check_page", "bitmap_page", "queue", "reclaim"),
    *("lock", "transfer", "tree", "request", "wake", "relax"),
)
"""Their names: a call of the DMA API with its part of the load's loop, each page of it, each page that the check looks
at, each page taken from the old s390 bitmap or given back; an append to a flush queue, an IOVA freed after a flush; a
lock taken and given back, and what that costs more when another CPU had it last; a range allocated from the tree or
given back to it; a request to the hypervisor, beyond the emulated time; until a sleeper runs that was woken, or
whose time is over; a look at a word that has not changed."""
(
    COST_MAP,
    COST_UNMAP,
    COST_MAP_PAGE,
    COST_UNMAP_PAGE,
    COST_CHECK_PAGE,
    COST_BITMAP_PAGE,
    COST_QUEUE,
    COST_RECLAIM,
    COST_LOCK,
    COST_TRANSFER,
    COST_TREE,
    COST_REQUEST,
    COST_WAKE,
    COST_RELAX,
) = range(len(COSTS))
