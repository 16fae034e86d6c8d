"""A device's IOTLB: a small cache of translations, filled as the device asks and emptied by flushes.

It is filled from the table that the hardware walks: the hypervisor's shadow, or the guest's own where nothing is
shadowed. Only its device fills it; whoever serves a flush takes entries out of it meanwhile. So after a fill the
device looks whether it was invalidated since before the walk, and then keeps the entry out.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.io_pgtable import ZPCI_PTE_INVALID, io_pgtable, iova_to_phys, pte_valid
from emu.native.atomics import fetch_add, read_once, smp_load_acquire, smp_mb, write_once
from emu.native.compile import jit, slow
from emu.native.record import address_of, deref, element, struct

IOTLB_WAYS = 4
IOTLB_SETS = 64
IOTLB_ENTRIES = IOTLB_WAYS * IOTLB_SETS

iotlb_entry_t = struct(tag="i8", pte="i8")
"""`tag`: the page frame number plus 1, or 0."""

iotlb_t = struct(
    lines=("invalidations", "hits", "entries"),
    invalidations="i8",
    hits="i8",
    fills="i8",
    entries=(iotlb_entry_t, (IOTLB_ENTRIES,)),
)
"""Of one device. `invalidations`: flushes that have reached it; `fills` also chooses the way that is replaced next."""


@jit
def translate(hv: Any, function: Any, iotlb: Any, pfn: int) -> int:
    """The entry by which a device's access to a page goes, from its IOTLB or the table; invalid: a fault."""
    entries = address_of(iotlb, "entries")
    first = (pfn & (IOTLB_SETS - 1)) * IOTLB_WAYS
    for way in range(IOTLB_WAYS):
        entry = element(iotlb_entry_t, entries, first + way)
        if smp_load_acquire(entry, "tag") == pfn + 1:
            iotlb.hits += 1
            return entry.pte
    victim = element(iotlb_entry_t, entries, first + (iotlb.fills & (IOTLB_WAYS - 1)))
    return _walk_and_fill(hv, function, iotlb, victim, pfn)


@slow
def _walk_and_fill(hv: Any, function: Any, iotlb: Any, entry: Any, pfn: int) -> int:
    # Acquire: the table is walked after it. Pairs with the increment in invalidate_iotlbs().
    invalidations = smp_load_acquire(iotlb, "invalidations")
    if hv.shadows:
        pte = iova_to_phys(function.shadow, pfn)
    else:
        pte = iova_to_phys(deref(io_pgtable, function.guest_table), pfn)
    if not pte_valid(pte):
        return ZPCI_PTE_INVALID
    iotlb.fills += 1
    write_once(entry, "pte", pte)
    write_once(entry, "tag", pfn + 1)
    # Either the flush finds this entry, or it is seen here: pairs with the increment in invalidate_iotlbs().
    smp_mb()
    if read_once(iotlb, "invalidations") != invalidations:
        write_once(entry, "tag", 0)
    return pte


@slow
def invalidate_iotlbs(function: Any, start_pfn: int, pages: int) -> None:
    """A flush reaches every device of its function; the tables are up to date already."""
    for i in range(function.devices):
        iotlb = element(iotlb_t, function.iotlbs, i)
        # Full barrier: pairs with those in _walk_and_fill().
        fetch_add(iotlb, "invalidations", 1)
        entries = address_of(iotlb, "entries")
        if pages >= IOTLB_SETS:
            for k in range(IOTLB_ENTRIES):
                _drop_if_in(element(iotlb_entry_t, entries, k), start_pfn, pages)
            continue
        for pfn in range(start_pfn, start_pfn + pages):
            first = (pfn & (IOTLB_SETS - 1)) * IOTLB_WAYS
            for k in range(first, first + IOTLB_WAYS):
                _drop_if_in(element(iotlb_entry_t, entries, k), pfn, 1)


@jit
def _drop_if_in(entry: Any, start_pfn: int, pages: int) -> None:
    tag = read_once(entry, "tag")
    # What the device puts in meanwhile may be lost with it, as in any cache.
    if start_pfn < tag <= start_pfn + pages:
        write_once(entry, "tag", 0)
