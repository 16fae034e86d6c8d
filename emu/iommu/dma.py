"""The DMA API as a driver calls it: map and unmap, single and scatter-gather (drivers/iommu/dma-iommu.c).

`dma_map` and `dma_unmap` go through the ops of the device: direct, the s390 API of old, or IOMMU-DMA, where an unmap
either flushes at once and frees the IOVA (strict) or puts it on a flush queue.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.domain import DMA_DIRECT, DMA_S390, STRICT
from emu.iommu.exposure import close_window
from emu.iommu.flush_queue import queue_iova
from emu.iommu.iova import DMA_32BIT_PFN, alloc_iova_fast, free_iova_fast
from emu.iommu.policy import flush_at_once
from emu.iommu.s390_iommu import (
    iommu_map_sg,
    s390_iommu_iotlb_sync,
    s390_iommu_iotlb_sync_map,
    s390_iommu_unmap_pages,
)
from emu.iommu.s390_legacy import s390_dma_map, s390_dma_unmap
from emu.iommu.stages import STAGE_ALLOCATOR, STAGE_QUEUE, STAGE_TABLES, enter_stage, leave_stage
from emu.native.atomics import read_once
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_MAP, COST_UNMAP
from emu.native.time import charge, now_ticks

DMA_MAPPING_ERROR = 0


@inline
def iommu_dma_alloc_iova(cpu: Any, domain: Any, pages: int) -> int:
    """Allocate what the device can reach, 32-bit addresses first until there are none left. Returns the pfn, or 0."""
    if domain.dma_limit_pfn >= DMA_32BIT_PFN and domain.pci_32bit_workaround:
        pfn = alloc_iova_fast(cpu, domain.cookie.iovad, pages, DMA_32BIT_PFN - 1, False)
        if pfn:
            return pfn
        domain.pci_32bit_workaround = 0
    return alloc_iova_fast(cpu, domain.cookie.iovad, pages, domain.dma_limit_pfn, True)


@jit
def _iommu_dma_map(cpu: Any, domain: Any, phys_pfn: int, pages: int, segments: int, nents: int) -> int:
    call = enter_stage(cpu, STAGE_ALLOCATOR)
    pfn = iommu_dma_alloc_iova(cpu, domain, pages)
    leave_stage(cpu, call)
    if pfn == 0:
        return DMA_MAPPING_ERROR
    enter_stage(cpu, STAGE_TABLES)
    is_mapped = iommu_map_sg(cpu, domain.s390, pfn, phys_pfn, pages, segments, nents)
    leave_stage(cpu, call)
    if not is_mapped:
        free_iova_fast(cpu, domain.cookie.iovad, pfn, pages)
        return DMA_MAPPING_ERROR
    if not s390_iommu_iotlb_sync_map(cpu, domain.s390, pfn, pages):
        _undo_map(cpu, domain, pfn, pages)
        return DMA_MAPPING_ERROR
    return pfn


@slow
def _undo_map(cpu: Any, domain: Any, pfn: int, pages: int) -> None:
    """Take back a mapping that the host has refused; nobody has used its addresses."""
    s390_iommu_unmap_pages(cpu, domain.s390, pfn, pages)
    s390_iommu_iotlb_sync(cpu, domain.s390, pfn, pages)
    free_iova_fast(cpu, domain.cookie.iovad, pfn, pages)


@jit
def _iommu_dma_unmap(cpu: Any, domain: Any, pfn: int, pages: int) -> None:
    queued = read_once(domain.cookie, "fq_domain") != 0
    if queued and not flush_at_once(cpu, domain.cookie, pfn, pages):
        call = enter_stage(cpu, STAGE_TABLES)
        s390_iommu_unmap_pages(cpu, domain.s390, pfn, pages)
        leave_stage(cpu, call)
        enter_stage(cpu, STAGE_QUEUE)
        queue_iova(cpu, domain.cookie, pfn, pages)
        leave_stage(cpu, call)
        # After smp_mb() in queue_iova(): whoever published the queue had set the type before.
        if read_once(domain, "type") == STRICT:
            _note_queued_while_strict(cpu)
        return
    since = now_ticks(cpu)
    call = enter_stage(cpu, STAGE_TABLES)
    s390_iommu_unmap_pages(cpu, domain.s390, pfn, pages)
    leave_stage(cpu, call)
    s390_iommu_iotlb_sync(cpu, domain.s390, pfn, pages)
    close_window(cpu, since, now_ticks(cpu), pages)
    enter_stage(cpu, STAGE_ALLOCATOR)
    free_iova_fast(cpu, domain.cookie.iovad, pfn, pages)
    leave_stage(cpu, call)
    cpu.ctrs.reclaimed += 1


@slow
def _note_queued_while_strict(cpu: Any) -> None:
    cpu.ctrs.queued_while_strict += 1


@jit
def dma_map(cpu: Any, domain: Any, phys_pfn: int, pages: int, segments: int, nents: int) -> int:
    """Map memory for a device.

    Args:
        cpu: context of the calling CPU.
        domain: the device's iommu_domain.
        phys_pfn: first page frame of the memory.
        pages: how many pages, over all segments.
        segments: address of an int32 array with the pages of each segment; not read when `nents` is 1.
        nents: segments of the scatter-gather list; 1 for a single range.

    Returns:
        The first page frame number that the device must use, or DMA_MAPPING_ERROR.
    """
    charge(cpu, COST_MAP, 1)
    if domain.dma_ops == DMA_DIRECT:
        pfn = phys_pfn
    elif domain.dma_ops == DMA_S390:
        pfn = s390_dma_map(cpu, domain.s390, domain.zdev, phys_pfn, pages, segments, nents)
    else:
        pfn = _iommu_dma_map(cpu, domain, phys_pfn, pages, segments, nents)
    if pfn:
        cpu.ctrs.maps += 1
    else:
        cpu.ctrs.map_failures += 1
    return pfn


@jit
def dma_unmap(cpu: Any, domain: Any, pfn: int, pages: int) -> None:
    """Unmap what dma_map returned, with the same number of pages."""
    charge(cpu, COST_UNMAP, 1)
    if domain.dma_ops == DMA_S390:
        s390_dma_unmap(cpu, domain.s390, domain.zdev, pfn, pages)
    elif domain.dma_ops != DMA_DIRECT:
        _iommu_dma_unmap(cpu, domain, pfn, pages)
    cpu.ctrs.unmaps += 1
