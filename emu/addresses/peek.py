"""What an allocation would give, found out without making it; compiled.

The answer is a pfn << 3 | where it comes from: one of LOADED, PREV, DEPOT and TREE. EMPTIED alone says that the caches
would have to be emptied first, which cannot be looked at.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.dma import iommu_dma_alloc_iova
from emu.iommu.iova import (
    DMA_32BIT_PFN,
    IOVA_MAG_SIZE,
    IOVA_RANGE_CACHE_MAX_SIZE,
    alloc_iova,
    free_iova_locked,
    insert_iova_locked,
    iova_cpu_rcache,
    iova_magazine,
    iova_rcache,
    iova_t,
    lowest_at_or_above,
    order_base_2,
    private_find_iova,
)
from emu.native.atomics import int64_t
from emu.native.compile import slow
from emu.native.rbtree import rb_erase
from emu.native.record import address_of, deref, element
from emu.oracle.pages import check_handed_out

NOWHERE, LOADED, PREV, DEPOT, TREE, EMPTIED = range(6)
"""Where an allocation is served from; EMPTIED: from the tree, after the caches were emptied into it."""


@slow
def rounded_size(pages: int) -> int:
    """Pages that alloc_iova_fast() takes for so many."""
    return 1 << order_base_2(pages) if pages < 1 << (IOVA_RANGE_CACHE_MAX_SIZE - 1) else pages


@slow
def _untake(iovad: Any, pfn: int) -> None:
    """Take a range out of the tree, and leave everything else as it is."""
    address = private_find_iova(iovad, pfn)
    rb_erase(iovad.rbroot, address)
    deref(iova_t, address).node.next = iovad.free_nodes
    iovad.free_nodes = address
    iovad.nodes_used -= 1


@slow
def _peek_limited(cpu: Any, iovad: Any, pages: int, limit_pfn: int) -> int:
    """The same below a limit; 0 when nothing is left there."""
    size = rounded_size(pages)
    order = order_base_2(size)
    if order < IOVA_RANGE_CACHE_MAX_SIZE:
        rcache = element(iova_rcache, iovad.rcaches, order)
        cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, cpu.id)
        source = LOADED
        address = cpu_rcache.loaded
        if deref(iova_magazine, address).count == 0:
            source = PREV
            address = cpu_rcache.prev
            if deref(iova_magazine, address).count == 0:
                source = DEPOT
                address = rcache.depot
        if address:
            i = IOVA_MAG_SIZE - 1 if source == DEPOT else deref(iova_magazine, address).count - 1
            pfns = address_of(deref(iova_magazine, address), "pfns")
            while i >= 0 and element(int64_t, pfns, i).value > limit_pfn + 1 - size:
                i -= 1
            if i >= 0:
                return element(int64_t, pfns, i).value << 3 | source
    cached, cached32, max32 = iovad.cached_node, iovad.cached32_node, iovad.max32_alloc_size
    pfn = alloc_iova(cpu, iovad, size, limit_pfn)
    if pfn:
        _untake(iovad, pfn)
    iovad.cached_node, iovad.cached32_node, iovad.max32_alloc_size = cached, cached32, max32
    return pfn << 3 | TREE if pfn else 0


@slow
def _first_limit(domain: Any) -> int:
    """The highest pfn that an allocation tries first."""
    if domain.dma_limit_pfn >= DMA_32BIT_PFN and domain.pci_32bit_workaround:
        return DMA_32BIT_PFN - 1
    return domain.dma_limit_pfn


@slow
def alloc_from_tree(cpu: Any, domain: Any, size: int) -> int:
    """Allocate past the caches, as an allocation does that finds them empty. Returns the pfn, or 0."""
    pfn = alloc_iova(cpu, domain.cookie.iovad, size, _first_limit(domain))
    if pfn == 0:
        pfn = alloc_iova(cpu, domain.cookie.iovad, size, domain.dma_limit_pfn)
    return pfn


@slow
def peek_iova(cpu: Any, domain: Any, pages: int) -> int:
    """What an allocation would give now."""
    found = _peek_limited(cpu, domain.cookie.iovad, pages, _first_limit(domain))
    if found == 0:
        found = _peek_limited(cpu, domain.cookie.iovad, pages, domain.dma_limit_pfn)
    return found or EMPTIED


@slow
def peek_iova_after(cpu: Any, domain: Any, other: int, other_pages: int, pages: int) -> int:
    """The same, had another CPU allocated just before, out of what both share: the tree or the depot; else 0."""
    iovad = domain.cookie.iovad
    this = cpu.id
    cpu.id = other
    source = peek_iova(cpu, domain, other_pages) & 7
    found = 0
    if source == TREE:
        cached, cached32, max32 = iovad.cached_node, iovad.cached32_node, iovad.max32_alloc_size
        pfn = alloc_from_tree(cpu, domain, rounded_size(other_pages))
        cpu.id = this
        found = peek_iova(cpu, domain, pages)
        if pfn:
            _untake(iovad, pfn)
        iovad.cached_node, iovad.cached32_node, iovad.max32_alloc_size = cached, cached32, max32
    elif source == DEPOT:
        rcache = element(iova_rcache, iovad.rcaches, order_base_2(other_pages))
        top = rcache.depot
        rcache.depot = deref(iova_magazine, top).next
        cpu.id = this
        found = peek_iova(cpu, domain, pages)
        rcache.depot = top
    cpu.id = this
    return found


@slow
def peek_iova_without(cpu: Any, domain: Any, pages: int, pfn: int, cached_pfn: int) -> int:
    """The same, had the tree's range at `pfn` not been allocated; `cached_pfn`: where the cached node was before."""
    iovad = domain.cookie.iovad
    address = private_find_iova(iovad, pfn)
    if address == 0:
        return 0
    size = deref(iova_t, address).pfn_hi - pfn + 1
    cached, cached32 = iovad.cached_node, iovad.cached32_node
    _untake(iovad, pfn)
    if pfn < DMA_32BIT_PFN:
        iovad.cached32_node = lowest_at_or_above(iovad, cached_pfn)
    else:
        iovad.cached_node = lowest_at_or_above(iovad, cached_pfn)
    found = peek_iova(cpu, domain, pages)
    # The node that has just become free is the one that is taken.
    insert_iova_locked(iovad, pfn, size, lowest_at_or_above(iovad, pfn))
    iovad.cached_node, iovad.cached32_node = cached, cached32
    return found


@slow
def alloc_unnoted(cpu: Any, domain: Any, pages: int) -> int:
    """Allocate, but do not note the pages as in use: whoever is to have them is still to be found out."""
    iovad = domain.cookie.iovad
    oracle = iovad.oracle
    iovad.oracle = 0
    pfn = iommu_dma_alloc_iova(cpu, domain, pages)
    iovad.oracle = oracle
    return pfn


@slow
def hand_out(cpu: Any, domain: Any, pfn: int, pages: int) -> None:
    """Note that a range is in use, where that is checked."""
    if domain.cookie.iovad.oracle:
        check_handed_out(cpu, domain.cookie.iovad.oracle, pfn, pages)


@slow
def alloc_if(cpu: Any, domain: Any, pages: int, wanted: int) -> int:
    """Allocate if that gives `wanted`, and return 0; else what it would have given.

    What has to empty the caches first cannot be looked at: then they are empty, whatever is returned.
    """
    found = peek_iova(cpu, domain, pages)
    if found != EMPTIED and found >> 3 != wanted:
        return found
    pfn = alloc_unnoted(cpu, domain, pages)
    if pfn == wanted:
        hand_out(cpu, domain, pfn, pages)
        return 0
    if pfn:
        free_iova_locked(cpu, domain.cookie.iovad, pfn)
    return pfn << 3 | EMPTIED
