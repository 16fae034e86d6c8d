"""After the death of a process: its locks are found and repaired, then others are told that they may take them."""

from __future__ import annotations

from typing import Any

from emu.hypervisor.functions import function_of
from emu.hypervisor.state import hypervisor_t
from emu.iommu.domain import DMA_IOMMU, iommu_domain
from emu.iommu.flush_queue import FLUSH_UNDER_WAY, iova_fq
from emu.iommu.io_pgtable import count_valid
from emu.iommu.iova import (
    IOVA_RANGE_CACHE_MAX_SIZE,
    iova_cpu_rcache,
    iova_magazine,
    iova_rcache,
    magazine_free_pfns,
)
from emu.iommu.repair import drop_given_back, repair_cpu_rcache, repair_depot, repair_tree
from emu.machine.context import ROLE_HYPERVISOR, control_t, cpu_t
from emu.native.atomics import cmpxchg, fetch_add, int64_t, read_once, smp_store_release
from emu.native.clock import ticks
from emu.native.compile import entry, slow
from emu.native.futex import EVERYONE, futex_wake
from emu.native.lock import is_held_by, orphan, spin_unlock, spinlock_t
from emu.native.record import address_of, deref, element, pointer_to, struct
from emu.native.timer import TIMER_ARMING, TIMER_IDLE, add_timer
from emu.oracle.findings import close_findings

MOST_HELD = 8
"""Locks that one process holds at a time; there are never as many."""

_NOT_ARMED = 1 << (1 + IOVA_RANGE_CACHE_MAX_SIZE)

death_t = struct(
    tree="i4",
    magazines="i4",
    cpu_rcache="i4",
    depot="i4",
    ring="i4",
    bitmap="i4",
    hypervisor="i4",
    held="i4",
    flush_step="i8",
    locks=("i8", (MOST_HELD,)),
)
"""How many locks of each kind the dead held, `held` in all, whose addresses are in `locks`; `flush_step` as the
context's."""


@slow
def _finds(death: Any, lock: Any, owner: int) -> bool:
    """Whether the dead held this lock; then it is noted."""
    if not is_held_by(lock, owner):
        return False
    if death.held < MOST_HELD:
        element(int64_t, address_of(death, "locks"), death.held).value = pointer_to(lock)
        lock.handover = ticks()
    death.held += 1
    return True


@slow
def _bury_allocator(iovad: Any, owner: int, death: Any) -> None:
    if _finds(death, iovad.iova_rbtree_lock, owner):
        death.tree += 1
        repair_tree(iovad)
    if _finds(death, iovad.magazine_lock, owner):
        death.magazines += 1
    for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
        rcache = element(iova_rcache, iovad.rcaches, order)
        if _finds(death, rcache.lock, owner):
            death.depot += 1
            repair_depot(rcache)
        for i in range(iovad.num_online_cpus):
            cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, i)
            if _finds(death, cpu_rcache.lock, owner):
                death.cpu_rcache += 1
                repair_cpu_rcache(cpu_rcache)


@slow
def _bury_queue(cookie: Any, owner: int, death: Any) -> None:
    if cookie.single_fq and _finds(death, deref(iova_fq, cookie.single_fq).lock, owner):
        death.ring += 1
    if cookie.percpu_fq:
        for i in range(cookie.fq_rings):
            if _finds(death, element(iova_fq, cookie.percpu_fq, i).lock, owner):
                death.ring += 1


@slow
def _bury_hypervisor(hv: Any, domains: int, dead: Any, death: Any) -> None:
    if _finds(death, hv.lock, dead.owner):
        death.hypervisor += 1
    elif dead.role != ROLE_HYPERVISOR or hv.servers > 1:
        return
    if not hv.shadows:
        return
    # It may have counted a page that it had not entered yet, or the other way round.
    mapped = 0
    for number in range(hv.function_count):
        function, s390 = function_of(hv, number), element(iommu_domain, domains, number).s390
        function.mapped = count_valid(address_of(function, "shadow"), s390.aperture_start_pfn, s390.aperture_pages)
        mapped += function.mapped
    hv.mapped = mapped


@entry
def bury(context: int, dead_context: int, death_address: int) -> int:
    """Repair what a dead process had in its locks, take over its flush, and publish its death.

    Args:
        context: the supervisor's.
        dead_context: of the dead, which nobody runs any more; its name keeps its locks until the end.
        death_address: a death_t, all zero; what was found.
    """
    cpu = deref(cpu_t, context)
    dead = deref(cpu_t, dead_context)
    death = deref(death_t, death_address)
    functions = deref(control_t, cpu.control).functions
    for number in range(functions):
        domain = element(iommu_domain, cpu.domain, number)
        if domain.dma_ops == DMA_IOMMU:
            _bury_allocator(domain.cookie.iovad, dead.owner, death)
            _bury_queue(domain.cookie, dead.owner, death)
        if _finds(death, domain.zdev.iommu_bitmap_lock, dead.owner):
            death.bitmap += 1
            # The machine stops for it, but until then others go on with bitmaps that may be half-written.
            close_findings(cpu, functions)
    _bury_hypervisor(deref(hypervisor_t, cpu.hypervisor), cpu.domain, dead, death)
    death.flush_step = dead.flush_step
    if dead.flush_step == FLUSH_UNDER_WAY:
        # Of the function it has worked for: it turns to another only between two flushes.
        fetch_add(element(iommu_domain, cpu.domain, dead.function).cookie, "fq_abandoned", 1 + dead.flush_for)
    # Release: what was repaired is seen by whoever finds the owner dead, in lock.py's _is_dead().
    smp_store_release(element(int64_t, cpu.dead_generation, dead.slot), "value", dead.generation)
    for i in range(min(death.held, MOST_HELD)):
        orphan(deref(spinlock_t, element(int64_t, address_of(death, "locks"), i).value))
    return 0


@entry
def tend_timers(context: int, number: int, arming: int) -> int:
    """Look after a function's timers that a dead process was about to arm, or to fire.

    Args:
        context: the supervisor's.
        number: of the function.
        arming: what the last call for it returned, some time ago.

    Returns:
        Bits of the timers that somebody is about to arm; the last bit says that the flush timer is on but not armed.
    """
    cpu = deref(cpu_t, context)
    cookie = element(iommu_domain, cpu.domain, number).cookie
    seen = _tend_timer(cookie.fq_timer, arming, 0)
    if cookie.iovad.rcaches:
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
            seen |= _tend_timer(element(iova_rcache, cookie.iovad.rcaches, order).work, arming, 1 + order)
    if cookie.fq_domain and cookie.fq_timer.state == TIMER_IDLE and read_once(cookie.fq_timer_on, "counter"):
        if arming & _NOT_ARMED:
            add_timer(cpu, cookie.fq_timer, cookie.fq_timeout_ns)
        else:
            seen |= _NOT_ARMED
    return seen


@slow
def _tend_timer(timer: Any, arming: int, place: int) -> int:
    """Free a timer that somebody has been about to arm since the last look; else returns its bit, if it is now."""
    if read_once(timer, "state") != TIMER_ARMING:
        return 0
    if not arming & 1 << place:
        return 1 << place
    smp_store_release(timer, "state", TIMER_IDLE)
    return 0


@entry
def count_abandoned(context: int, number: int, flushes: int) -> int:
    """Leave flushes of a function that were begun by the dead to the next one that starts."""
    fetch_add(element(iommu_domain, deref(cpu_t, context).domain, number).cookie, "fq_abandoned", flushes)
    return 0


@entry
def post_for_the_dead(context: int, position: int, word: int) -> int:
    """Fill the place in the hypervisor's queue that a CPU had taken but not filled when it died, and wake a server."""
    hv = deref(hypervisor_t, deref(cpu_t, context).hypervisor)
    smp_store_release(element(int64_t, hv.ring, position), "value", word)
    fetch_add(hv, "doorbell", 1)
    futex_wake(address_of(hv, "doorbell"), EVERYONE)
    return 0


@entry
def give_back_orphan(context: int, number: int, magazine: int) -> int:
    """Give what is in a function's magazine that the dead had in hand back to the tree; all others have ended."""
    cpu = deref(cpu_t, context)
    drop_given_back(magazine)
    magazine_free_pfns(cpu, element(iommu_domain, cpu.domain, number).cookie.iovad, magazine)
    return deref(iova_magazine, magazine).count


@entry
def hold_lock(context: int, lock_address: int) -> int:
    """Take a lock if it is free, without waiting; 1 when it was."""
    lock = deref(spinlock_t, lock_address)
    return 1 if cmpxchg(lock, "val", 0, deref(cpu_t, context).owner) == 0 else 0


@entry
def let_lock_go(context: int, lock_address: int) -> int:
    """Give that lock back."""
    spin_unlock(deref(cpu_t, context), deref(spinlock_t, lock_address))
    return 0


BURIAL_ENTRIES = (hold_lock, let_lock_go, bury, tend_timers, count_abandoned, post_for_the_dead, give_back_orphan)
