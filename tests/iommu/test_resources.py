"""RPCIT's answers as the guest takes them, and what it does when host, device or address space have no more to give."""

from errno import EIO, ENOMEM

import pytest

from emu.config import load
from emu.hypervisor.state import RPCIT_ERROR_RECOVER
from emu.iommu.domain import STRICT
from tests.iommu.harness import History

pytestmark = pytest.mark.interpreted

QUEUES = ["DMA-FQ", "DMA-SQ"]
STRICT_DOMAINS = ["DMA", "s390-strict"]
PAGES = 256


def limited(domain, limit, **options):
    """A host that holds so many pages."""
    return History(domain, aperture_mb=16, hypervisor={"mapping_limit": limit}, **options)


def small(domain, **options):
    """256 pages of address space."""
    return History(domain, aperture_mb=1, **options)


# The host has no room.


def test_under_kvm_the_host_holds_65535_pages_unless_told_otherwise():
    assert load(preset="kvm").hypervisor.mapping_limit == 65535
    with limited("DMA", 10) as history:
        assert history.hypervisor.mapping_limit == 10


def test_out_of_resources_is_enomem_to_the_guest():
    with limited("DMA", 4) as history:
        history.domain.s390.tlb_refresh = 0
        pfn = history.map(8)
        assert history.refresh(pfn, 8) == -ENOMEM
        assert history.refresh(pfn, 4) == 0


@pytest.mark.parametrize("domain", QUEUES)
def test_what_was_unmapped_lazily_counts_until_one_global_rpcit_drops_it(domain):
    with limited(domain, 10) as history:
        history.map_and_unmap(1, pages=8)
        assert history.hypervisor.mapped == 8
        assert history.map(8)
        assert history.hypervisor.mapped == 8
        assert history.ctrs.flushes_no_resources == 1
        assert (history.ctrs.maps, history.ctrs.map_failures) == (2, 0)


@pytest.mark.parametrize("domain", QUEUES)
def test_the_addresses_stay_queued_when_the_host_has_dropped_them(domain):
    with limited(domain, 10) as history:
        [queued] = history.map_and_unmap(1, pages=8)
        mapped = history.map(8)
        assert history.queued_pfns() == [queued]
        assert mapped != queued
        assert history.ctrs.reclaimed == 0
        history.fire_flush_timer()
        assert history.queued_pfns() == []
        assert history.ctrs.reclaimed == 1


@pytest.mark.parametrize("domain", QUEUES)
def test_addresses_of_every_ring_stay_queued(domain):
    with limited(domain, 10, cpus=2) as history:
        for cpu in range(2):
            history.map_and_unmap(1, pages=4, cpu=cpu)
        assert history.map(8)
        assert sum(history.depth(ring) for ring in range(len(history.rings()))) == 2


def test_the_old_lazy_scheme_reuses_the_addresses_at_once():
    with limited("s390-lazy", 10) as history:
        history.map_and_unmap(1, pages=8)
        assert history.map(8)
        assert history.ctrs.flushes_no_resources == 1
        assert history.ctrs.reclaimed == 1
        assert history.domain.zdev.lazy_pages == 0


@pytest.mark.parametrize("domain", QUEUES)
def test_a_map_for_which_one_global_rpcit_makes_no_room_fails_cleanly(domain):
    with limited(domain, 10) as history:
        live = history.map(8)
        assert history.map(8) == 0
        assert history.ctrs.flushes_no_resources == 1
        assert (history.ctrs.maps, history.ctrs.map_failures) == (1, 1)
        assert history.hypervisor.mapped == 8
        assert history.is_mapped(live)
        assert history.map(2), "what fits is mapped as before"


def test_a_failed_map_is_taken_back_by_an_rpcit_of_its_range():
    with limited("DMA-SQ", 10) as history:
        history.map(8)
        assert history.map(8) == 0
        assert history.ctrs.sync_rpcits == 1
        assert history.iovad.nodes_used == 2, "its address is in a cache"
        assert history.depth() == 0


@pytest.mark.parametrize("domain", STRICT_DOMAINS)
def test_strictly_nothing_counts_that_is_not_mapped(domain):
    with limited(domain, 8) as history:
        history.map_and_unmap(20, pages=8)
        assert history.hypervisor.mapped == 0
        assert history.ctrs.flushes_no_resources == 0


def test_the_old_strict_scheme_asks_for_no_room():
    with limited("s390-strict", 8) as history:
        assert history.map(8)
        assert history.map(1) == 0
        assert history.ctrs.flushes_no_resources == 0


def test_the_old_lazy_scheme_reuses_no_address_after_a_flush_that_failed():
    with History("s390-lazy", aperture_mb=1, device="ism") as history:
        history.map(1)
        history.map_and_unmap(PAGES - 1)
        history.domain.s390.tlb_refresh = 0
        assert history.map(1) == 0
        assert history.ctrs.flushes_wrap == 1
        assert history.ctrs.reclaimed == 0


# ISM devices.


@pytest.mark.parametrize("domain", QUEUES)
def test_an_ism_device_gets_no_queue_whatever_is_asked(domain):
    with History(domain, device="ism") as history:
        assert history.domain.type == STRICT
        assert history.domain.cookie.fq_domain == 0
        assert not history.domain.fq_init_failed
        history.map_and_unmap(3)
        assert (history.ctrs.sync_rpcits, history.ctrs.global_rpcits, history.ctrs.reclaimed) == (3, 0, 3)


def test_a_strict_ism_device_never_sees_a_global_flush():
    with History("DMA", device="ism", aperture_mb=1) as history:
        live = history.map(16)
        history.map_and_unmap(3 * PAGES, pages=16)
        assert not history.layout.segment["functions"][0].device_in_error
        assert history.is_mapped(live)


def test_making_room_in_the_host_puts_an_ism_device_into_error():
    with limited("DMA", 10, device="ism") as history:
        assert history.map(8)
        assert history.map(8) == 0
        assert history.ctrs.flushes_no_resources == 1
        assert history.layout.segment["functions"][0].device_in_error


def test_the_old_lazy_scheme_puts_an_ism_device_into_error_when_addresses_wrap_round():
    with History("s390-lazy", aperture_mb=1, device="ism") as history:
        history.map(1)
        history.map_and_unmap(PAGES - 1)
        assert not history.layout.segment["functions"][0].device_in_error
        assert history.map(1) == 0
        assert history.layout.segment["functions"][0].device_in_error


def test_for_a_device_in_error_every_refresh_fails_with_eio_and_no_room_is_asked_for():
    with History("DMA", device="ism", aperture_mb=16) as history:
        live = history.map(8)
        assert history.refresh(live, 8, is_global=True) == -EIO
        assert history.rpcit(live, 8) == RPCIT_ERROR_RECOVER
        assert history.refresh(live, 8) == -EIO
        assert history.map(1) == 0
        assert (history.ctrs.map_failures, history.ctrs.flushes_no_resources) == (1, 0)


def test_what_is_mapped_when_a_device_goes_into_error_can_still_be_unmapped():
    with History("DMA", device="ism", aperture_mb=16) as history:
        live = history.map(8)
        history.refresh(live, 8, is_global=True)
        history.unmap(live, 8)
        assert not history.is_mapped(live)
        report = history.teardown()
        assert (report.table_pages, report.ranges_left) == (0, 0)
        assert history.violations == history.ctrs.lost_iovas == 0


# The address space has no room.


@pytest.mark.parametrize("domain", QUEUES)
def test_when_all_addresses_are_queued_a_map_empties_the_caches_and_fails_without_a_flush(domain):
    with small(domain, fq_size=512) as history:
        history.map_and_unmap(PAGES)
        assert history.map(1) == 0
        assert (history.ctrs.maps, history.ctrs.map_failures) == (PAGES, 1)
        assert history.ctrs.rcache_flushes == 1
        assert history.ctrs.global_rpcits == history.ctrs.flushes_no_resources == 0
        assert history.depth() == PAGES


@pytest.mark.parametrize("domain", QUEUES)
def test_after_the_timer_maps_succeed_again(domain):
    with small(domain, fq_size=512) as history:
        history.map_and_unmap(PAGES)
        assert history.map(1) == 0
        history.fire_flush_timer()
        assert history.map(1)


@pytest.mark.parametrize("domain", ["DMA", *QUEUES])
def test_what_another_cpu_has_cached_serves_once_the_caches_are_emptied(domain):
    with small(domain, cpus=2, fq_size=512) if domain in QUEUES else small(domain, cpus=2) as history:
        live = [history.map(1, cpu=0) for _ in range(PAGES)]
        for pfn in live[:100]:
            history.unmap(pfn, 1, cpu=0)
        if domain in QUEUES:
            history.fire_flush_timer(cpu=0)
        assert history.iovad.nodes_used == PAGES
        assert history.map(1, cpu=1) in live[:100]
        assert (history.ctrs.rcache_flushes, history.ctrs.map_failures) == (1, 0)


def test_small_ranges_in_caches_make_room_for_a_large_one():
    with small("DMA") as history:
        history.map_and_unmap(1, pages=PAGES)
        for pfn in [history.map(1) for _ in range(PAGES)]:
            history.unmap(pfn)
        assert history.map(PAGES)
        assert (history.ctrs.rcache_flushes, history.ctrs.map_failures) == (1, 0)


@pytest.mark.parametrize("domain", ["DMA", *QUEUES, *STRICT_DOMAINS[1:], "s390-lazy"])
def test_maps_that_found_no_address_leave_nothing_behind(domain):
    with small(domain) as history:
        live = [pfn for pfn in (history.map(60) for _ in range(8)) if pfn]
        assert 0 < len(live) < 8
        assert history.ctrs.map_failures == 8 - len(live)
        assert history.ctrs.mapped_pages == 60 * len(live)
        for pfn in live:
            history.unmap(pfn, 60)
        report = history.teardown()
        assert (report.table_pages, report.ranges_left) == (0, 0)
        assert history.violations == history.ctrs.lost_iovas == 0
