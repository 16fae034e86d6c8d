"""Serving one RPCIT: the walk of the guest's table, the shadow table, and what it costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.config import load, presets
from emu.hypervisor.state import (
    CC_SHIFT,
    RPCIT_ERROR_RECOVER,
    RPCIT_FUNC_IN_ERR,
    RPCIT_INSUFFICIENT_RESOURCES,
    RPCIT_OK,
    ZPCI_CC_ERR,
)
from emu.iommu.io_pgtable import ZPCI_PT_ENTRIES, ZPCI_PTE_INVALID
from tests.iommu.harness import History
from tests.native.harness import scaled

pytestmark = pytest.mark.interpreted

START = 1 << 20
PAGES = 4096
COST = {"intercept_ns": 4000.0, "walk_ns": 2.5, "change_ns": 100.0}


def history(domain="DMA-SQ", absent="skip", **options):
    """Flushes inline and free of cost; 4096 pages."""
    hypervisor = {"absent_entries": absent, **options.pop("hypervisor", {})}
    return History(domain, aperture_mb=16, hypervisor=hypervisor, **options)


class Served:
    """What the server did since this was made."""

    def __init__(self, history):
        self._server = history.server
        self._before = history.server.copy()

    def __getattr__(self, name):
        return int(self._server[name] - self._before[name])


def shadow_differs(history):
    """Pages whose entry in the shadow table is not that of the guest's."""
    return [p for p in range(START, START + PAGES) if history.pte(p) != history.shadow_pte(p)]


# The walk.


def test_a_range_is_walked_page_by_page():
    with history() as h:
        pfn = h.map(8)
        served = Served(h)
        h.rpcit(pfn, 8)
        assert (served.requests, served.walked) == (1, 8)


def test_absent_tables_are_skipped():
    with history() as h:
        served = Served(h)
        h.rpcit(START, PAGES)
        assert served.walked == 0
        h.map(1)
        served = Served(h)
        h.rpcit(START, PAGES)
        assert served.walked == ZPCI_PT_ENTRIES


def test_absent_tables_count_where_the_hypervisor_steps_through_them():
    with history(absent="count") as h:
        served = Served(h)
        h.rpcit(START, PAGES)
        assert served.walked == PAGES
        assert served.changed == 0


def test_of_a_table_that_is_there_only_the_pages_of_the_range_are_walked():
    with history() as h:
        pfn = h.map(1)
        served = Served(h)
        h.rpcit(pfn - 9, 10)
        assert served.walked == 10


def test_a_range_may_begin_and_end_anywhere():
    with history() as h:
        for _ in range(3 * ZPCI_PT_ENTRIES):
            h.map(1)
        served = Served(h)
        h.rpcit(START + PAGES - 2 * ZPCI_PT_ENTRIES - 5, ZPCI_PT_ENTRIES + 9)
        assert served.walked == ZPCI_PT_ENTRIES + 9


def test_a_walk_over_several_regions_skips_those_without_a_table():
    # 8 GiB above 4 GiB are four regions of 2 GiB; the page is in the last.
    with History("DMA-SQ", aperture_mb=8192, hypervisor={"absent_entries": "skip"}) as h:
        pfn = h.map(1)
        served = Served(h)
        h.rpcit(START, 2 << 20)
        assert pfn == START + (2 << 20) - 1
        assert served.walked == ZPCI_PT_ENTRIES


def test_a_global_flush_walks_the_aperture():
    with history(absent="count") as h:
        served = Served(h)
        h.flush()
        assert (served.requests, served.global_requests, served.walked) == (1, 1, PAGES)


@pytest.mark.parametrize(("preset", "counts"), [("kvm", True), ("zvm", True), ("lpar", False), ("bare-metal", False)])
def test_every_preset_says_whether_absent_entries_count(preset, counts):
    assert preset in presets()
    assert (load(preset=preset).hypervisor.absent_entries == "count") == counts


# The shadow table.


def test_a_map_is_in_the_shadow_table_when_it_returns():
    with history() as h:
        pfn = h.map(20, phys_pfn=777)
        assert [h.shadow_pte(pfn + i) for i in range(20)] == [(777 + i) << 12 for i in range(20)]


def test_a_lazy_unmap_stays_in_the_shadow_table_until_the_flush():
    with history() as h:
        pfn = h.map(1, phys_pfn=777)
        h.unmap(pfn)
        assert h.pte(pfn) & ZPCI_PTE_INVALID
        assert h.shadow_pte(pfn) == 777 << 12
        h.flush()
        assert h.shadow_pte(pfn) & ZPCI_PTE_INVALID


def test_a_strict_unmap_is_gone_from_the_shadow_table_when_it_returns():
    with history("DMA") as h:
        pfn = h.map(1)
        h.unmap(pfn)
        assert h.shadow_pte(pfn) & ZPCI_PTE_INVALID


kinds = st.sampled_from(["map", "map", "unmap", "unmap", "flush", "range"])
calls = st.lists(st.tuples(kinds, st.integers(1, 64), st.integers(0, 99)), max_size=scaled(40, 12))


@settings(max_examples=scaled(60, 4))
@given(calls=calls)
def test_after_an_rpcit_the_shadow_of_its_range_is_the_guests_table(calls):
    with history() as h:
        live = []
        for call, pages, choice in calls:
            if call == "map":
                live.append((h.map(pages, phys_pfn=choice << 10), pages))
                pfn, checked = live[-1]
            elif call == "unmap" and live:
                h.unmap(*live.pop(choice % len(live)))
                continue
            elif call == "range":
                pfn, checked = START + PAGES - 64 * (choice % 32 + 1), pages
                h.rpcit(pfn, pages)
            else:
                h.flush()
                pfn, checked = START, PAGES if scaled(1, 0) else 0
            assert all(h.pte(p) == h.shadow_pte(p) for p in range(pfn, pfn + checked))
        h.flush()
        assert shadow_differs(h) == []


def test_only_what_differs_counts_as_changed():
    with history() as h:
        served = Served(h)
        pfn = h.map(8)
        assert served.changed == 8
        h.rpcit(pfn, 8)
        assert served.changed == 8
        h.unmap(pfn, 8)
        assert served.changed == 8
        h.flush()
        assert served.changed == 16


def test_without_a_shadow_table_nothing_changes():
    with History("DMA", aperture_mb=16, preset="lpar", hypervisor={"shadows": False}) as h:
        served = Served(h)
        h.map_and_unmap(5, pages=3)
        assert (served.requests, served.walked, served.changed) == (5, 0, 0)


def test_without_a_shadow_table_the_guests_is_walked_where_that_costs_something():
    with History("DMA", aperture_mb=16, preset="lpar", hypervisor={"shadows": False, "walk_ns": 1.0}) as h:
        served = Served(h)
        h.map_and_unmap(5, pages=3)
        assert (served.requests, served.walked, served.changed) == (5, 15, 0)


# The host's limit.


def test_the_host_refuses_what_goes_beyond_its_limit():
    with history("DMA", hypervisor={"mapping_limit": 10}) as h:
        assert h.map(8)
        assert h.map(8) == 0
        assert h.ctrs.map_failures == 1
        assert h.map(2)
        assert h.hypervisor.mapped == 10


def test_a_global_flush_makes_room_for_what_was_unmapped_lazily():
    with history("DMA-SQ", hypervisor={"mapping_limit": 10}) as h:
        h.map_and_unmap(1, pages=8)
        assert h.map(8)
        assert h.ctrs.flushes_no_resources == 1
        assert h.ctrs.global_rpcits == 0
        assert h.hypervisor.mapped == 8


def test_the_status_of_a_refused_range_is_that_of_the_architecture():
    with history("DMA", hypervisor={"mapping_limit": 4}) as h:
        h.domain.s390.tlb_refresh = 0
        pfn = h.map(8)
        answer = h.rpcit(pfn, 8)
        assert answer == RPCIT_INSUFFICIENT_RESOURCES
        assert (answer >> CC_SHIFT, answer & 0xFF) == (ZPCI_CC_ERR, 16)
        assert h.server.refused == 4
        assert h.rpcit(pfn, 4) == 0


# An ISM device.


def test_a_global_flush_over_addresses_in_use_puts_an_ism_device_into_error():
    with history("DMA", device="ism") as h:
        pfn = h.map(8)
        assert h.rpcit(START, PAGES, is_global=True) == RPCIT_FUNC_IN_ERR
        assert h.rpcit(pfn, 8) == RPCIT_ERROR_RECOVER
        assert h.rpcit(START, PAGES, is_global=True) == RPCIT_ERROR_RECOVER


def test_an_ism_device_endures_a_flush_of_a_range_in_use_and_a_global_one_over_nothing():
    with history("DMA", device="ism") as h:
        pfn = h.map(8)
        assert h.rpcit(pfn, 8) == RPCIT_OK
        h.unmap(pfn, 8)
        assert h.rpcit(START, PAGES, is_global=True) == RPCIT_OK


def test_an_ism_device_looks_into_the_table_where_no_hypervisor_does():
    with History("DMA", aperture_mb=16, preset="lpar", device="ism", hypervisor={"shadows": False}) as h:
        h.map(1)
        assert h.rpcit(START, PAGES, is_global=True) == RPCIT_FUNC_IN_ERR


def test_any_other_device_endures_a_global_flush():
    with history("DMA") as h:
        h.map(8)
        assert h.rpcit(START, PAGES, is_global=True) == RPCIT_OK


def test_what_a_device_in_error_refuses_costs_the_trap_and_changes_nothing():
    with history("DMA", device="ism", absent="count", hypervisor=COST) as h:
        pfn = h.map(8, phys_pfn=777)
        h.rpcit(START, PAGES, is_global=True)
        served = Served(h)
        h.unmap(pfn, 8)
        assert (served.requests, served.walked, served.changed) == (1, 0, 0)
        assert served.emulated_ns == 4000
        assert h.shadow_pte(pfn) == 777 << 12


# The cost.


@pytest.mark.parametrize("absent", ["skip", "count"])
def test_a_request_costs_its_intercept_and_every_entry_walked_and_changed(absent):
    with history(absent=absent, hypervisor=COST) as h:
        served = Served(h)
        pfn = h.map(8)
        assert served.emulated_ns == 4000 + int(8 * 2.5) + 8 * 100
        served = Served(h)
        h.rpcit(pfn, 7)
        assert served.emulated_ns == 4000 + int(7 * 2.5)
        h.unmap(pfn, 8)
        served = Served(h)
        h.flush()
        walked = PAGES if absent == "count" else ZPCI_PT_ENTRIES
        assert served.emulated_ns == 4000 + int(walked * 2.5) + 8 * 100


def test_a_request_takes_as_long_as_it_costs():
    with history(hypervisor={"intercept_ns": 3e6}) as h:
        served = Served(h)
        h.rpcit(START, 1)
        assert served.emulated_ns == 3_000_000
        assert 3_000_000 <= served.busy_ns < 60_000_000


def test_a_long_request_ends_when_the_machine_is_stopped():
    with history(hypervisor={"intercept_ns": 60e9}) as h:
        h.layout.segment["control"][0].abort = 1
        served = Served(h)
        h.rpcit(START, 1)
        assert served.busy_ns < 1_000_000_000


def test_inline_a_cpu_waits_for_nobody_but_itself():
    with history(hypervisor={"intercept_ns": 1e5}) as h:
        served = Served(h)
        for _ in range(5):
            h.rpcit(START, 1)
        assert (served.requests, served.total_wait_ns) == (5, 0)
