"""The oracle's books: what it lets pass, and what it does not, call by call."""

import pytest

from emu.iommu.domain import PERCPU_FQ
from emu.machine.context import SLOT_MAPPED
from tests.iommu.harness import History

pytestmark = pytest.mark.interpreted

BARE = {"shadows": False}


def of(domain, **options):
    return History(domain, aperture_mb=16, **{"cpus": 2, **options})


@pytest.fixture(params=["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict"])
def every_scheme(request):
    with of(request.param) as history:
        yield history


def queue_of(history):
    return history.domain.cookie.fq_domain


def test_a_sound_history_has_no_violation(every_scheme):
    history = every_scheme
    for pages in (1, 3, 32, 64):
        history.map_and_unmap(20, pages)
        history.map_and_unmap(20, pages, cpu=1)
    if queue_of(history):
        history.fire_flush_timer()
    live = history.map(5)
    history.teardown()
    assert live
    assert history.violations == 0


def test_an_address_freed_without_a_flush_is_found():
    with of("DMA-FQ") as history:
        (pfn,) = history.map_and_unmap(1, pages=4)
        history.free(pfn, 4)
        assert history.found("given_back_unflushed") == 4


def test_a_flush_that_began_before_the_unmap_does_not_count():
    with of("DMA-FQ") as history:
        pfn = history.map()
        history.begin_flush()
        history.unmap(pfn)
        history.end_flush()
        history.free(pfn)
        assert history.found("given_back_unflushed") == 1


def test_a_flush_that_began_after_the_unmap_counts_though_an_earlier_one_goes_on():
    with of("DMA-FQ") as history:
        pfn = history.map()
        first = history.begin_flush()
        history.unmap(pfn)
        second = history.begin_flush()
        assert second > first
        history.end_flush(second)
        history.free(pfn)
        assert history.violations == 0
        history.end_flush(first)


def test_a_flush_that_has_not_ended_does_not_count():
    with of("DMA-FQ") as history:
        (pfn,) = history.map_and_unmap()
        history.begin_flush()
        history.free(pfn)
        assert history.found("given_back_unflushed") == 1


def test_the_queues_counters_are_not_what_is_believed():
    with of("DMA-FQ") as history:
        history.map_and_unmap(3)
        # As if the queue had counted a flush that nobody did.
        history.domain.cookie.fq_flush_start_cnt.counter += 2
        history.domain.cookie.fq_flush_finish_cnt.counter += 2
        history.free_rings()
        assert history.found("given_back_unflushed") == 3


@pytest.mark.parametrize(("first", "pages", "found"), [(0, 4, 0), (0, 3, 1), (1, 3, 1), (4, 4, 4)])
def test_a_range_flush_frees_just_what_it_covers(first, pages, found):
    with of("DMA", hypervisor=BARE) as history:
        pfn = history.map(4)
        history.clear(pfn, 4)
        history.rpcit(pfn + first, pages)
        history.free(pfn, 4)
        assert history.found("given_back_unflushed") == found


def test_another_process_s_range_flush_frees_nothing_here():
    with of("DMA", hypervisor=BARE) as history:
        pfn = history.map()
        history.clear(pfn)
        history.rpcit(pfn)
        own = history.layout.segment["own_flushes"]
        own[0] = own[history.layout.supervisor]
        own[history.layout.supervisor] = (0, 0, 0)
        history.free(pfn)
        assert history.found("given_back_unflushed") == 1


def test_what_is_given_back_while_mapped_is_found():
    with of("DMA") as history:
        history.free(history.map(2), 2)
        assert history.found("given_back_while_mapped") == 2


def test_what_is_given_back_twice_is_found():
    with of("DMA") as history:
        (pfn,) = history.map_and_unmap()
        history.free(pfn)
        assert history.found("given_back_twice") == 1


def test_what_is_handed_out_twice_is_found():
    with of("DMA") as history:
        (pfn,) = history.map_and_unmap()
        history.free(pfn)
        assert history.alloc() == history.alloc() == pfn
        assert history.found("handed_out_twice") == 1


def test_an_address_that_was_allocated_but_never_mapped_needs_no_flush():
    with of("DMA-FQ") as history:
        history.free(history.alloc(8), 8)
        assert history.violations == 0


def test_the_details_of_the_first_violations_are_kept_and_all_are_counted():
    with of("DMA-FQ") as history:
        pfn = history.map_and_unmap(1, pages=10)[0]
        history.free(pfn, 10)
        assert history.found("given_back_unflushed") == 10
        own = history.findings[history.layout.supervisor]
        records = own.records[: int(own.kept)]
        assert [int(record.pfn) for record in records] == [pfn, pfn + 1, pfn + 2]
        assert all(int(record.at_ns) > 0 for record in records)


# A word holds the lowest 29 bits of a flush's number.


@pytest.mark.parametrize("flushes", [2**29 - 12, 5 * 2**29 - 3, 2**29, 2**34 - 1])
def test_numbers_that_do_not_fit_a_word_change_nothing(flushes):
    with of("DMA-FQ") as history:
        history.oracle.started = history.oracle.finished = flushes
        for _ in range(4):
            history.map_and_unmap(2, pages=4)
            history.map_and_unmap(2, pages=4, cpu=1)
            history.fire_flush_timer()
        assert history.oracle.started > flushes
        assert history.violations == 0
        (pfn,) = history.map_and_unmap(1, pages=4)
        history.free(pfn, 4)
        assert history.found("given_back_unflushed") == 4
        own = history.findings[history.layout.supervisor]
        assert int(own.records[0].expected) == int(own.records[0].found) + 1 == history.oracle.started + 1


def test_pages_of_a_mapping_that_were_unmapped_apart_are_judged_each():
    with of("DMA-FQ") as history:
        pfn = history.map(4)
        history.unmap(pfn, 3)
        history.end_flush(history.begin_flush())
        history.clear(pfn + 3)
        history.free(pfn, 4)
        assert history.found("given_back_unflushed") == 1


# The exceptions.


def test_what_is_dropped_with_its_domain_needs_no_flush():
    with of("DMA-FQ") as history:
        history.map_and_unmap(7)
        assert history.teardown().queued == 7
        assert history.violations == 0


def test_what_an_unbound_driver_leaves_needs_no_flush():
    with of("DMA-FQ") as history:
        history.map_and_unmap(7)
        history.unbind()
        assert history.violations == 0
        history.store_type(PERCPU_FQ)
        history.map_and_unmap(7)
        history.teardown()
        assert history.violations == 0


def test_what_an_unbound_driver_leaves_is_the_last_exception():
    with of("DMA-FQ") as history:
        history.unbind()
        (pfn,) = history.map_and_unmap()
        history.free(pfn)
        assert history.found("given_back_unflushed") == 1


@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "s390-lazy", "s390-strict"])
def test_a_map_that_the_host_refuses_is_taken_back_without_a_violation(domain):
    with of(domain, hypervisor={"mapping_limit": 6}) as history:
        live = history.map(4)
        assert history.map(4) == 0
        history.unmap(live, 4)
        for _ in range(3):
            history.map_and_unmap(2, pages=4)
        history.teardown()
        assert history.violations == 0


# The shadow table.


def test_a_shadow_that_was_not_told_of_the_end_of_a_mapping_is_found_at_the_next():
    with of("DMA") as history:
        pfn = history.map(phys_pfn=1 << 20)
        history.clear(pfn)
        history.free(pfn)
        assert history.map(phys_pfn=1 << 21) == pfn
        assert history.found("changed_unseen") == 1


def test_a_shadow_that_differs_from_a_live_mapping_is_found_at_the_end():
    with of("DMA") as history:
        pfn = history.map(3)
        slot = history.layout.segment["slots"][0]
        slot.pfn, slot.pages, slot.state = pfn, 3, SLOT_MAPPED
        history.set_shadow_pte(pfn + 1, 1 << 30)
        history.teardown()
        assert history.found("shadow_differs") == 1


def test_a_shadow_that_differs_is_found_when_the_hypervisor_has_been_told():
    with of("DMA") as history:
        history.hypervisor.shadows = 0
        history.map(3)
        assert history.found("shadow_differs") == 3
