"""Before the first process and after the last: making the domain, and taking it down with everything accounted for."""

from __future__ import annotations

from typing import Any

from emu.hypervisor.state import hypervisor_t
from emu.iommu.domain import DMA_DIRECT, DMA_IOMMU, DMA_S390, iommu_dma_init_domain, iommu_domain
from emu.iommu.flush_queue import iommu_dma_free_fq
from emu.iommu.io_pgtable import count_valid, init_io_pgtable
from emu.iommu.iova import free_all_cached_iovas, free_iova_fast
from emu.iommu.s390_iommu import s390_iommu_unmap_pages
from emu.iommu.s390_legacy import reclaim_lazy_locked
from emu.machine.context import SLOT_FREE, SLOT_MAPPED, SLOT_STATE, cpu_t, slot_t
from emu.native.bitmap import bitmap_clear, find_next_bit
from emu.native.compile import entry, slow
from emu.native.record import address_of, deref, element, struct

teardown_t = struct(
    slots="i8",
    live_pages="i8",
    live_iovas="i8",
    queued="i8",
    table_pages="i8",
    ranges_left="i8",
)
"""`slots` is given; the rest is found. `live_*`: still mapped when the load stopped; `queued`: unmapped, waiting for a
flush; `table_pages`: pages that still translate after the last unmap; `ranges_left`: allocated ranges after everything
was given back, reserved ones not counted."""


@entry
def init_machine(context: int) -> int:
    """Make the domain and the shadow table ready; `context` is the supervisor's."""
    cpu = deref(cpu_t, context)
    domain = deref(iommu_domain, cpu.domain)
    iommu_dma_init_domain(cpu, domain)
    init_io_pgtable(deref(hypervisor_t, cpu.hypervisor).shadow)
    return 0


@slow
def _unmap_live(cpu: Any, domain: Any, report: Any) -> None:
    for i in range(report.slots):
        slot = element(slot_t, cpu.slots, i)
        if (slot.state & SLOT_STATE) != SLOT_MAPPED:
            continue
        slot.state = SLOT_FREE
        report.live_iovas += 1
        if domain.dma_ops != DMA_DIRECT:
            s390_iommu_unmap_pages(cpu, domain.s390, slot.pfn, slot.pages)
            report.live_pages += slot.pages
        if domain.dma_ops == DMA_IOMMU:
            free_iova_fast(cpu, domain.cookie.iovad, slot.pfn, slot.pages)
        elif domain.dma_ops == DMA_S390:
            bitmap_clear(domain.zdev.iommu_bitmap, slot.pfn - domain.zdev.start_pfn, slot.pages)


@entry
def teardown_machine(context: int, report_address: int) -> int:
    """Unmap what is live, drop the queue, empty the caches; afterwards nothing must be left. No flush is issued."""
    cpu = deref(cpu_t, context)
    domain = deref(iommu_domain, cpu.domain)
    report = deref(teardown_t, report_address)
    _unmap_live(cpu, domain, report)
    if domain.dma_ops == DMA_IOMMU:
        report.queued = iommu_dma_free_fq(cpu, domain.cookie)
        free_all_cached_iovas(cpu, domain.cookie.iovad)
        report.ranges_left = domain.cookie.iovad.nodes_used - domain.reserved_count
    elif domain.dma_ops == DMA_S390:
        report.queued = domain.zdev.lazy_iovas
        reclaim_lazy_locked(cpu, domain.zdev)
        if find_next_bit(domain.zdev.iommu_bitmap, domain.zdev.iommu_pages, 0) < domain.zdev.iommu_pages:
            report.ranges_left = 1
    if domain.dma_ops != DMA_DIRECT:
        table = address_of(domain.s390, "pgtable")
        report.table_pages = count_valid(table, domain.s390.aperture_start_pfn, domain.s390.aperture_pages)
    return 0
