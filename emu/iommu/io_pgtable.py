"""I/O translation tables as s390 has them (arch/s390/include/asm/pci_dma.h): region, segment and page table.

11, 11 and 8 bits of the page frame number select an entry in each. Tables are made on demand and stay until the
domain goes; entries of upper tables are installed by compare-and-swap, so that of two CPUs that miss the same table
one wins and the other keeps its table for the next time. Page-table entries are exchanged whole, so that a reader
(the hypervisor) never sees half of one. The shadow table of a hypervisor has the same format.
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import cmpxchg, fetch_add, int64_t, smp_load_acquire, xchg
from emu.native.compile import inline, jit, slow
from emu.native.record import deref, element, struct

PAGE_SHIFT = 12
ZPCI_TABLE_BITS = 11
ZPCI_TABLE_ENTRIES = 1 << ZPCI_TABLE_BITS
ZPCI_TABLE_SIZE = ZPCI_TABLE_ENTRIES * 8
ZPCI_PT_BITS = 8
ZPCI_PT_ENTRIES = 1 << ZPCI_PT_BITS
ZPCI_PT_SIZE = ZPCI_PT_ENTRIES * 8

ZPCI_TABLE_INVALID = 0x20
ZPCI_PTE_INVALID = 0x400
ZPCI_TABLE_PROTECTED = 0x200
_RTE_FLAG_MASK = 0x3FFF
_STE_FLAG_MASK = 0x7FF

NO_PTE = -1
"""What setting an entry returns when its tables could not be made."""

io_pgtable = struct(
    lines=("segment_tables_used", "page_tables_used"),
    region_table="i8",
    segment_tables="i8",
    page_tables="i8",
    segment_tables_max="i8",
    page_tables_max="i8",
    segment_tables_used="i8",
    page_tables_used="i8",
)
"""`segment_tables` and `page_tables` are arrays of tables from which new ones are taken in order."""

table_spares = struct(segment_table="i8", page_table="i8")
"""Tables that lost the race to be installed, kept by their CPU for its next miss."""


@inline
def calc_rtx(pfn: int) -> int:
    """Region-table index of a page frame."""
    return (pfn >> (ZPCI_PT_BITS + ZPCI_TABLE_BITS)) & (ZPCI_TABLE_ENTRIES - 1)


@inline
def calc_sx(pfn: int) -> int:
    """Segment-table index of a page frame."""
    return (pfn >> ZPCI_PT_BITS) & (ZPCI_TABLE_ENTRIES - 1)


@inline
def calc_px(pfn: int) -> int:
    """Page-table index of a page frame."""
    return pfn & (ZPCI_PT_ENTRIES - 1)


@inline
def _table_of(entry_table: int, index: int, flag_mask: int) -> int:
    """Address of the table that an upper entry names, or 0 when it is invalid."""
    entry = smp_load_acquire(element(int64_t, entry_table, index), "value")
    return 0 if entry & ZPCI_TABLE_INVALID else entry & ~flag_mask


@inline
def segment_table_of(pgtable: Any, pfn: int) -> int:
    """Address of the segment table of this page frame, or 0."""
    return _table_of(pgtable.region_table, calc_rtx(pfn), _RTE_FLAG_MASK)


@inline
def page_table_of(pgtable: Any, pfn: int) -> int:
    """Address of the page table of this page frame, or 0."""
    segment_table = segment_table_of(pgtable, pfn)
    return _table_of(segment_table, calc_sx(pfn), _STE_FLAG_MASK) if segment_table else 0


@slow
def _fill(table: int, entries: int, value: int) -> None:
    for i in range(entries):
        element(int64_t, table, i).value = value


@slow
def init_io_pgtable(pgtable: Any) -> None:
    """Make the table empty."""
    _fill(pgtable.region_table, ZPCI_TABLE_ENTRIES, ZPCI_TABLE_INVALID)


@jit
def _dma_alloc_cpu_table(pgtable: Any) -> int:
    index = fetch_add(pgtable, "segment_tables_used", 1)
    if index >= pgtable.segment_tables_max:
        fetch_add(pgtable, "segment_tables_used", -1)
        return 0
    table = pgtable.segment_tables + index * ZPCI_TABLE_SIZE
    _fill(table, ZPCI_TABLE_ENTRIES, ZPCI_TABLE_INVALID)
    return table


@jit
def _dma_alloc_page_table(pgtable: Any) -> int:
    index = fetch_add(pgtable, "page_tables_used", 1)
    if index >= pgtable.page_tables_max:
        fetch_add(pgtable, "page_tables_used", -1)
        return 0
    table = pgtable.page_tables + index * ZPCI_PT_SIZE
    _fill(table, ZPCI_PT_ENTRIES, ZPCI_PTE_INVALID)
    return table


@jit
def _make_segment_table(pgtable: Any, spares: Any, pfn: int) -> int:
    table = spares.segment_table
    if table == 0:
        table = _dma_alloc_cpu_table(pgtable)
        if table == 0:
            return 0
    spares.segment_table = 0
    # Full barrier: the table is filled before it can be found. Pairs with the acquire in _table_of().
    slot = element(int64_t, pgtable.region_table, calc_rtx(pfn))
    found = cmpxchg(slot, "value", ZPCI_TABLE_INVALID, table)
    if found == ZPCI_TABLE_INVALID:
        return table
    spares.segment_table = table
    return found & ~_RTE_FLAG_MASK


@jit
def _make_page_table(pgtable: Any, spares: Any, segment_table: int, pfn: int) -> int:
    table = spares.page_table
    if table == 0:
        table = _dma_alloc_page_table(pgtable)
        if table == 0:
            return 0
    spares.page_table = 0
    # Full barrier, as in _make_segment_table().
    found = cmpxchg(element(int64_t, segment_table, calc_sx(pfn)), "value", ZPCI_TABLE_INVALID, table)
    if found == ZPCI_TABLE_INVALID:
        return table
    spares.page_table = table
    return found & ~_STE_FLAG_MASK


@slow
def _walk_and_make(pgtable: Any, spares: Any, pfn: int) -> int:
    segment_table = segment_table_of(pgtable, pfn)
    if segment_table == 0:
        segment_table = _make_segment_table(pgtable, spares, pfn)
        if segment_table == 0:
            return 0
    page_table = _table_of(segment_table, calc_sx(pfn), _STE_FLAG_MASK)
    if page_table == 0:
        page_table = _make_page_table(pgtable, spares, segment_table, pfn)
    return page_table


@inline
def dma_walk_cpu_trans(pgtable: Any, spares: Any, pfn: int) -> int:
    """Address of the page table that holds `pfn`, made if it is missing; 0 when there is no memory for it."""
    page_table = page_table_of(pgtable, pfn)
    return page_table or _walk_and_make(pgtable, spares, pfn)


@inline
def pte_valid(pte: int) -> bool:
    """Whether an entry translates."""
    return not pte & ZPCI_PTE_INVALID


@inline
def set_pte(pgtable: Any, spares: Any, pfn: int, pte: int) -> int:
    """Exchange the entry of one page. Returns the entry before, or NO_PTE when its table cannot be made."""
    page_table = dma_walk_cpu_trans(pgtable, spares, pfn)
    if page_table == 0:
        return NO_PTE
    return xchg(element(int64_t, page_table, calc_px(pfn)), "value", pte)


@jit
def iova_to_phys(pgtable: Any, pfn: int) -> int:
    """The entry of one page; ZPCI_PTE_INVALID where there is no table."""
    page_table = page_table_of(pgtable, pfn)
    if page_table == 0:
        return ZPCI_PTE_INVALID
    return smp_load_acquire(element(int64_t, page_table, calc_px(pfn)), "value")


@slow
def count_valid(pgtable_address: int, start_pfn: int, pages: int) -> int:
    """How many pages of a range translate."""
    pgtable = deref(io_pgtable, pgtable_address)
    valid = 0
    pfn = start_pfn
    end_pfn = start_pfn + pages
    while pfn < end_pfn:
        page_table = page_table_of(pgtable, pfn)
        stop_pfn = min(end_pfn, (pfn | (ZPCI_PT_ENTRIES - 1)) + 1)
        if page_table:
            for p in range(pfn, stop_pfn):
                if pte_valid(element(int64_t, page_table, calc_px(p)).value):
                    valid += 1
        pfn = stop_pfn
    return valid


@slow
def invalidate_all(pgtable: Any, start_pfn: int, pages: int) -> None:
    """Have no page of a range translate any more."""
    for pfn in range(start_pfn, start_pfn + pages):
        page_table = page_table_of(pgtable, pfn)
        if page_table:
            element(int64_t, page_table, calc_px(pfn)).value = ZPCI_PTE_INVALID
