"""Steps on an IOVA allocator and its flush queue for whoever replays a kernel's history on them; compiled.

All steps are one entry: what they share is compiled once.
"""

from __future__ import annotations

from typing import Any

from emu.addresses.caches import count_at, empty_magazines, exchange_runs, find_cached, pfn_at, sink_above, take_cached
from emu.addresses.peek import (
    alloc_from_tree,
    alloc_if,
    alloc_unnoted,
    hand_out,
    peek_iova,
    peek_iova_after,
    peek_iova_without,
)
from emu.addresses.rings import ring_address, ring_drop, ring_find, ring_free, ring_has, ring_last
from emu.addresses.tree import tree_is_free, tree_range_in, tree_take
from emu.iommu.domain import iommu_domain
from emu.iommu.flush_queue import fq_free_rings, iova_fq, queue_iova
from emu.iommu.iova import (
    IOVA_RANGE_CACHE_MAX_SIZE,
    free_iova_fast,
    free_iova_locked,
    iova_cpu_rcache,
    iova_depot_push,
    iova_depot_work_func,
    iova_rcache,
    iova_t,
    lowest_at_or_above,
    magazine_from_pool,
    magazine_push,
)
from emu.machine.context import cpu_t
from emu.native.atomics import fetch_add, write_once
from emu.native.compile import entry
from emu.native.record import deref, element
from emu.native.time import now_ticks
from emu.native.timer import TIMER_PENDING

(FREE, QUEUE, BEGIN_FLUSH, END_FLUSH, FREE_RINGS, DEPOT_WORK) = range(6)
"""What a kernel does: FREE and QUEUE (pfn, pages), the ends of a flush, its frees, a depot's worker (order)."""
(ALLOC_IF, PEEK, PEEK_AFTER, PEEK_WITHOUT, FIND, AT, COUNT) = range(6, 13)
"""ALLOC_IF (pages, pfn) allocates if that gives the pfn, PEEK (pages) and its like only look; FIND (pfn, order) says
where in the caches a pfn lies, AT and COUNT (order, place) what lies at a place and how many with it."""
(HAND_OUT, ALLOC, TAKE, SINK, EXCHANGE, PUSH, EMPTY) = range(13, 20)
"""They put right what is in the caches; ALLOC and TAKE do not note pages as in use, HAND_OUT (pfn, pages) does."""
(TREE_FREE, TREE_TAKE, TREE_GIVE, TREE_ALLOC, RANGE_IN, CACHED, SET_CACHED) = range(20, 27)
"""The same for the tree; CACHED and SET_CACHED: the pfn of a cached node, the 32-bit one's if a is 1."""
(DEPOT_TOP, DEPOT_NEW, PENDING, RING_FIND, RING_LAST, RING_HAS, RING_DROP, RING_FREE) = range(27, 35)
"""The depots' top magazines, a new full one, the orders (bits) whose worker is scheduled; one ring's entries."""


@entry
def iova_step(context: int, cpu_id: int, step: int, a: int, b: int, c: int) -> int:  # noqa: C901, PLR0911, PLR0912, PLR0915
    """One of the above, with its arguments, on behalf of a CPU; `context` is the address of a process' cpu_t."""
    cpu: Any = deref(cpu_t, context)
    cpu.id = cpu_id
    domain = deref(iommu_domain, cpu.domain)
    cookie = domain.cookie
    iovad = cookie.iovad
    if step == ALLOC_IF:
        return alloc_if(cpu, domain, a, b)
    if step == FREE:
        free_iova_fast(cpu, iovad, a, b)
    elif step == QUEUE:
        queue_iova(cpu, cookie, a, b)
    elif step == BEGIN_FLUSH:
        fetch_add(cookie.fq_flush_start_cnt, "counter", 1)
    elif step == END_FLUSH:
        write_once(cookie, "fq_flush_finished_at", now_ticks(cpu))
        fetch_add(cookie.fq_flush_finish_cnt, "counter", 1)
    elif step == FREE_RINGS:
        fq_free_rings(cpu, cookie)
    elif step == DEPOT_WORK:
        iova_depot_work_func(cpu, element(iova_rcache, iovad.rcaches, a))
    elif step == PENDING:
        pending = 0
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
            if element(iova_rcache, iovad.rcaches, order).work.state == TIMER_PENDING:
                pending |= 1 << order
        return pending
    elif step == PEEK:
        return peek_iova(cpu, domain, a)
    elif step == PEEK_AFTER:
        return peek_iova_after(cpu, domain, a, b, c)
    elif step == PEEK_WITHOUT:
        return peek_iova_without(cpu, domain, a, b, c)
    elif step == FIND:
        return find_cached(iovad, a, b)
    elif step == AT:
        return pfn_at(iovad, a, b)
    elif step == COUNT:
        return count_at(iovad, a, b)
    elif step == HAND_OUT:
        hand_out(cpu, domain, a, b)
    elif step == ALLOC:
        return alloc_unnoted(cpu, domain, a)
    elif step == TAKE:
        take_cached(iovad, a, b, c)
    elif step == SINK:
        sink_above(iovad, a, b)
    elif step == EXCHANGE:
        exchange_runs(iovad, a, b, c)
    elif step == PUSH:
        rcache = element(iova_rcache, iovad.rcaches, a)
        magazine_push(element(iova_cpu_rcache, rcache.cpu_rcaches, cpu.id).loaded, b)
    elif step == EMPTY:
        empty_magazines(cpu, iovad, a, b)
    elif step == TREE_FREE:
        return tree_is_free(iovad, a, b)
    elif step == TREE_TAKE:
        return tree_take(iovad, a, b, c)
    elif step == TREE_GIVE:
        free_iova_locked(cpu, iovad, a)
    elif step == TREE_ALLOC:
        return alloc_from_tree(cpu, domain, a)
    elif step == RANGE_IN:
        return tree_range_in(iovad, a, b)
    elif step == CACHED:
        return deref(iova_t, iovad.cached32_node if a else iovad.cached_node).pfn_lo
    elif step == SET_CACHED:
        if a:
            iovad.cached32_node = lowest_at_or_above(iovad, b)
        else:
            iovad.cached_node = lowest_at_or_above(iovad, b)
    elif step == DEPOT_TOP:
        return element(iova_rcache, iovad.rcaches, a).depot
    elif step == DEPOT_NEW:
        address = magazine_from_pool(iovad)
        if address:
            iova_depot_push(element(iova_rcache, iovad.rcaches, a), address)
        return address
    elif step == RING_FIND:
        return ring_find(deref(iova_fq, ring_address(cookie, a)), b)
    elif step == RING_LAST:
        return ring_last(cookie, deref(iova_fq, ring_address(cookie, a)), b, c)
    elif step == RING_HAS:
        return ring_has(deref(iova_fq, ring_address(cookie, a)), b)
    elif step == RING_DROP:
        ring_drop(cpu, cookie, deref(iova_fq, ring_address(cookie, a)), b)
    elif step == RING_FREE:
        return ring_free(cpu, cookie, deref(iova_fq, ring_address(cookie, a)), b)
    return 0
