"""Domains: which scheme a device's DMA goes through, and how a domain of that type is made.

The types are those of sysfs `iommu_group/type`, plus the single queue, which Linux has no type for (there
`shadow_on_flush` picks it), and the two modes of the DMA API that s390 had before.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.flush_queue import iommu_dma_cookie, iommu_dma_init_fq
from emu.iommu.io_pgtable import init_io_pgtable
from emu.iommu.iova import init_iova_domain, reserve_iova
from emu.iommu.s390_iommu import s390_domain, s390_iommu_capable_of_deferred_flush
from emu.iommu.s390_legacy import zpci_dma
from emu.native.atomics import int64_t
from emu.native.compile import jit, slow
from emu.native.record import element, struct

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
    cookie=iommu_dma_cookie,
    s390=s390_domain,
    zdev=zpci_dma,
)
"""`reserved`: array of first and last pfn of ranges never handed out; `rings`, `ring_entries`: memory for the queue;
`dma_limit_pfn`: the highest pfn that the device can reach; `wanted_type`: the type before any fall-back."""


@jit
def _is_deferred(domain_type: int) -> bool:
    return domain_type in (PERCPU_FQ, SINGLE_FQ)


@slow
def iommu_dma_init_domain(cpu: Any, domain: Any) -> None:
    """Make a domain of `wanted_type` ready; with a queue, or strict and `fq_init_failed` if that cannot be set up."""
    init_io_pgtable(domain.s390.pgtable)
    domain.type = domain.wanted_type
    if domain.type == IDENTITY:
        domain.dma_ops = DMA_DIRECT
        return
    if domain.type in (S390_STRICT, S390_LAZY):
        domain.dma_ops = DMA_S390
        domain.zdev.strict = domain.type == S390_STRICT
        return
    domain.dma_ops = DMA_IOMMU
    init_iova_domain(domain.cookie.iovad, max(1, domain.s390.aperture_start_pfn))
    for i in range(domain.reserved_count):
        first = element(int64_t, domain.reserved, 2 * i).value
        last = element(int64_t, domain.reserved, 2 * i + 1).value
        reserve_iova(cpu, domain.cookie.iovad, first, last)
    if _is_deferred(domain.type) and not s390_iommu_capable_of_deferred_flush(domain.s390):
        domain.type = STRICT
    if _is_deferred(domain.type) and not iommu_dma_init_fq(
        domain.cookie, domain.s390, domain.rings, domain.ring_entries
    ):
        domain.fq_init_failed = 1
        domain.type = STRICT
