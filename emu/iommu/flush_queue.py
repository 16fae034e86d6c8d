"""Flush queues (drivers/iommu/dma-iommu.c, 6.7 and later): unmapped IOVAs wait for a flush that makes them reusable.

Flushing the IOTLB at every unmap is dear. With a flush queue an unmap clears the page-table entries and puts the IOVA
on a ring, either this CPU's or one for all, and a single flush of everything, when the ring is full or a timer fires,
makes the whole ring reusable. The invariant: an IOVA becomes allocatable only after a flush that started after its
unmap has finished. Two counters carry it: entries are stamped with the number of flushes started, and freed once more
flushes than that have finished.

As in the kernel, a CPU whose own flush has finished appends without looking again whether there is room; if an earlier
flush of another CPU is still under way, nothing could be freed, the append wraps onto the ring's head, and the whole
ring is lost. `overruns` counts it, and `wait_on_overrun` looks again instead.

What can be decided otherwise without breaking the invariant is asked of a policy, see `policy.py`; the answers built in
are Linux's.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.exposure import close_window
from emu.iommu.iova import free_iova_fast, iova_domain
from emu.iommu.policy import flush_after, flush_before, flush_by_range, may_free, ring_of, timeout_ns
from emu.iommu.recorded import find_recorded_flush, recorded_flush_t, recorded_flushes
from emu.iommu.s390_iommu import s390_domain, s390_iommu_flush_iotlb_all, s390_iommu_iotlb_sync
from emu.iommu.stages import STAGE_FLUSH, STAGE_QUEUE_LOCK, enter_stage, leave_stage
from emu.iommu.tracepoints import (
    CAUSE_EARLY,
    CAUSE_FULL,
    CAUSE_TIMEOUT,
    EVENT_FLUSH_TIMEOUT,
    EVENT_OVERRUN,
    EVENT_TIMER_ARMED,
    trace,
)
from emu.native.atomics import (
    atomic64_t,
    atomic_t,
    barrier,
    fetch_add,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    smp_wmb,
    write_once,
    xchg,
)
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_QUEUE, COST_RECLAIM
from emu.native.lines import write_lines
from emu.native.lock import spin_lock, spin_unlock, spinlock_t
from emu.native.record import address_of, deref, element, pointer_to, struct
from emu.native.time import charge, now_ticks, spend_until, yield_core
from emu.native.timer import TIMER_IDLE, add_timer, timer_t
from emu.native.wait import is_aborted
from emu.oracle.pages import expect_pages

PERCPU_QUEUE, SINGLE_QUEUE = 0, 1

iova_fq_entry = struct(iova_pfn="i8", pages="i8", counter="i8", queued_at="i8")
"""`counter`: flushes started when the entry was queued; `queued_at` in ticks."""
_ENTRY_BYTES = iova_fq_entry.itemsize
_COUNTER_BYTES = atomic64_t.itemsize

_LOOK_AHEAD = 24
"""Entries ahead of the one that is freed whose words the oracle has fetched: a microsecond or so."""

iova_fq = struct(
    lines=("lock", "head"),
    lock=spinlock_t,
    head="i4",
    tail="i4",
    mod_mask="i4",
    max_depth="i4",
    entries="i8",
    queued="i8",
    total_depth="i8",
    policy="i8",
)
"""One ring of `mod_mask + 1` entries, of which one stays empty; `queued` counts appends, `total_depth` sums the depths
they found; `policy`: address of what a policy keeps of this ring, under its lock, or 0."""
_HEAD_BYTES = iova_fq.itemsize - iova_fq.fields["head"][1]  # type: ignore[index]

iommu_dma_cookie = struct(
    lines=("fq_flush_start_cnt", "fq_flush_finish_cnt", "fq_timer_on", "iovad"),
    single_fq="i8",
    percpu_fq="i8",
    fq_domain="i8",
    qt="i8",
    fq_size="i8",
    fq_timeout_ns="i8",
    num_possible_cpus="i8",
    wait_on_overrun="i8",
    fq_rings="i8",
    policy="i8",
    recorded=recorded_flushes,
    fq_timer=timer_t,
    fq_flush_start_cnt=atomic64_t,
    fq_flush_finish_cnt=atomic64_t,
    fq_flush_finished_at="i8",
    fq_abandoned="i8",
    fq_timer_on=atomic_t,
    iovad=iova_domain,
)
"""`fq_domain` is 0 until the queue may be used; `fq_rings`: how many it has; `policy`: address of what a policy keeps
for all rings together, or 0; `fq_flush_finished_at` (ticks) belongs to the latest finish;
`fq_abandoned`: flushes whose CPU died before they were over, which the next one to finish counts as finished too."""

FLUSH_NONE, FLUSH_COUNTING, FLUSH_UNDER_WAY = range(3)
"""Where a CPU is in fq_flush_iotlb(), its `flush_step`: should it die while counting, nobody can tell at once whether
it had counted."""


@inline
def fq_full(fq: Any) -> bool:
    """No room for another entry."""
    return ((fq.tail + 1) & fq.mod_mask) == fq.head


@inline
def fq_ring_add(fq: Any) -> int:
    """Make the entry after the last one part of the ring; returns its index."""
    idx = fq.tail
    fq.tail = (idx + 1) & fq.mod_mask
    return idx


@inline
def fq_depth(fq: Any) -> int:
    """Entries in the ring."""
    return (fq.tail - fq.head) & fq.mod_mask


@inline
def _nth_ring(cookie: Any, number: int) -> Any:
    if cookie.qt == SINGLE_QUEUE:
        return deref(iova_fq, cookie.single_fq)
    return element(iova_fq, cookie.percpu_fq, number)


@inline
def _fq_ring_free_head(cpu: Any, cookie: Any, fq: Any, entry: Any, finished_at: int) -> None:
    close_window(cpu, entry.queued_at, finished_at, entry.pages)
    write_lines(cpu, pointer_to(entry), _ENTRY_BYTES)
    # Off the ring before it is given back: a CPU that dies in between loses it, and nobody gives it back twice.
    fq.head = (fq.head + 1) & fq.mod_mask
    barrier()
    free_iova_fast(cpu, cookie.iovad, entry.iova_pfn, entry.pages)
    cpu.ctrs.reclaimed += 1
    charge(cpu, COST_RECLAIM, 1)


@jit
def fq_ring_free_locked(cpu: Any, cookie: Any, fq: Any) -> None:
    """Free what a finished flush has made reusable."""
    # Acquire: pairs with the increment in fq_flush_iotlb(), so that the flush's time is at least this counter's.
    counter = smp_load_acquire(cookie.fq_flush_finish_cnt, "counter")
    finished_at = read_once(cookie, "fq_flush_finished_at")
    oracle = cookie.iovad.oracle
    while fq.head != fq.tail:
        entry = element(iova_fq_entry, fq.entries, fq.head)
        if not may_free(cpu, cookie, entry, counter):
            break
        if oracle:
            ahead = element(iova_fq_entry, fq.entries, (fq.head + _LOOK_AHEAD) & fq.mod_mask)
            expect_pages(oracle, ahead.iova_pfn, ahead.pages)
        _fq_ring_free_head(cpu, cookie, fq, entry, finished_at)


@slow
def fq_ring_free(cpu: Any, cookie: Any, fq: Any) -> None:
    """The same, taking the ring's lock."""
    spin_lock(cpu, fq.lock)
    fq_ring_free_locked(cpu, cookie, fq)
    spin_unlock(cpu, fq.lock)


@slow
def fq_flush_iotlb(cpu: Any, cookie: Any, cause: int, waiting: int) -> None:
    """Flush everything; flushes of several CPUs may overlap and finish in any order.

    `cause` (CAUSE_*) and `waiting`, the IOVAs that it is to make reusable, are for the log alone.
    """
    recorded = find_recorded_flush(cpu, cookie.recorded)
    if recorded:
        spend_until(cpu, deref(recorded_flush_t, recorded).begin_ns)
    # What others abandoned before this flush started it does in their stead; its fences order the steps too.
    cpu.flush_for = xchg(cookie, "fq_abandoned", 0) if read_once(cookie, "fq_abandoned") else 0
    write_once(cpu, "flush_step", FLUSH_COUNTING)
    write_lines(cpu, pointer_to(cookie.fq_flush_start_cnt), _COUNTER_BYTES)
    fetch_add(cookie.fq_flush_start_cnt, "counter", 1)
    write_once(cpu, "flush_step", FLUSH_UNDER_WAY)
    s390_iommu_flush_iotlb_all(cpu, deref(s390_domain, cookie.fq_domain), cause, waiting)
    if recorded:
        spend_until(cpu, deref(recorded_flush_t, recorded).end_ns)
    write_lines(cpu, pointer_to(cookie.fq_flush_finish_cnt), _COUNTER_BYTES)
    write_once(cookie, "fq_flush_finished_at", now_ticks(cpu))
    write_once(cpu, "flush_step", FLUSH_COUNTING)
    # Full barrier: pairs with the acquire in fq_ring_free_locked().
    fetch_add(cookie.fq_flush_finish_cnt, "counter", 1 + cpu.flush_for)
    write_once(cpu, "flush_step", FLUSH_NONE)
    if recorded:
        spend_until(cpu, deref(recorded_flush_t, recorded).resume_ns)


@slow
def fq_waiting(cpu: Any, cookie: Any) -> int:
    """Entries of all rings, for the log, as far as one sees without their locks; 0 where there is no log."""
    waiting = 0
    if cpu.events:
        for i in range(cookie.fq_rings):
            waiting += fq_depth(_nth_ring(cookie, i))
    return waiting


@slow
def _flush_ranges_locked(cpu: Any, cookie: Any, fq: Any) -> None:
    """Flush a ring's entries by their ranges, adjacent ones together, and free them; the ring is empty then.

    Whoever appended has cleared its entries and held the lock since, so that every flush here started after the unmaps
    of what it covers. No counter tells of it: it makes nothing reusable that is on another ring.
    """
    while fq.head != fq.tail:
        entry = element(iova_fq_entry, fq.entries, fq.head)
        first = entry.iova_pfn
        end = first + entry.pages
        after = (fq.head + 1) & fq.mod_mask
        while after != fq.tail:
            entry = element(iova_fq_entry, fq.entries, after)
            if entry.iova_pfn == end:
                end += entry.pages
            elif entry.iova_pfn + entry.pages == first:
                first = entry.iova_pfn
            else:
                break
            after = (after + 1) & fq.mod_mask
        s390_iommu_iotlb_sync(cpu, deref(s390_domain, cookie.fq_domain), first, end - first)
        finished_at = now_ticks(cpu)
        while fq.head != after:
            entry = element(iova_fq_entry, fq.entries, fq.head)
            _fq_ring_free_head(cpu, cookie, fq, entry, finished_at)


@slow
def _flush_rings_by_range(cpu: Any, cookie: Any) -> bool:
    """Flush those rings by range whose policy says so, as it does of none by default; whether these were all."""
    were_all = True
    for i in range(cookie.fq_rings):
        fq = _nth_ring(cookie, i)
        if flush_by_range(cpu, cookie, fq):
            spin_lock(cpu, fq.lock)
            _flush_ranges_locked(cpu, cookie, fq)
            spin_unlock(cpu, fq.lock)
        else:
            were_all = False
    return were_all


@slow
def fq_flush_timeout(cpu: Any, cookie: Any) -> None:
    """The timer: one flush, then free on every ring, into the caches of the CPU that armed it.

    Where a policy has every ring flushed by its ranges there is no flush of everything.
    """
    write_once(cookie.fq_timer_on, "counter", 0)
    since = now_ticks(cpu)
    trace(cpu, EVENT_FLUSH_TIMEOUT, cookie.fq_timer.due_ns)
    if _flush_rings_by_range(cpu, cookie):
        return
    cpu.ctrs.flushes_timeout += 1
    fq_flush_iotlb(cpu, cookie, CAUSE_TIMEOUT, fq_waiting(cpu, cookie))
    fq_free_rings(cpu, cookie)
    took = now_ticks(cpu) - since
    cpu.ctrs.timeout_ticks += took
    cpu.ctrs.timeout_max_ticks = max(cpu.ctrs.timeout_max_ticks, took)


@slow
def fq_free_rings(cpu: Any, cookie: Any) -> None:
    """What a timer does after its flush: free what that covers, ring after ring."""
    for i in range(cookie.fq_rings):
        fq_ring_free(cpu, cookie, _nth_ring(cookie, i))


@slow
def fq_free_unreachable(cpu: Any, cookie: Any) -> None:
    """Free all that is queued, as after a flush: the device is quiet, and the host has forgotten what it could reach.

    CPUs and timer rest.
    """
    if not cookie.fq_domain:
        return
    fetch_add(cookie.fq_flush_start_cnt, "counter", 1)
    write_once(cookie, "fq_flush_finished_at", now_ticks(cpu))
    fetch_add(cookie.fq_flush_finish_cnt, "counter", 1)
    fq_free_rings(cpu, cookie)


@slow
def _flush_full_ring_locked(cpu: Any, cookie: Any, fq: Any) -> None:
    if flush_by_range(cpu, cookie, fq):
        _flush_ranges_locked(cpu, cookie, fq)
        return
    cpu.ctrs.flushes_full += 1
    fq_flush_iotlb(cpu, cookie, CAUSE_FULL, fq.mod_mask)
    fq_ring_free_locked(cpu, cookie, fq)
    if cookie.wait_on_overrun:
        # Every flush that started before ours will finish, and with ours that is one more than any stamp here.
        while fq_full(fq) and not is_aborted(cpu):
            yield_core(cpu)
            fq_ring_free_locked(cpu, cookie, fq)
        if not is_aborted(cpu):
            return
        # All is being stopped, and nobody may finish a flush any longer: it comes to what the kernel does.
    if fq_full(fq):
        # The kernel's append wraps: the ring reads as empty, and all it held is lost with the new entry.
        cpu.ctrs.overruns += 1
        cpu.ctrs.overrun_iovas += fq.mod_mask + 1
        trace(cpu, EVENT_OVERRUN, fq.mod_mask + 1)


@slow
def _flush_early_locked(cpu: Any, cookie: Any, fq: Any) -> None:
    """What a policy may ask for before a ring is full."""
    if flush_by_range(cpu, cookie, fq):
        _flush_ranges_locked(cpu, cookie, fq)
        return
    cpu.ctrs.flushes_early += 1
    fq_flush_iotlb(cpu, cookie, CAUSE_EARLY, fq_depth(fq))
    fq_ring_free_locked(cpu, cookie, fq)


@inline
def _this_ring(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> Any:
    if cookie.qt == SINGLE_QUEUE:
        return deref(iova_fq, cookie.single_fq)
    return element(iova_fq, cookie.percpu_fq, ring_of(cpu, cookie, iova_pfn, pages))


@jit
def queue_iova(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> None:
    """Put an unmapped IOVA on the ring, to be freed after a flush."""
    # Orders the clearing of page-table entries before a flush by another CPU that frees this entry, and pairs with
    # smp_wmb() in iommu_dma_init_fq(), so that no half-made queue is seen.
    smp_mb()
    fq = _this_ring(cpu, cookie, iova_pfn, pages)
    around = enter_stage(cpu, STAGE_QUEUE_LOCK)
    spin_lock(cpu, fq.lock)
    leave_stage(cpu, around)
    charge(cpu, COST_QUEUE, 1)
    write_lines(cpu, address_of(fq, "head"), _HEAD_BYTES)
    # What other CPUs have flushed meanwhile makes room, often enough to spare a flush.
    fq_ring_free_locked(cpu, cookie, fq)
    if fq_full(fq):
        enter_stage(cpu, STAGE_FLUSH)
        _flush_full_ring_locked(cpu, cookie, fq)
        leave_stage(cpu, around)
    elif flush_before(cpu, cookie, fq, iova_pfn, pages):
        enter_stage(cpu, STAGE_FLUSH)
        _flush_early_locked(cpu, cookie, fq)
        leave_stage(cpu, around)
    depth = fq_depth(fq)
    fq.total_depth += depth
    fq.max_depth = max(fq.max_depth, depth + 1)
    fq.queued += 1
    entry = element(iova_fq_entry, fq.entries, fq.tail)
    write_lines(cpu, pointer_to(entry), _ENTRY_BYTES)
    entry.iova_pfn = iova_pfn
    entry.pages = pages
    entry.queued_at = now_ticks(cpu)
    entry.counter = read_once(cookie.fq_flush_start_cnt, "counter")
    # An entry is whole before it is one, should this CPU die here.
    barrier()
    fq_ring_add(fq)
    if flush_after(cpu, cookie, fq):
        enter_stage(cpu, STAGE_FLUSH)
        _flush_early_locked(cpu, cookie, fq)
        leave_stage(cpu, around)
        if fq.head == fq.tail:
            # Nothing of this ring waits for the timer any longer.
            spin_unlock(cpu, fq.lock)
            return
    spin_unlock(cpu, fq.lock)
    # Look before exchanging: the line is shared, and the timer is on most of the time.
    if read_once(cookie.fq_timer_on, "counter") == 0 and xchg(cookie.fq_timer_on, "counter", 1) == 0:
        add_timer(cpu, cookie.fq_timer, timeout_ns(cpu, cookie))
        trace(cpu, EVENT_TIMER_ARMED, cookie.fq_timer.due_ns)


@slow
def _init_ring(fq: Any, entries: int, size: int) -> None:
    fq.entries = entries
    fq.mod_mask = size - 1
    fq.head = fq.tail = 0


@slow
def iommu_dma_init_fq(cookie: Any, domain: Any, rings: int, entries: int) -> bool:
    """Set the queue up and publish it.

    Args:
        cookie: its options (`qt`, `fq_rings`, `fq_size`, `fq_timeout_ns`) are set.
        domain: the s390_domain that flushes.
        rings: memory for `fq_rings` of iova_fq; 0 when there was none.
        entries: memory for their entries; 0 when there was none.

    Returns:
        False when there was no memory: the caller falls back to strict.
    """
    if read_once(cookie, "fq_domain"):
        return True
    if rings == 0 or entries == 0:
        return False
    smp_store_release(cookie.fq_flush_start_cnt, "counter", 0)
    smp_store_release(cookie.fq_flush_finish_cnt, "counter", 0)
    if cookie.qt == SINGLE_QUEUE:
        _init_ring(deref(iova_fq, rings), entries, cookie.fq_size)
        cookie.single_fq = rings
    else:
        for i in range(cookie.fq_rings):
            ring_entries = entries + i * cookie.fq_size * _ENTRY_BYTES
            _init_ring(element(iova_fq, rings, i), ring_entries, cookie.fq_size)
        cookie.percpu_fq = rings
    write_once(cookie.fq_timer_on, "counter", 0)
    # The queue is whole before it is published: pairs with smp_mb() in queue_iova().
    smp_wmb()
    write_once(cookie, "fq_domain", pointer_to(domain))
    return True


@slow
def _drop_ring(cpu: Any, cookie: Any, fq: Any) -> int:
    dropped = 0
    while fq.head != fq.tail:
        entry = element(iova_fq_entry, fq.entries, fq.head)
        free_iova_fast(cpu, cookie.iovad, entry.iova_pfn, entry.pages)
        fq.head = (fq.head + 1) & fq.mod_mask
        dropped += 1
    return dropped


@slow
def iommu_dma_free_fq(cpu: Any, cookie: Any) -> int:
    """Stop the timer and drop what is queued, without a flush, when the domain goes. Returns how many."""
    if not cookie.fq_domain:
        return 0
    cookie.fq_timer.state = TIMER_IDLE
    dropped = 0
    for i in range(cookie.fq_rings):
        dropped += _drop_ring(cpu, cookie, _nth_ring(cookie, i))
    cookie.fq_domain = 0
    return dropped
