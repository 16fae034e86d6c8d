"""What waits in a flush queue's ring, found and taken out of the middle; compiled."""

from __future__ import annotations

from typing import Any

from emu.iommu.flush_queue import SINGLE_QUEUE, iova_fq, iova_fq_entry
from emu.iommu.iova import IOVA_RANGE_CACHE_MAX_SIZE, free_iova_fast, order_base_2
from emu.native.compile import slow
from emu.native.record import deref
from emu.oracle.pages import check_given_back

_RING_BYTES, _ENTRY_BYTES = iova_fq.itemsize, iova_fq_entry.itemsize


@slow
def ring_address(cookie: Any, i: int) -> int:
    """Address of a domain's i-th iova_fq."""
    return cookie.single_fq if cookie.qt == SINGLE_QUEUE else cookie.percpu_fq + i * _RING_BYTES


@slow
def _entry_address(fq: Any, i: int) -> int:
    return fq.entries + ((fq.head + i) & fq.mod_mask) * _ENTRY_BYTES


@slow
def _entries(fq: Any) -> int:
    return (fq.tail - fq.head) & fq.mod_mask


@slow
def ring_find(fq: Any, pfn: int) -> int:
    """Which entry, the oldest being 0, holds a pfn; -1 if none does."""
    for i in range(_entries(fq)):
        if deref(iova_fq_entry, _entry_address(fq, i)).iova_pfn == pfn:
            return i
    return -1


@slow
def ring_last(cookie: Any, fq: Any, pfn: int, pages: int) -> int:
    """The last entry that may be freed and shares a page with a range; -1 if none does."""
    found = -1
    for i in range(_entries(fq)):
        entry = deref(iova_fq_entry, _entry_address(fq, i))
        if entry.counter >= cookie.fq_flush_finish_cnt.counter:
            break
        if entry.iova_pfn < pfn + pages and pfn < entry.iova_pfn + entry.pages:
            found = i
    return found


@slow
def ring_has(fq: Any, order: int) -> int:
    """Whether what is queued would, when freed, serve or change an allocation of an order."""
    for i in range(_entries(fq)):
        freed = order_base_2(deref(iova_fq_entry, _entry_address(fq, i)).pages)
        if freed == order or freed >= IOVA_RANGE_CACHE_MAX_SIZE:
            return 1
    return 0


@slow
def ring_drop(cpu: Any, cookie: Any, fq: Any, i: int) -> None:
    """Take an entry out, its pages no longer in use; the others keep their order."""
    dropped = deref(iova_fq_entry, _entry_address(fq, i))
    if cookie.iovad.oracle:
        check_given_back(cpu, cookie.iovad.oracle, dropped.iova_pfn, dropped.pages)
    for j in range(i, 0, -1):
        to, of = deref(iova_fq_entry, _entry_address(fq, j)), deref(iova_fq_entry, _entry_address(fq, j - 1))
        to.iova_pfn = of.iova_pfn
        to.pages = of.pages
        to.counter = of.counter
        to.queued_at = of.queued_at
    fq.head = (fq.head + 1) & fq.mod_mask


@slow
def ring_free(cpu: Any, cookie: Any, fq: Any, longest: int) -> int:
    """fq_ring_free_locked() of at most so many entries; returns how many."""
    done = 0
    while fq.head != fq.tail and done < longest:
        entry = deref(iova_fq_entry, _entry_address(fq, 0))
        if entry.counter >= cookie.fq_flush_finish_cnt.counter:
            break
        free_iova_fast(cpu, cookie.iovad, entry.iova_pfn, entry.pages)
        fq.head = (fq.head + 1) & fq.mod_mask
        done += 1
    return done
