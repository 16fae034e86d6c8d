"""Domains: which scheme a device's DMA goes through, and how a domain of that type is made.

The types are those of sysfs `iommu_group/type`, plus the single queue, which Linux has no type for (there
`shadow_on_flush` picks it), and the two modes of the DMA API that s390 had before.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.flush_queue import (
    PERCPU_QUEUE,
    SINGLE_QUEUE,
    iommu_dma_cookie,
    iommu_dma_free_fq,
    iommu_dma_init_fq,
)
from emu.iommu.io_pgtable import count_valid
from emu.iommu.iova import free_all_cached_iovas, init_iova_domain, put_iova_domain, reserve_iova
from emu.iommu.s390_iommu import s390_domain, s390_iommu_capable_of_deferred_flush
from emu.iommu.s390_legacy import reclaim_lazy_locked, zpci_dma
from emu.native.atomics import int64_t
from emu.native.bitmap import find_next_bit
from emu.native.compile import jit, slow
from emu.native.record import address_of, element, struct
from emu.oracle.pages import forget_pages, set_reach_ended

IDENTITY, STRICT, PERCPU_FQ, SINGLE_FQ, S390_STRICT, S390_LAZY = range(6)

DOMAIN_TYPES = {
    "DMA": STRICT,
    "DMA-FQ": PERCPU_FQ,
    "DMA-SQ": SINGLE_FQ,
    "s390-lazy": S390_LAZY,
    "s390-strict": S390_STRICT,
    "identity": IDENTITY,
}
"""Names that users write."""

DMA_DIRECT, DMA_IOMMU, DMA_S390 = range(3)
"""Which dma_map_ops a device has."""

FQ_DEFAULTS = {PERCPU_FQ: (256, 10), SINGLE_FQ: (32768, 1000)}
"""Entries and timeout in ms of each kind of queue (IOVA_DEFAULT_FQ_*, IOVA_SINGLE_FQ_*)."""

FQ_WARNING = "iova flush queue initialization failed"
"""What the kernel says before it falls back to strict."""

S390_TYPES = (S390_STRICT, S390_LAZY)
"""Modes of another DMA API, with memory of their own: no domain changes into one of them, or out of it."""

fq_options = struct(rings="i8", fq_size="i8", fq_timeout_ns="i8")
"""What a queue of one kind would have: how many rings, of what size and timeout; a size of 0 says that there is no
memory for its rings."""

domain_remains = struct(queued="i8", table_pages="i8", ranges_left="i8")
"""What was left when domains went: `queued` IOVAs that waited for a flush; `table_pages` that still translated;
`ranges_left` still allocated after everything was given back, reserved ones not counted."""

iommu_domain = struct(
    type="i8",
    wanted_type="i8",
    dma_ops="i8",
    fq_init_failed="i8",
    dma_limit_pfn="i8",
    pci_32bit_workaround="i8",
    reserved="i8",
    reserved_count="i8",
    rings="i8",
    ring_entries="i8",
    percpu_options=fq_options,
    single_options=fq_options,
    remains=domain_remains,
    cookie=iommu_dma_cookie,
    s390=s390_domain,
    zdev=zpci_dma,
)
"""`reserved`: array of first and last pfn of ranges never handed out; `rings`, `ring_entries`: memory for a queue of
either kind, 0 where there is none; `dma_limit_pfn`: the highest pfn that the device can reach; `wanted_type`: the type
before any fall-back."""


@jit
def is_deferred(domain_type: int) -> bool:
    """Whether a type has a queue."""
    return domain_type in (PERCPU_FQ, SINGLE_FQ)


@slow
def _iommu_dma_init_options(domain: Any, domain_type: int) -> None:
    """Decide the kind of queue and its size and timeout; as on the list, what is not for each CPU is single."""
    cookie = domain.cookie
    if domain_type == PERCPU_FQ:
        cookie.qt = PERCPU_QUEUE
        cookie.fq_rings = domain.percpu_options.rings
        cookie.fq_size = domain.percpu_options.fq_size
        cookie.fq_timeout_ns = domain.percpu_options.fq_timeout_ns
    else:
        cookie.qt = SINGLE_QUEUE
        cookie.fq_rings = domain.single_options.rings
        cookie.fq_size = domain.single_options.fq_size
        cookie.fq_timeout_ns = domain.single_options.fq_timeout_ns


@slow
def iommu_domain_init_fq(domain: Any, domain_type: int) -> bool:
    """Give the domain the queue of a type, published when it is whole; False, and `fq_init_failed`, without memory."""
    _iommu_dma_init_options(domain, domain_type)
    rings = domain.rings if domain.cookie.fq_size else 0
    if iommu_dma_init_fq(domain.cookie, domain.s390, rings, domain.ring_entries):
        return True
    domain.fq_init_failed = 1
    return False


@slow
def iommu_dma_init_domain(cpu: Any, domain: Any) -> None:
    """Make a domain of `wanted_type` ready; with a queue, or strict if that cannot be set up. Its table is empty."""
    domain.type = domain.wanted_type
    if domain.type == IDENTITY:
        domain.dma_ops = DMA_DIRECT
        return
    if domain.type in S390_TYPES:
        domain.dma_ops = DMA_S390
        domain.zdev.strict = domain.type == S390_STRICT
        return
    domain.dma_ops = DMA_IOMMU
    init_iova_domain(domain.cookie.iovad, max(1, domain.s390.aperture_start_pfn))
    for i in range(domain.reserved_count):
        first = element(int64_t, domain.reserved, 2 * i).value
        last = element(int64_t, domain.reserved, 2 * i + 1).value
        reserve_iova(cpu, domain.cookie.iovad, first, last)
    if is_deferred(domain.type) and not s390_iommu_capable_of_deferred_flush(domain.s390):
        domain.type = STRICT
    if is_deferred(domain.type) and not iommu_domain_init_fq(domain, domain.type):
        domain.type = STRICT


@jit
def _has_another_queue(domain: Any) -> bool:
    if not domain.cookie.fq_domain:
        return is_deferred(domain.type)
    return domain.type != (SINGLE_FQ if domain.cookie.qt == SINGLE_QUEUE else PERCPU_FQ)


@slow
def iommu_domain_free(cpu: Any, domain: Any) -> None:
    """Take a domain down in which nothing is mapped any longer, and add what is left of it to `remains`.

    CPUs and timer rest. No flush is issued.
    """
    remains = domain.remains
    if domain.dma_ops == DMA_DIRECT:
        return
    remains.table_pages += count_valid(
        address_of(domain.s390, "pgtable"), domain.s390.aperture_start_pfn, domain.s390.aperture_pages
    )
    if domain.dma_ops == DMA_S390:
        remains.queued += domain.zdev.lazy_iovas
        reclaim_lazy_locked(domain.zdev)
        if find_next_bit(domain.zdev.iommu_bitmap, domain.zdev.iommu_pages, 0) < domain.zdev.iommu_pages:
            remains.ranges_left += 1
        return
    if _has_another_queue(domain):
        cpu.ctrs.queues_of_another_type += 1
    cookie = domain.cookie
    remains.queued += iommu_dma_free_fq(cpu, cookie)
    free_all_cached_iovas(cpu, cookie.iovad)
    remains.ranges_left += cookie.iovad.nodes_used - domain.reserved_count


@slow
def iommu_domain_renew(cpu: Any, domain: Any, domain_type: int) -> None:
    """Take a domain down and make one of another type of its memory; its tables stay, empty."""
    set_reach_ended(domain.s390.oracle, 1)
    iommu_domain_free(cpu, domain)
    set_reach_ended(domain.s390.oracle, 0)
    if domain.dma_ops == DMA_IOMMU:
        iovad = domain.cookie.iovad
        put_iova_domain(cpu, iovad)
        if iovad.oracle:
            # What overruns had lost is free again: the new address space knows nothing of it.
            forget_pages(iovad.oracle)
    domain.wanted_type = domain_type
    iommu_dma_init_domain(cpu, domain)
