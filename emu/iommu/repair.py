"""What a CPU that died in the midst of a lock's section left half-done, put right before another takes the lock.

Linux needs none of this, as its CPUs do not die holding locks. What each section leaves behind at any of its
instructions is laid down where it is written, by the order of its stores; so little is left to do here.

| lock | guards | after a death |
|---|---|---|
| iova_rbtree_lock | the tree of ranges | rebuilt from its thread, which is whole at any instruction |
| iova_magazine_lock | the pool of magazines | whole at any instruction; one magazine may be lost to it |
| iova_cpu_rcache.lock | a CPU's two magazines | a swap is completed, what was being given back is taken out |
| iova_rcache.lock | a depot | whole at any instruction; it is counted anew |
| iova_fq.lock | a ring | whole at any instruction; a flush under way is left to the next one |
| hypervisor.lock | the shadow table | what the host has mapped is counted anew; requests are served again |
| iommu_bitmap_lock | the old s390 bitmaps | several words change together: not repaired |
"""

from __future__ import annotations

from typing import Any

from emu.iommu.iova import DMA_32BIT_PFN, iova_magazine
from emu.native.atomics import int64_t
from emu.native.compile import slow
from emu.native.rbtree import rb_rebuild
from emu.native.record import address_of, deref, element, pointer_to


@slow
def repair_tree(iovad: Any) -> None:
    """Rebuild the tree; what was remembered about where to search is forgotten."""
    anchor = pointer_to(iovad.anchor)
    iovad.nodes_used = rb_rebuild(iovad.rbroot, anchor)
    iovad.cached_node = iovad.cached32_node = anchor
    iovad.max32_alloc_size = DMA_32BIT_PFN


@slow
def drop_given_back(address: int) -> None:
    """Take out of a magazine what had been given back to the tree already when its owner died."""
    magazine = deref(iova_magazine, address)
    pfns = address_of(magazine, "pfns")
    kept = 0
    for i in range(magazine.count):
        pfn = element(int64_t, pfns, i).value
        if pfn:
            element(int64_t, pfns, kept).value = pfn
            kept += 1
    magazine.count = kept


@slow
def repair_cpu_rcache(cpu_rcache: Any) -> None:
    """Complete a swap of the magazines, and take out what is in the tree again."""
    if cpu_rcache.swapping and cpu_rcache.loaded != cpu_rcache.swapping:
        cpu_rcache.prev = cpu_rcache.swapping
    cpu_rcache.swapping = 0
    if cpu_rcache.loaded:
        drop_given_back(cpu_rcache.loaded)
        drop_given_back(cpu_rcache.prev)


@slow
def repair_depot(rcache: Any) -> None:
    """Count the magazines anew."""
    rcache.depot_size = 0
    address = rcache.depot
    while address:
        rcache.depot_size += 1
        address = deref(iova_magazine, address).next
