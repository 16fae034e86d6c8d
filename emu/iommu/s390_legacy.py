"""The DMA API that s390 had of its own up to Linux 6.6 (arch/s390/pci/pci_dma.c).

Addresses come from a bitmap whose pointer only advances. Lazily, an unmap clears the page-table entries and notes the
pages in a second bitmap; when the pointer has wrapped round, one global flush makes all of those usable again.
Strictly, every unmap is flushed and its pages are free at once.
"""

from __future__ import annotations

from errno import ENOMEM
from typing import Any

from emu.iommu.exposure import close_window
from emu.iommu.s390_iommu import (
    iommu_map_sg,
    refresh_for_resources,
    refresh_mapped,
    s390_iommu_flush_iotlb_all,
    s390_iommu_iotlb_sync,
    s390_iommu_unmap_pages,
)
from emu.iommu.stages import STAGE_ALLOCATOR, STAGE_TABLES, enter_stage, leave_stage
from emu.iommu.tracepoints import CAUSE_WRAP
from emu.native.bitmap import (
    bitmap_clear,
    bitmap_set,
    find_next_bit,
    find_next_zero_area,
    word_t,
)
from emu.native.compile import jit, slow
from emu.native.cost import COST_BITMAP_PAGE, COST_RECLAIM
from emu.native.lines import write_lines
from emu.native.lock import spin_lock, spin_unlock, spinlock_t
from emu.native.record import address_of, element, int64_t, struct
from emu.native.time import charge, now_ticks
from emu.oracle.pages import check_given_back, check_handed_out, check_shadow, note_undone

_BOUNDARY_PAGES = 1 << 20
_WORD_BYTES = int64_t.itemsize

zpci_dma = struct(
    lines=("iommu_bitmap_lock", "iommu_pages"),
    iommu_bitmap_lock=spinlock_t,
    next_bit="i8",
    lazy_pages="i8",
    lazy_iovas="i8",
    iommu_pages="i8",
    start_pfn="i8",
    strict="i8",
    iommu_bitmap="i8",
    lazy_bitmap="i8",
    unmapped_at="i8",
    oracle="i8",
    reuses_unflushed="i8",
)
"""`unmapped_at`: ticks of the last unmap of each page, for the exposure; `oracle` as in iova_domain;
`reuses_unflushed`: what was unmapped during a flush that makes room is reused after it."""


@jit
def _area_alloc(zdev: Any, start: int, pages: int) -> int:
    offset = find_next_zero_area(zdev.iommu_bitmap, zdev.iommu_pages, start, pages, _BOUNDARY_PAGES, zdev.start_pfn)
    if offset >= 0:
        bitmap_set(zdev.iommu_bitmap, offset, pages)
    return offset


@slow
def _close_windows_locked(cpu: Any, zdev: Any) -> None:
    flushed_at = now_ticks(cpu)
    page = find_next_bit(zdev.lazy_bitmap, zdev.iommu_pages, 0)
    while page < zdev.iommu_pages:
        close_window(cpu, element(int64_t, zdev.unmapped_at, page).value, flushed_at, 1)
        if zdev.oracle:
            check_given_back(cpu, zdev.oracle, zdev.start_pfn + page, 1)
        page = find_next_bit(zdev.lazy_bitmap, zdev.iommu_pages, page + 1)


@slow
def reclaim_lazy_locked(zdev: Any) -> None:
    """Make what is lazily unmapped usable again; a global flush has ended the reach into it, or the domain goes."""
    for i in range((zdev.iommu_pages + 31) >> 5):
        lazy = element(word_t, zdev.lazy_bitmap, i)
        used = element(word_t, zdev.iommu_bitmap, i)
        used.bits = used.bits & (lazy.bits ^ 0xFFFFFFFF)
        lazy.bits = 0
    zdev.lazy_pages = zdev.lazy_iovas = 0


@slow
def reuse_lazy_locked(cpu: Any, zdev: Any) -> None:
    """The reach into what is lazily unmapped has just ended: note it, and use it again."""
    charge(cpu, COST_RECLAIM, zdev.lazy_iovas)
    _close_windows_locked(cpu, zdev)
    cpu.ctrs.reclaimed += zdev.lazy_iovas
    reclaim_lazy_locked(zdev)


@slow
def _flush_before_reuse_locked(cpu: Any, domain: Any, zdev: Any) -> bool:
    """A global flush before addresses are used again; False when it fails, and none may be."""
    cpu.ctrs.flushes_wrap += 1
    if s390_iommu_flush_iotlb_all(cpu, domain, CAUSE_WRAP, zdev.lazy_iovas) != 0:
        return False
    reuse_lazy_locked(cpu, zdev)
    return True


@slow
def _dma_alloc_address(cpu: Any, domain: Any, zdev: Any, pages: int) -> int:
    """First pfn of a free range, or 0."""
    spin_lock(cpu, zdev.iommu_bitmap_lock)
    charge(cpu, COST_BITMAP_PAGE, pages)
    write_lines(cpu, address_of(zdev, "next_bit"), _WORD_BYTES)
    write_lines(cpu, zdev.iommu_bitmap + (zdev.next_bit >> 3), 1 + (pages >> 3))
    offset = _area_alloc(zdev, zdev.next_bit, pages)
    if offset < 0 and (zdev.strict or _flush_before_reuse_locked(cpu, domain, zdev)):
        offset = _area_alloc(zdev, 0, pages)
    if offset >= 0:
        zdev.next_bit = offset + pages
    spin_unlock(cpu, zdev.iommu_bitmap_lock)
    return zdev.start_pfn + offset if offset >= 0 else 0


@slow
def _dma_free_address(cpu: Any, zdev: Any, pfn: int, pages: int, iovas: int) -> None:
    """Give addresses back, at once or after the next wrap-around; `iovas` is 0 for a map that was undone."""
    offset = pfn - zdev.start_pfn
    spin_lock(cpu, zdev.iommu_bitmap_lock)
    charge(cpu, COST_BITMAP_PAGE, pages)
    write_lines(cpu, (zdev.iommu_bitmap if zdev.strict else zdev.lazy_bitmap) + (offset >> 3), 1 + (pages >> 3))
    if zdev.strict:
        bitmap_clear(zdev.iommu_bitmap, offset, pages)
        cpu.ctrs.reclaimed += iovas
    else:
        bitmap_set(zdev.lazy_bitmap, offset, pages)
        write_lines(cpu, address_of(zdev, "lazy_pages"), _WORD_BYTES)
        zdev.lazy_pages += pages
        zdev.lazy_iovas += iovas
        unmapped_at = now_ticks(cpu)
        write_lines(cpu, zdev.unmapped_at + offset * _WORD_BYTES, pages * _WORD_BYTES)
        for page in range(offset, offset + pages):
            element(int64_t, zdev.unmapped_at, page).value = unmapped_at
    spin_unlock(cpu, zdev.iommu_bitmap_lock)


@slow
def _take_back_address(cpu: Any, zdev: Any, pfn: int, pages: int) -> None:
    """A map has failed; as in the kernel, nothing is flushed for an address that no driver has been told."""
    if zdev.strict and zdev.oracle:
        note_undone(zdev.oracle, pfn, pages)
    _dma_free_address(cpu, zdev, pfn, pages, 0)


@slow
def _make_room(cpu: Any, domain: Any, zdev: Any) -> bool:
    """The host is out of resources: lazily, a global flush lets it drop what was unmapped, and makes that usable.

    Linux takes the lock only after the flush, and makes usable also what another CPU has unmapped while it went on,
    which the flush may not have seen: `reuses_unflushed`. Here the lock is held, as when addresses wrap round.
    """
    if zdev.strict:
        return False
    if zdev.reuses_unflushed:
        error = refresh_for_resources(cpu, domain)
        spin_lock(cpu, zdev.iommu_bitmap_lock)
    else:
        spin_lock(cpu, zdev.iommu_bitmap_lock)
        error = refresh_for_resources(cpu, domain)
    if error == 0:
        reuse_lazy_locked(cpu, zdev)
    spin_unlock(cpu, zdev.iommu_bitmap_lock)
    return error == 0


@slow
def s390_dma_map(cpu: Any, domain: Any, zdev: Any, phys_pfn: int, pages: int, segments: int, nents: int) -> int:
    """Map a range, or a scatter-gather list into one range; arguments as dma_map(). Returns the pfn, or 0."""
    call = enter_stage(cpu, STAGE_ALLOCATOR)
    pfn = _dma_alloc_address(cpu, domain, zdev, pages)
    leave_stage(cpu, call)
    if pfn == 0:
        return 0
    if zdev.oracle:
        check_handed_out(cpu, zdev.oracle, pfn, pages)
    enter_stage(cpu, STAGE_TABLES)
    is_mapped = iommu_map_sg(cpu, domain, pfn, phys_pfn, pages, segments, nents)
    leave_stage(cpu, call)
    if not is_mapped:
        _take_back_address(cpu, zdev, pfn, pages)
        return 0
    error = refresh_mapped(cpu, domain, pfn, pages) if domain.tlb_refresh else 0
    if error and not (error == -ENOMEM and _make_room(cpu, domain, zdev)):
        s390_iommu_unmap_pages(cpu, domain, pfn, pages)
        _take_back_address(cpu, zdev, pfn, pages)
        return 0
    if zdev.oracle:
        check_shadow(cpu, zdev.oracle, pfn, pages)
    return pfn


@slow
def s390_dma_unmap(cpu: Any, domain: Any, zdev: Any, pfn: int, pages: int) -> None:
    """Unmap what s390_dma_map returned."""
    since = now_ticks(cpu)
    call = enter_stage(cpu, STAGE_TABLES)
    s390_iommu_unmap_pages(cpu, domain, pfn, pages)
    leave_stage(cpu, call)
    if zdev.strict:
        s390_iommu_iotlb_sync(cpu, domain, pfn, pages)
        close_window(cpu, since, now_ticks(cpu), pages)
        if zdev.oracle:
            check_given_back(cpu, zdev.oracle, pfn, pages)
    _dma_free_address(cpu, zdev, pfn, pages, 1)
