"""I/O translation tables: three levels, made on demand, by any number of CPUs at once."""

import numpy as np
import pytest

from emu.iommu.io_pgtable import (
    NO_PTE,
    ZPCI_PT_ENTRIES,
    ZPCI_PT_SIZE,
    ZPCI_PTE_INVALID,
    ZPCI_TABLE_ENTRIES,
    ZPCI_TABLE_INVALID,
    ZPCI_TABLE_SIZE,
    _make_page_table,
    _make_segment_table,
    calc_px,
    calc_rtx,
    calc_sx,
    count_valid,
    init_io_pgtable,
    io_pgtable,
    iova_to_phys,
    page_table_of,
    segment_table_of,
    set_pte,
    table_spares,
)
from emu.native.atomics import fetch_add, int64_t, smp_load_acquire
from emu.native.clock import cpu_relax, sched_yield
from emu.native.compile import compile_entries, entry
from emu.native.record import deref
from tests.iommu.harness import History
from tests.native.harness import at, running, scaled, shared

pytestmark = pytest.mark.interpreted

SET, GET, SEGMENT_TABLE, PAGE_TABLE, COUNT, MAKE_SEGMENT_TABLE, MAKE_PAGE_TABLE = range(7)
PAGES_PER_SEGMENT_TABLE = ZPCI_TABLE_ENTRIES * ZPCI_PT_ENTRIES


@entry
def pgtable_call(pgtable_address, spares_address, call, pfn, value):  # noqa: PLR0911 - one branch for each call
    pgtable, spares = deref(io_pgtable, pgtable_address), deref(table_spares, spares_address)
    if call == SET:
        return set_pte(pgtable, spares, pfn, value)
    if call == GET:
        return iova_to_phys(pgtable, pfn)
    if call == SEGMENT_TABLE:
        return segment_table_of(pgtable, pfn)
    if call == PAGE_TABLE:
        return page_table_of(pgtable, pfn)
    if call == MAKE_SEGMENT_TABLE:
        return _make_segment_table(pgtable, spares, pfn)
    if call == MAKE_PAGE_TABLE:
        return _make_page_table(pgtable, spares, segment_table_of(pgtable, pfn), pfn)
    return count_valid(pgtable_address, pfn, value)


@entry
def init(pgtable):
    init_io_pgtable(deref(io_pgtable, pgtable))
    return 0


@entry
def indices(pfn):
    return calc_rtx(pfn) << 32 | calc_sx(pfn) << 16 | calc_px(pfn)


@entry
def fill_with_others(pgtable_address, spares_address, barrier, me, processes, tables, stride):
    """Enter one page into each of many tables, together with other processes that need the same tables."""
    pgtable, spares = deref(io_pgtable, pgtable_address), deref(table_spares, spares_address)
    arrived = deref(int64_t, barrier)
    for table in range(tables):
        fetch_add(arrived, "value", 1)
        spins = 0
        while smp_load_acquire(arrived, "value") < processes * (table + 1):
            cpu_relax()
            spins += 1
            if spins & 63 == 0:
                sched_yield()
        pfn = table * stride + me
        set_pte(pgtable, spares, pfn, pfn << 12)
    return 0


class Table:
    """A translation table with room for so many tables of each kind, which forked processes share."""

    def __init__(self, segment_tables=4, page_tables=16, cpus=1):
        compile_entries([pgtable_call, init, indices, fill_with_others])
        self._memory = shared(np.uint8, (2 + segment_tables) * ZPCI_TABLE_SIZE + page_tables * ZPCI_PT_SIZE)
        self._record = shared(io_pgtable)
        self.spares = shared(table_spares, cpus)
        self.barrier = shared(int64_t)
        base = -(-at(self._memory) // ZPCI_TABLE_SIZE) * ZPCI_TABLE_SIZE
        self.record = self._record[0]
        self.record.region_table = base
        self.record.segment_tables = base + ZPCI_TABLE_SIZE
        self.record.page_tables = base + (1 + segment_tables) * ZPCI_TABLE_SIZE
        self.record.segment_tables_max = segment_tables
        self.record.page_tables_max = page_tables
        self.address = at(self._record)
        init(self.address)

    def call(self, call, pfn, value=0):
        return int(pgtable_call(self.address, at(self.spares), call, pfn, value))

    def set(self, pfn, pte):
        return self.call(SET, pfn, pte)

    def get(self, pfn):
        return self.call(GET, pfn)

    def used(self):
        """(segment tables, page tables) taken so far."""
        return int(self.record.segment_tables_used), int(self.record.page_tables_used)


@pytest.fixture
def table():
    return Table()


@pytest.mark.parametrize(
    ("pfn", "rtx", "sx", "px"),
    [
        (0, 0, 0, 0),
        (255, 0, 0, 255),
        (256, 0, 1, 0),
        (PAGES_PER_SEGMENT_TABLE - 1, 0, 2047, 255),
        (PAGES_PER_SEGMENT_TABLE, 1, 0, 0),
        ((1 << 30) - 1, 2047, 2047, 255),
    ],
)
@pytest.mark.usefixtures("table")
def test_a_pfn_is_11_bits_of_region_11_of_segment_and_8_of_page(pfn, rtx, sx, px):
    assert indices(pfn) == rtx << 32 | sx << 16 | px


def test_nothing_translates_in_an_empty_table(table):
    assert table.get(0) == ZPCI_PTE_INVALID
    assert table.get((1 << 30) - 1) == ZPCI_PTE_INVALID
    assert table.used() == (0, 0)


def test_the_first_page_makes_one_table_of_each_level(table):
    table.set(1000, 5 << 12)
    assert table.used() == (1, 1)
    assert table.get(1000) == 5 << 12


def test_neighbours_share_tables(table):
    for pfn in range(ZPCI_PT_ENTRIES):
        table.set(pfn, pfn << 12)
    assert table.used() == (1, 1)
    table.set(ZPCI_PT_ENTRIES, 0)
    assert table.used() == (1, 2)
    table.set(PAGES_PER_SEGMENT_TABLE, 0)
    assert table.used() == (2, 3)


def test_the_other_entries_of_a_new_table_are_invalid(table):
    table.set(1000, 5 << 12)
    assert table.call(COUNT, 0, PAGES_PER_SEGMENT_TABLE) == 1
    assert table.get(1001) == ZPCI_PTE_INVALID
    assert table.call(PAGE_TABLE, 2000) == 0
    assert table.call(SEGMENT_TABLE, PAGES_PER_SEGMENT_TABLE) == 0


def test_setting_an_entry_returns_the_one_before(table):
    assert table.set(7, 1 << 12) == ZPCI_PTE_INVALID
    assert table.set(7, ZPCI_PTE_INVALID) == 1 << 12
    assert table.set(7, 2 << 12) == ZPCI_PTE_INVALID


def test_tables_stay_when_their_last_page_goes(table):
    table.set(7, 1 << 12)
    page_table = table.call(PAGE_TABLE, 7)
    table.set(7, ZPCI_PTE_INVALID)
    assert table.call(PAGE_TABLE, 7) == page_table
    assert table.used() == (1, 1)


def test_who_loses_the_race_for_a_page_table_uses_the_winners_and_keeps_its_own(table):
    table.set(7, 1 << 12)
    winners = table.call(PAGE_TABLE, 7)
    assert table.call(MAKE_PAGE_TABLE, 7) == winners
    spare = int(table.spares[0].page_table)
    assert spare not in (0, winners)
    assert table.used() == (1, 2)
    table.set(ZPCI_PT_ENTRIES, 2 << 12)
    assert table.call(PAGE_TABLE, ZPCI_PT_ENTRIES) == spare
    assert table.spares[0].page_table == 0
    assert table.used() == (1, 2)


def test_who_loses_the_race_for_a_segment_table_uses_the_winners_and_keeps_its_own(table):
    table.set(7, 1 << 12)
    winners = table.call(SEGMENT_TABLE, 7)
    assert table.call(MAKE_SEGMENT_TABLE, 7) == winners
    spare = int(table.spares[0].segment_table)
    assert spare not in (0, winners)
    table.set(PAGES_PER_SEGMENT_TABLE, 2 << 12)
    assert table.call(SEGMENT_TABLE, PAGES_PER_SEGMENT_TABLE) == spare
    assert table.spares[0].segment_table == 0


def test_a_spare_is_as_empty_as_a_new_table(table):
    table.set(7, 1 << 12)
    table.call(MAKE_PAGE_TABLE, 7)
    table.set(ZPCI_PT_ENTRIES + 9, 2 << 12)
    assert table.call(COUNT, ZPCI_PT_ENTRIES, ZPCI_PT_ENTRIES) == 1


def test_an_upper_entry_is_the_tables_address_with_no_flag_bit_set(table):
    table.set(7, 1 << 12)
    assert table.call(SEGMENT_TABLE, 7) % ZPCI_TABLE_SIZE == 0
    assert table.call(PAGE_TABLE, 7) % ZPCI_PT_SIZE == 0
    assert not table.call(PAGE_TABLE, 7) & ZPCI_TABLE_INVALID


def test_without_memory_for_a_page_table_the_entry_is_not_set():
    table = Table(page_tables=1)
    table.set(0, 1 << 12)
    assert table.set(ZPCI_PT_ENTRIES, 2 << 12) == NO_PTE
    assert table.get(ZPCI_PT_ENTRIES) == ZPCI_PTE_INVALID
    assert table.used() == (1, 1)
    assert table.set(1, 3 << 12) == ZPCI_PTE_INVALID


def test_without_memory_for_a_segment_table_the_entry_is_not_set():
    table = Table(segment_tables=1)
    table.set(0, 1 << 12)
    assert table.set(PAGES_PER_SEGMENT_TABLE, 2 << 12) == NO_PTE
    assert table.used() == (1, 1)


# Maps that run out of tables.


@pytest.fixture
def two_tables():
    """A domain with memory for page tables of 512 pages, at the top of its aperture."""
    with History(aperture_mb=16, segments=[200, 200, 300]) as history:
        history.domain.s390.pgtable.page_tables_max = 2
        yield history


def test_a_map_without_memory_for_its_tables_fails_and_is_counted(two_tables):
    assert two_tables.map(1024) == 0
    assert two_tables.ctrs.map_failures == 1
    assert two_tables.ctrs.maps == 0


def test_a_map_that_failed_leaves_nothing_mapped(two_tables):
    two_tables.map(1024)
    assert two_tables.ctrs.mapped_pages == 0
    assert two_tables.ctrs.unmapped_pages == 0
    assert two_tables.violations == 0
    assert two_tables.teardown().table_pages == 0


def test_a_map_that_failed_gives_its_iova_back(two_tables):
    two_tables.map(1024)
    assert two_tables.allocated_ranges() == []
    assert two_tables.iovad.nodes_used == 0


def test_a_scatter_gather_map_that_fails_in_the_middle_takes_back_its_first_segments(two_tables):
    assert two_tables.map_sg(0, 3) == 0
    assert two_tables.ctrs.mapped_pages == two_tables.ctrs.unmapped_pages == 400
    assert two_tables.violations == 0
    report = two_tables.teardown()
    assert report.table_pages == 0
    assert report.ranges_left == 0


# Processes.


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("stride", [ZPCI_PT_ENTRIES, PAGES_PER_SEGMENT_TABLE], ids=["page tables", "segment tables"])
def test_processes_that_race_for_the_same_tables_end_with_every_entry_right(processes, stride):
    tables = scaled(256, 12)
    table = Table(segment_tables=tables + processes, page_tables=tables + processes, cpus=processes)
    calls = [
        (fill_with_others, table.address, at(table.spares, me), at(table.barrier), me, processes, tables, stride)
        for me in range(processes)
    ]
    with running(*calls, timeout_s=30):
        pass
    for i in range(tables):
        for me in range(processes):
            assert table.get(i * stride + me) == (i * stride + me) << 12
    segments, pages = table.used()
    assert 0 <= pages - tables <= processes
    assert pages - tables == np.count_nonzero(table.spares["page_table"])
    assert segments - (1 if stride == ZPCI_PT_ENTRIES else tables) == np.count_nonzero(table.spares["segment_table"])
