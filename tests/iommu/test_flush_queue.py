"""Flush queues: what waits for a flush, for which one, and what becomes of it afterwards."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.iommu.domain import STRICT
from emu.iommu.flush_queue import (
    SINGLE_QUEUE,
    iommu_dma_cookie,
    iommu_dma_init_fq,
    iova_fq,
    iova_fq_entry,
)
from emu.iommu.s390_iommu import s390_domain
from emu.native.atomics import read_once, smp_mb
from emu.native.clock import cpu_relax, sched_yield
from emu.native.compile import entry
from emu.native.histogram import BUCKETS
from emu.native.record import deref, element, int64_t, pointer_to
from tests.iommu.harness import INIT_FQ, History
from tests.native.harness import at, eventually, running, scaled, shared

pytestmark = pytest.mark.interpreted

SIZES = [1 << i for i in range(1, scaled(17, 7))]
DEFAULTS = [("DMA-FQ", 256), ("DMA-SQ", 32768)]


def single(size=8, **options):
    return History("DMA-SQ", fq_size=size, aperture_mb=max(size // 128, 16), **options)


def percpu(size=8, cpus=2, **options):
    return History("DMA-FQ", fq_size=size, cpus=cpus, aperture_mb=16, **options)


def mapped(history, count, cpu=0):
    return [history.map(cpu=cpu) for _ in range(count)]


def unmap_all(history, pfns, cpu=0):
    for pfn in pfns:
        history.unmap(pfn, cpu=cpu)


# How much fits.


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_holds_one_entry_less_than_its_size(size):
    with single(size) as history:
        history.map_and_unmap(size - 1)
        assert history.depth() == size - 1
        assert history.ctrs.flushes_full == 0
        history.map_and_unmap(1)
        assert history.ctrs.flushes_full == 1


@pytest.mark.parametrize("size", [2, 4, 64])
def test_the_unmap_that_finds_the_ring_full_is_queued_after_the_flush(size):
    with single(size) as history:
        pfns = mapped(history, size)
        unmap_all(history, pfns)
        assert history.queued_pfns() == pfns[-1:]
        assert history.ctrs.reclaimed == size - 1


@pytest.mark.parametrize(("domain", "size"), [(d, s) for d, s in DEFAULTS if s <= scaled(32768, 256)])
def test_a_full_flush_comes_after_size_unmaps_from_empty_and_one_less_after_another(domain, size):
    with History(domain) as history:
        history.map_and_unmap(size - 1)
        assert history.ctrs.flushes_full == 0
        history.map_and_unmap(1)
        assert history.ctrs.flushes_full == 1
        history.map_and_unmap(size - 2)
        assert history.ctrs.flushes_full == 1
        history.map_and_unmap(1)
        assert history.ctrs.flushes_full == 2
        assert history.ctrs.overruns == 0


def test_the_ring_is_freed_in_the_order_of_the_unmaps():
    with single(8) as history:
        pfns = mapped(history, 7)
        unmap_all(history, pfns[::-1])
        history.flush()
        history.free_rings()
        assert history.magazine("loaded") == pfns[::-1]


def test_depths_are_counted():
    with single(8) as history:
        unmap_all(history, mapped(history, 5))
        ring = history.rings()[0]
        assert (ring.queued, ring.max_depth, ring.total_depth) == (5, 5, 0 + 1 + 2 + 3 + 4)


# Which flush counts.


def test_an_entry_stays_until_a_flush_has_finished():
    with single() as history:
        pfn = history.map()
        history.unmap(pfn)
        history.begin_flush()
        history.free_rings()
        assert history.queued_pfns() == [pfn]
        history.end_flush()
        history.free_rings()
        assert history.queued_pfns() == []


def test_a_flush_that_began_before_the_unmap_does_not_free_it():
    with single() as history:
        pfn = history.map()
        history.begin_flush()
        history.unmap(pfn)
        history.end_flush()
        history.free_rings()
        assert history.queued_pfns() == [pfn]
        history.flush()
        history.free_rings()
        assert history.queued_pfns() == []


def test_while_an_earlier_flush_is_under_way_a_later_one_frees_nothing_queued_between():
    with single() as history:
        before, between = mapped(history, 2)
        history.unmap(before)
        history.begin_flush()
        history.unmap(between)
        history.flush()
        history.free_rings()
        assert history.queued_pfns() == [between]
        history.end_flush()
        history.free_rings()
        assert history.queued_pfns() == []


def test_every_unmap_first_frees_what_others_have_flushed():
    with percpu() as history:
        first, second = mapped(history, 2)
        history.unmap(first, cpu=1)
        history.flush()
        history.unmap(second, cpu=1)
        assert history.queued_pfns(1) == [second]
        assert history.ctrs.reclaimed == 1


def test_a_full_flush_frees_the_ring_of_the_cpu_that_found_it_full_only():
    with percpu(4) as history:
        other = history.map()
        history.unmap(other, cpu=1)
        unmap_all(history, mapped(history, 4), cpu=0)
        assert history.ctrs.flushes_full == 1
        assert history.depth(0) == 1
        assert history.queued_pfns(1) == [other]


kinds = st.sampled_from(["map", "unmap", "unmap", "begin", "end", "timer"])
actions = st.lists(st.tuples(kinds, st.integers(0, 2), st.integers(0, 99)), max_size=120)


@settings(max_examples=scaled(150, 10))
@given(domain=st.sampled_from(["DMA-FQ", "DMA-SQ"]), size=st.sampled_from([2, 4, 8]), actions=actions)
def test_an_iova_is_reusable_only_after_a_flush_that_began_after_its_unmap_has_finished(domain, size, actions):
    with History(domain, cpus=3, fq_size=size, aperture_mb=4) as history:
        live, unmapped_at, under_way, finished = mapped(history, 20), {}, [], []
        for now, (action, cpu, choice) in enumerate(actions):
            flushes = history.ctrs.global_rpcits
            if action == "map":
                pfn = history.map(cpu=cpu)
                assert pfn not in unmapped_at or any(began > unmapped_at[pfn] for began in finished)
                unmapped_at.pop(pfn, None)
                live.append(pfn)
            elif action == "unmap" and live:
                pfn = live.pop(choice % len(live))
                history.unmap(pfn, cpu=cpu)
                unmapped_at[pfn] = now
            elif action == "timer":
                history.fire_flush_timer(cpu)
            elif action == "begin":
                history.begin_flush()
                under_way.append(now)
            elif action == "end" and under_way:
                history.end_flush()
                finished.append(under_way.pop(choice % len(under_way)))
            if history.ctrs.global_rpcits > flushes:
                finished.append(now)
        assert history.violations == 0
        queued = sum(history.depth(ring) for ring in range(len(history.rings())))
        assert history.ctrs.unmaps == history.ctrs.reclaimed + history.ctrs.overrun_iovas + queued


# The overrun, as in the finding.


def a_ring_filled_during_a_flush(history, size):
    """CPU 0 enters fq_flush_iotlb() and is slow; CPU 1 fills its ring and has one more to unmap. Returns that one."""
    pfns = mapped(history, size, cpu=1)
    history.begin_flush()
    unmap_all(history, pfns[:-1], cpu=1)
    return pfns[-1]


@pytest.mark.parametrize("size", [2, 16, 256])
def test_an_append_to_a_ring_that_another_cpus_flush_keeps_full_loses_all_of_it(size):
    with percpu(size) as history:
        history.unmap(a_ring_filled_during_a_flush(history, size), cpu=1)
        assert history.ctrs.flushes_full == 1
        assert history.ctrs.overruns == 1
        assert history.ctrs.overrun_iovas == size
        assert history.depth(1) == 0


def test_counters_at_an_overrun_are_those_of_the_finding():
    with percpu(256) as history:
        last = a_ring_filled_during_a_flush(history, 256)
        cookie = history.domain.cookie
        counters = [(int(cookie.fq_flush_start_cnt.counter), int(cookie.fq_flush_finish_cnt.counter))]
        history.unmap(last, cpu=1)
        counters.append((int(cookie.fq_flush_start_cnt.counter), int(cookie.fq_flush_finish_cnt.counter)))
        history.end_flush()
        counters.append((int(cookie.fq_flush_start_cnt.counter), int(cookie.fq_flush_finish_cnt.counter)))
        assert counters == [(1, 0), (2, 1), (2, 2)]


def test_what_an_overrun_lost_is_never_given_back():
    with percpu(16) as history:
        history.unmap(a_ring_filled_during_a_flush(history, 16), cpu=1)
        history.end_flush()
        history.fire_flush_timer()
        assert history.ctrs.reclaimed == 0
        report = history.teardown()
        assert report.queued == 0
        assert report.ranges_left == 16


def test_an_overrun_is_a_leak_and_not_an_early_reuse():
    with percpu(16) as history:
        last = a_ring_filled_during_a_flush(history, 16)
        lost = {*history.queued_pfns(1), last}
        history.unmap(last, cpu=1)
        history.end_flush()
        assert not lost & {history.map(cpu=cpu) for _ in range(100) for cpu in (0, 1)}
        assert history.violations == 0


def test_the_single_queue_overruns_as_well():
    with single(16, cpus=2) as history:
        history.unmap(a_ring_filled_during_a_flush(history, 16), cpu=1)
        assert (history.ctrs.overruns, history.ctrs.overrun_iovas) == (1, 16)


def test_one_cpu_alone_never_overruns():
    with single(4) as history:
        history.map_and_unmap(scaled(10_000, 100))
        assert history.ctrs.flushes_full > 10
        assert history.ctrs.overruns == 0


def test_who_waits_for_the_flush_under_way_loses_nothing():
    with percpu(16, on_overrun="wait") as history:
        last = a_ring_filled_during_a_flush(history, 16)
        waiter = threading.Thread(target=history.unmap, args=(last,), kwargs={"cpu": 1})
        waiter.start()
        assert eventually(lambda: history.ctrs.flushes_full == 1)
        time.sleep(0.02)
        assert waiter.is_alive()
        history.end_flush()
        waiter.join(10)
        assert not waiter.is_alive()
        assert history.ctrs.overruns == 0
        assert history.ctrs.reclaimed == 15
        assert history.queued_pfns(1) == [last]


def test_nobody_waits_for_a_flush_once_the_machine_is_stopped():
    with percpu(16, on_overrun="wait") as history:
        last = a_ring_filled_during_a_flush(history, 16)
        history.layout.segment["control"][0].abort = 1
        history.unmap(last, cpu=1)
        assert history.ctrs.flushes_full == 1
        # What is lost for that is counted, and the books balance.
        assert (history.ctrs.overruns, history.ctrs.overrun_iovas) == (1, 16)


# The timer.


def test_the_first_unmap_arms_the_timer_for_its_cpu():
    with percpu(cpus=3) as history:
        pfn = history.map()
        assert not history.timer_is_armed()
        history.unmap(pfn, cpu=2)
        assert history.timer_is_armed()
        assert history.domain.cookie.fq_timer.armed_by == 2


def test_an_armed_timer_is_left_alone():
    with percpu(cpus=3) as history:
        history.map_and_unmap(1, cpu=2)
        armed = history.domain.cookie.fq_timer.copy()
        time.sleep(0.01)
        history.map_and_unmap(20, cpu=1)
        assert history.domain.cookie.fq_timer == armed


def test_the_timer_is_not_periodic():
    with single() as history:
        history.map_and_unmap(1)
        history.fire_flush_timer()
        assert not history.timer_is_armed()
        history.map_and_unmap(1)
        assert history.timer_is_armed()


@pytest.mark.parametrize(("domain", "timeout_ms"), [("DMA-FQ", 10), ("DMA-SQ", 1000)])
def test_the_timer_is_armed_for_the_timeout_rounded_up_by_the_timer_wheel(domain, timeout_ms):
    with History(domain, aperture_mb=4) as history:
        history.map_and_unmap(1)
        timer = history.domain.cookie.fq_timer
        delay_ms = (timer.expires_ns - timer.armed_at_ns) / 1e6
        assert timeout_ms <= delay_ms <= timeout_ms + 40


def test_a_full_flush_does_not_cancel_the_timer():
    with single(4) as history:
        history.map_and_unmap(1)
        armed = history.domain.cookie.fq_timer.copy()
        history.map_and_unmap(10)
        assert history.ctrs.flushes_full > 0
        assert history.domain.cookie.fq_timer == armed


def test_the_timer_flushes_once_and_empties_every_ring():
    with percpu(cpus=3) as history:
        for cpu in range(3):
            unmap_all(history, mapped(history, 3), cpu=cpu)
        history.fire_flush_timer(cpu=0)
        assert [history.depth(ring) for ring in range(3)] == [0, 0, 0]
        assert (history.ctrs.flushes_timeout, history.ctrs.global_rpcits) == (1, 1)


def test_what_the_timer_frees_goes_to_the_caches_of_the_cpu_that_armed_it():
    with percpu(cpus=3) as history:
        pfns = mapped(history, 3)
        for cpu, pfn in enumerate(pfns):
            history.unmap(pfn, cpu=cpu)
        history.fire_flush_timer(cpu=1)
        assert history.magazine("loaded", cpu=1) == pfns
        assert history.magazine("loaded", cpu=0) == history.magazine("loaded", cpu=2) == []


def test_an_unmap_while_the_timer_flushes_arms_it_again():
    with single() as history:
        pfns = mapped(history, 2)
        history.unmap(pfns[0])
        history.domain.cookie.fq_timer.state = 0
        history.domain.cookie.fq_timer_on.counter = 0
        history.begin_flush()
        history.unmap(pfns[1])
        assert history.timer_is_armed()
        history.end_flush()
        history.free_rings()
        assert history.queued_pfns() == [pfns[1]]


# From init to teardown.


def test_a_queue_without_memory_is_not_published():
    with History("DMA", aperture_mb=4) as history:
        assert not history.call(INIT_FQ, 0, 0)
        assert history.domain.cookie.fq_domain == 0


@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ"])
def test_a_domain_whose_rings_do_not_fit_falls_back_to_strict(domain):
    with History(domain, fq_memory_mb=0, aperture_mb=4) as history:
        assert history.domain.type == STRICT
        assert history.domain.fq_init_failed
        history.map_and_unmap(3)
        assert history.ctrs.sync_rpcits == 3
        assert history.ctrs.global_rpcits == 0
        assert history.ctrs.reclaimed == 3
        assert not history.timer_is_armed()


def test_a_queue_that_exists_is_left_as_it_is():
    with single() as history:
        history.map_and_unmap(3)
        assert history.call(INIT_FQ, int(history.domain.rings), int(history.domain.ring_entries))
        assert history.depth() == 3


@entry
def publish(cookies, domain, rings, entries, count, size):
    """Set up one queue after another."""
    for i in range(count):
        cookie = element(iommu_dma_cookie, cookies, i)
        cookie.qt = SINGLE_QUEUE
        cookie.fq_size = size
        iommu_dma_init_fq(cookie, deref(s390_domain, domain), pointer_to(element(iova_fq, rings, i)), entries)
    return 0


@entry
def look_at_published(cookies, count, size, half_made):
    """Look at each queue the moment it is published, as queue_iova() does; count those that are not whole."""
    for i in range(count):
        cookie = element(iommu_dma_cookie, cookies, i)
        spins = 0
        while read_once(cookie, "fq_domain") == 0:
            cpu_relax()
            spins += 1
            if spins & 1023 == 0:
                sched_yield()
        smp_mb()
        if cookie.single_fq == 0:
            deref(int64_t, half_made).value += 1
        else:
            fq = deref(iova_fq, cookie.single_fq)
            if fq.mod_mask != size - 1 or fq.entries == 0 or fq.head != fq.tail:
                deref(int64_t, half_made).value += 1
    return 0


def test_a_queue_is_whole_when_it_is_published():
    count, size = scaled(2000, 50), 4
    cookies, rings = shared(iommu_dma_cookie, count), shared(iova_fq, count)
    entries, half_made, domain = shared(iova_fq_entry, size), shared(int64_t), shared(s390_domain)
    rings["head"] = 1
    with running(
        (look_at_published, at(cookies), count, size, at(half_made)),
        (publish, at(cookies), at(domain), at(rings), at(entries), count, size),
    ):
        pass
    assert half_made[0].value == 0
    assert np.count_nonzero(cookies["fq_domain"]) == count


def test_teardown_drops_what_is_queued_without_a_flush():
    with percpu(cpus=2) as history:
        for cpu in range(2):
            unmap_all(history, mapped(history, 3), cpu=cpu)
        report = history.teardown()
        assert report.queued == 6
        assert report.ranges_left == 0
        assert history.ctrs.global_rpcits == 0
        assert history.ctrs.reclaimed == 0
        assert [history.depth(ring) for ring in range(2)] == [0, 0]


# Exposure.


def test_nothing_is_exposed_until_a_flush_ends_it():
    with single() as history:
        history.map_and_unmap(3)
        assert history.ctrs.exposures == 0


def test_exposure_lasts_from_the_unmap_to_the_end_of_the_flush():
    with single() as history:
        pfn = history.map(pages=4)
        history.unmap(pfn, pages=4)
        queued_at = int(deref(iova_fq_entry, int(history.rings()[0].entries)).queued_at)
        time.sleep(0.005)
        history.flush()
        history.free_rings()
        window = int(history.domain.cookie.fq_flush_finished_at) - queued_at
        assert window > 0
        assert history.ctrs.exposure_max_ticks == window
        assert history.ctrs.exposure_page_ticks == 4 * window


def test_every_window_is_in_the_histogram():
    with single() as history:
        history.map_and_unmap(7)
        history.fire_flush_timer()
        histogram = history.layout.segment["exposure_histogram"].reshape(-1, BUCKETS)
        assert history.ctrs.exposures == 7
        assert histogram[history.layout.supervisor].sum() == 7
