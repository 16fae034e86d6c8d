"""Before the first process, after the last, and while the load runs: making the domain, changing it, taking it down."""

from __future__ import annotations

from typing import Any

from emu.hypervisor.functions import function_of
from emu.hypervisor.service import forget_unmapped
from emu.hypervisor.state import hypervisor_t
from emu.iommu.domain import (
    DMA_DIRECT,
    DMA_IOMMU,
    DMA_S390,
    iommu_dma_init_domain,
    iommu_domain,
    iommu_domain_free,
)
from emu.iommu.flush_queue import fq_free_unreachable
from emu.iommu.group import iommu_group, iommu_group_store_type
from emu.iommu.io_pgtable import init_io_pgtable, invalidate_all
from emu.iommu.iova import free_iova_fast
from emu.iommu.s390_iommu import s390_iommu_unmap_pages
from emu.iommu.s390_legacy import reuse_lazy_locked
from emu.machine.context import SLOT_FAILED, SLOT_MAPPED, SLOT_STATE, control_t, cpu_t, slot_t, virtual_cpu_t
from emu.machine.ledger import work_for
from emu.native.bitmap import bitmap_clear
from emu.native.compile import entry, slow
from emu.native.record import deref, element, struct
from emu.native.virtual import end_fiber
from emu.oracle.pages import check_given_back, check_shadow, set_reach_ended

teardown_t = struct(
    first_slot="i8",
    slots="i8",
    live_pages="i8",
    live_iovas="i8",
    queued="i8",
    table_pages="i8",
    ranges_left="i8",
)
"""Of one function. `first_slot` and `slots` are given; the rest is found. `live_*`: still mapped when the load
stopped, or the driver was unbound; `queued`: unmapped, waiting for a flush; `table_pages`: pages that still
translate after the last unmap; `ranges_left`: allocated ranges after everything was given back, reserved ones not
counted."""


@entry
def init_machine(context: int) -> int:
    """Make each function's domain, whose driver is bound, and its shadow table ready; `context` is the supervisor's."""
    cpu = deref(cpu_t, context)
    hv = deref(hypervisor_t, cpu.hypervisor)
    for number in range(deref(control_t, cpu.control).functions):
        domain = element(iommu_domain, cpu.domain, number)
        init_io_pgtable(domain.s390.pgtable)
        iommu_dma_init_domain(cpu, domain)
        init_io_pgtable(function_of(hv, number).shadow)
        element(iommu_group, cpu.group, number).owner_cnt = 1
    return 0


@entry
def store_type(context: int, number: int, req_type: int) -> int:
    """Write a type to a function's sysfs, see iommu_group_store_type(); with no driver bound, CPUs and timer rest."""
    cpu = deref(cpu_t, context)
    work_for(cpu, number)
    return iommu_group_store_type(cpu, element(iommu_group, cpu.group, number), req_type)


@entry
def virtual_store_type(context: int) -> int:
    """The same, as a fiber: the first group's `requested` is the type, and becomes what the kernel answers."""
    cpu = deref(virtual_cpu_t, context)
    asked = deref(iommu_group, cpu.group)
    number = asked.requested_of
    work_for(cpu, number)
    group = element(iommu_group, cpu.group, number)
    asked.requested = iommu_group_store_type(cpu, group, asked.requested)
    cpu.finished = 1
    end_fiber(cpu)
    return 0


@slow
def _check_live(cpu: Any, domain: Any, report: Any) -> None:
    for i in range(report.slots):
        slot = element(slot_t, cpu.slots, report.first_slot + i)
        # Without an address its owner died while unmapping it.
        if (slot.state & SLOT_STATE) == SLOT_MAPPED and slot.pfn:
            check_shadow(cpu, domain.s390.oracle, slot.pfn, slot.pages)


@slow
def _unmap_live(cpu: Any, domain: Any, report: Any) -> None:
    for i in range(report.slots):
        slot = element(slot_t, cpu.slots, report.first_slot + i)
        if (slot.state & SLOT_STATE) != SLOT_MAPPED:
            continue
        # Its owner's unmap is still to come, and finds that there is nothing to do.
        slot.state = SLOT_FAILED
        if slot.pfn == 0:
            # Its owner died while unmapping it.
            continue
        report.live_iovas += 1
        if domain.dma_ops != DMA_DIRECT:
            s390_iommu_unmap_pages(cpu, domain.s390, slot.pfn, slot.pages)
            report.live_pages += slot.pages
        if domain.dma_ops == DMA_IOMMU:
            free_iova_fast(cpu, domain.cookie.iovad, slot.pfn, slot.pages)
        elif domain.dma_ops == DMA_S390:
            if domain.zdev.oracle:
                check_given_back(cpu, domain.zdev.oracle, slot.pfn, slot.pages)
            bitmap_clear(domain.zdev.iommu_bitmap, slot.pfn - domain.zdev.start_pfn, slot.pages)


@slow
def _unbind_driver(cpu: Any, report: Any) -> None:
    """Take the driver from its device while CPUs and timer rest: requests under way fail, nothing stays mapped.

    The device is quiet then, so what waits for a flush is out of its reach, and reusable.
    """
    domain = deref(iommu_domain, cpu.domain)
    set_reach_ended(domain.s390.oracle, 1)
    _unmap_live(cpu, domain, report)
    if deref(control_t, cpu.control).offline:
        # What the dead had mapped and not handed over yet, or not unmapped to the end.
        invalidate_all(domain.s390.pgtable, domain.s390.aperture_start_pfn, domain.s390.aperture_pages)
    hv = deref(hypervisor_t, cpu.hypervisor)
    forget_unmapped(cpu, hv, function_of(hv, cpu.function), domain.s390.aperture_start_pfn, domain.s390.aperture_pages)
    if domain.dma_ops == DMA_S390:
        reuse_lazy_locked(cpu, domain.zdev)
    else:
        fq_free_unreachable(cpu, domain.cookie)
    set_reach_ended(domain.s390.oracle, 0)
    deref(iommu_group, cpu.group).owner_cnt = 0


@entry
def unbind_driver(context: int, report_address: int) -> int:
    """Take the driver from its device while CPUs and timer rest."""
    _unbind_driver(deref(cpu_t, context), deref(teardown_t, report_address))
    return 0


@entry
def virtual_unbind_driver(context: int) -> int:
    """The same, as a fiber; the address of the report is in the group's `requested`."""
    cpu = deref(virtual_cpu_t, context)
    _unbind_driver(cpu, deref(teardown_t, deref(iommu_group, cpu.group).requested))
    cpu.finished = 1
    end_fiber(cpu)
    return 0


@entry
def teardown_machine(context: int, report_address: int) -> int:
    """Of each function: unmap what is live, drop the queue, empty the caches; afterwards nothing must be left.

    No flush is issued; `report_address` is that of a teardown_t for each.
    """
    cpu = deref(cpu_t, context)
    for number in range(deref(control_t, cpu.control).functions):
        work_for(cpu, number)
        _teardown(cpu, element(iommu_domain, cpu.domain, number), element(teardown_t, report_address, number))
    return 0


@slow
def _teardown(cpu: Any, domain: Any, report: Any) -> None:
    if domain.s390.oracle and domain.dma_ops != DMA_DIRECT:
        _check_live(cpu, domain, report)
    set_reach_ended(domain.s390.oracle, 1)
    _unmap_live(cpu, domain, report)
    iommu_domain_free(cpu, domain)
    report.queued = domain.remains.queued
    report.table_pages = domain.remains.table_pages
    report.ranges_left = domain.remains.ranges_left
