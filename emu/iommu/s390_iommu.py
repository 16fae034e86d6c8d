"""The s390 IOMMU driver (drivers/iommu/s390-iommu.c): page-table updates and the RPCITs that tell the hypervisor.

Every other IOMMU in emu is this one with another cost of its flushes.
"""

from __future__ import annotations

from errno import ENOMEM
from typing import Any

from emu.iommu.io_pgtable import NO_PTE, PAGE_SHIFT, ZPCI_PTE_INVALID, io_pgtable, pte_valid, set_pte
from emu.iommu.pci_insn import zpci_refresh_trans
from emu.iommu.tracepoints import CAUSE_NO_RESOURCES, CAUSE_SHIFT, EVENT_FLUSH, EVENT_FLUSHED, trace
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_MAP_PAGE, COST_UNMAP_PAGE
from emu.native.lines import write_lines
from emu.native.record import element, int64_t, struct
from emu.native.time import charge
from emu.oracle.findings import MAPPED_OVER, UNMAPPED_TWICE, note_violation
from emu.oracle.pages import check_shadow, note_unmapped

PCI_FUNC_TYPE_ISM = 5
"""Internal Shared Memory (SMC-D): a device that looks into the translation tables itself when it sees an RPCIT."""

s390_domain = struct(
    pgtable=io_pgtable,
    aperture_start_pfn="i8",
    aperture_pages="i8",
    tlb_refresh="i8",
    pft="i8",
    fh="i8",
    oracle="i8",
)
"""`tlb_refresh`: the hypervisor shadows the table and must be told of new mappings too; `pft`: type of the PCI
function, 0 for any but PCI_FUNC_TYPE_ISM; `fh`: its handle, as a domain has one function here; `oracle`: address of
what watches the run, or 0."""

_PTE_BYTES = int64_t.itemsize

int32_t = struct(value="i4")
"""Pages of one scatter-gather segment."""


@inline
def s390_iommu_capable_of_deferred_flush(domain: Any) -> bool:
    """Whether the device may have a flush queue (IOMMU_CAP_DEFERRED_FLUSH): global flushes break an ISM device."""
    return domain.pft != PCI_FUNC_TYPE_ISM


@inline
def _write_entries(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> None:
    """Take the cache lines of the entries; tables stand for them in the order of their addresses."""
    first = domain.pgtable.page_tables + (iova_pfn - domain.aperture_start_pfn) * _PTE_BYTES
    write_lines(cpu, first, pages * _PTE_BYTES)


@jit
def s390_iommu_map_pages(cpu: Any, domain: Any, iova_pfn: int, phys_pfn: int, pages: int) -> bool:
    """Enter a physically contiguous range; False when there is no memory for tables, then nothing is mapped."""
    for i in range(pages):
        old = set_pte(domain.pgtable, cpu.spares, iova_pfn + i, (phys_pfn + i) << PAGE_SHIFT)
        if old == NO_PTE:
            _invalidate_trans(cpu, domain, iova_pfn, i)
            return False
        if pte_valid(old):
            note_violation(cpu, MAPPED_OVER, iova_pfn + i, ZPCI_PTE_INVALID, old)
    cpu.ctrs.mapped_pages += pages
    charge(cpu, COST_MAP_PAGE, pages)
    _write_entries(cpu, domain, iova_pfn, pages)
    return True


@inline
def _invalidate_trans(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> None:
    for i in range(pages):
        old = set_pte(domain.pgtable, cpu.spares, iova_pfn + i, ZPCI_PTE_INVALID)
        if not pte_valid(old):
            note_violation(cpu, UNMAPPED_TWICE, iova_pfn + i, 0, old)


@jit
def s390_iommu_unmap_pages(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> None:
    """Invalidate a range; the hypervisor does not know yet."""
    _invalidate_trans(cpu, domain, iova_pfn, pages)
    if domain.oracle:
        note_unmapped(cpu, domain.oracle, iova_pfn, pages)
    cpu.ctrs.unmapped_pages += pages
    charge(cpu, COST_UNMAP_PAGE, pages)
    _write_entries(cpu, domain, iova_pfn, pages)


@inline
def iommu_map_sg(cpu: Any, domain: Any, iova_pfn: int, phys_pfn: int, pages: int, segments: int, nents: int) -> bool:
    """Enter a scatter-gather list into adjacent IOVAs; False, and nothing mapped, when a table cannot be made.

    The segments of a list lie apart: each starts where twice the pages before it would end.
    """
    if nents <= 1:
        return s390_iommu_map_pages(cpu, domain, iova_pfn, phys_pfn, pages)
    return _map_segments(cpu, domain, iova_pfn, phys_pfn, segments, nents)


@slow
def _map_segments(cpu: Any, domain: Any, iova_pfn: int, phys_pfn: int, segments: int, nents: int) -> bool:
    done = 0
    for i in range(nents):
        length = element(int32_t, segments, i).value
        if not s390_iommu_map_pages(cpu, domain, iova_pfn + done, phys_pfn + 2 * done, length):
            if done:
                s390_iommu_unmap_pages(cpu, domain, iova_pfn, done)
                s390_iommu_iotlb_sync(cpu, domain, iova_pfn, done)
            return False
        done += length
    return True


@slow
def s390_iommu_flush_iotlb_all(cpu: Any, domain: Any, cause: int, waiting: int) -> int:
    """Global RPCIT over the aperture. Returns 0 or an errno, which a flush queue does not look at.

    Args:
        cpu: context of the calling CPU.
        domain: the s390_domain.
        cause: CAUSE_*, for the log alone.
        waiting: IOVAs that wait for it, for the log too.
    """
    cpu.ctrs.global_rpcits += 1
    trace(cpu, EVENT_FLUSH, cause << CAUSE_SHIFT | int(waiting))
    error = zpci_refresh_trans(cpu, domain.fh, domain.aperture_start_pfn, domain.aperture_pages, True)
    trace(cpu, EVENT_FLUSHED, 0)
    return error


@slow
def s390_iommu_iotlb_sync(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> int:
    """RPCIT of a range just unmapped. Returns 0 or an errno, which an unmap does not look at."""
    cpu.ctrs.sync_rpcits += 1
    return zpci_refresh_trans(cpu, domain.fh, iova_pfn, pages, False)


@inline
def s390_iommu_iotlb_sync_map(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> bool:
    """RPCIT of a range just mapped, where the hypervisor shadows the table; False when that fails, and so the map."""
    if not domain.tlb_refresh:
        return True
    error = refresh_mapped(cpu, domain, iova_pfn, pages)
    if error == -ENOMEM:
        # Lets the hypervisor discover invalidated entries and drop them; it sees the new ones at the same time.
        error = refresh_for_resources(cpu, domain)
    if domain.oracle and error == 0:
        check_shadow(cpu, domain.oracle, iova_pfn, pages)
    return error == 0


@inline
def refresh_mapped(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> int:
    """Range RPCIT after a map. Returns 0, or -ENOMEM when the host is out of resources, or another errno."""
    cpu.ctrs.sync_map_rpcits += 1
    return zpci_refresh_trans(cpu, domain.fh, iova_pfn, pages, False)


@slow
def refresh_for_resources(cpu: Any, domain: Any) -> int:
    """Global RPCIT to make room in the host, which the kernel does not count among its Global RPCITs.

    Returns 0 when all is mapped in the host now, or an errno.
    """
    cpu.ctrs.flushes_no_resources += 1
    trace(cpu, EVENT_FLUSH, CAUSE_NO_RESOURCES << CAUSE_SHIFT)
    error = zpci_refresh_trans(cpu, domain.fh, domain.aperture_start_pfn, domain.aperture_pages, True)
    trace(cpu, EVENT_FLUSHED, 0)
    return error
