"""Switching a domain's type: what goes live, what needs the driver unbound, and what the two bugs do to it."""

import errno
from itertools import product

import pytest

from emu.iommu.domain import (
    DMA_DIRECT,
    DMA_IOMMU,
    DOMAIN_TYPES,
    FQ_DEFAULTS,
    IDENTITY,
    PERCPU_FQ,
    S390_LAZY,
    S390_STRICT,
    SINGLE_FQ,
    STRICT,
)
from emu.iommu.flush_queue import PERCPU_QUEUE, SINGLE_QUEUE
from emu.machine.context import SLOT_FAILED, SLOT_MAPPED
from tests.iommu.harness import History

pytestmark = pytest.mark.interpreted

LAZY = {"DMA-FQ": (PERCPU_FQ, PERCPU_QUEUE), "DMA-SQ": (SINGLE_FQ, SINGLE_QUEUE)}
REBOUND = ["DMA", "DMA-FQ", "DMA-SQ", "identity"]
lazy = pytest.mark.parametrize(("kind", "queue"), LAZY.values(), ids=LAZY.keys())


def of(domain="DMA", **options):
    return History(domain, aperture_mb=4, **{"cpus": 2, **options})


def state(history):
    domain = history.domain
    return [int(value) for value in (domain.type, domain.dma_ops, domain.cookie.fq_domain, domain.cookie.qt)]


def found(history):
    """Violations of each kind, after the domain has gone."""
    history.teardown()
    ctrs = history.ctrs
    return history.violations, int(ctrs.queued_while_strict), int(ctrs.queues_of_another_type)


@lazy
def test_a_strict_domain_becomes_lazy_while_its_driver_works(kind, queue):
    with of() as history:
        live = history.map()
        assert history.store_type(kind) == 0
        assert (history.domain.type, history.domain.cookie.qt) == (kind, queue)
        assert history.is_mapped(live)
        assert history.group.mutex.val == 0


@lazy
def test_the_queue_of_a_switched_domain_is_what_it_would_have_been_from_the_start(kind, queue):
    with of() as history:
        history.store_type(kind)
        history.map_and_unmap(1)
        cookie, used = history.domain.cookie, history.rings()[: 2 if queue == PERCPU_QUEUE else 1]
        assert (cookie.fq_size, cookie.fq_timeout_ns / 1e6) == FQ_DEFAULTS[kind]
        assert {int(ring.mod_mask) + 1 for ring in used} == {FQ_DEFAULTS[kind][0]}
        assert history.timer_is_armed()


@lazy
def test_unmaps_are_flushed_one_by_one_before_and_queued_after(kind, queue):  # noqa: ARG001
    with of() as history:
        history.map_and_unmap(3)
        live = history.map()
        history.store_type(kind)
        history.unmap(live)
        history.map_and_unmap(4)
        assert history.ctrs.sync_rpcits == 3
        assert history.depth() == 5
        assert live in history.queued_pfns()


@lazy
def test_a_switched_domain_ends_with_nothing_lost_and_nothing_violated(kind, queue):  # noqa: ARG001
    with of() as history:
        history.map_and_unmap(40)
        history.store_type(kind)
        for cpu in range(2):
            history.map_and_unmap(40, pages=3, cpu=cpu)
        assert found(history) == (0, 0, 0)
        report = history.layout.segment["teardown"][0]
        assert report.queued + history.ctrs.reclaimed == 120
        assert (report.table_pages, report.ranges_left, history.ctrs.lost_iovas) == (0, 0, 0)


@pytest.mark.parametrize(
    ("domain", "wanted"),
    [pair for pair in product(DOMAIN_TYPES, repeat=2) if pair not in (("DMA", "DMA-FQ"), ("DMA", "DMA-SQ"))],
)
def test_every_other_change_is_refused_while_a_driver_is_bound(domain, wanted):
    with of(domain) as history:
        before = state(history)
        assert history.store_type(DOMAIN_TYPES[wanted]) == -errno.EPERM
        assert state(history) == before
        assert history.group.mutex.val == 0


@pytest.mark.parametrize("number", [-1, 6, 1 << 40])
def test_a_type_that_there_is_not_is_invalid(number):
    with of() as history:
        assert history.store_type(number) == -errno.EINVAL
        history.unbind()
        assert history.store_type(number) == -errno.EINVAL


@pytest.mark.parametrize("options", [{"faults": ["fq-alloc"]}, {"fq_memory_mb": 0}], ids=["fault", "no memory"])
@lazy
def test_without_memory_for_the_queue_a_live_domain_stays_strict(kind, queue, options):  # noqa: ARG001
    with of(**options) as history:
        assert history.store_type(kind) == -errno.ENOMEM
        assert history.domain.type == STRICT
        assert history.domain.fq_init_failed
        history.map_and_unmap(3)
        assert (history.ctrs.sync_rpcits, history.ctrs.reclaimed) == (3, 3)
        assert found(history) == (0, 0, 0)


@pytest.mark.parametrize("domain", LAZY)
def test_with_the_fault_a_new_domain_falls_back_to_strict(domain):
    with of(domain, faults=["fq-alloc"]) as history:
        assert history.domain.type == STRICT
        assert history.domain.fq_init_failed


@lazy
def test_with_the_fault_a_domain_made_anew_falls_back_to_strict(kind, queue):  # noqa: ARG001
    with of(faults=["fq-alloc"]) as history:
        history.unbind()
        assert history.store_type(IDENTITY) == 0
        assert history.store_type(kind) == 0
        assert history.domain.type == STRICT
        assert history.domain.fq_init_failed


@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ"])
def test_an_unbound_driver_has_nothing_mapped_and_nothing_in_reach(domain):
    with of(domain) as history:
        history.map_and_unmap(5)
        slot = history.layout.segment["slots"][0]
        slot.pfn, slot.pages, slot.state = history.map(pages=4), 4, SLOT_MAPPED
        history.unbind()
        assert not history.is_mapped(int(slot.pfn))
        assert history.shadow_pte(int(slot.pfn)) == history.pte(int(slot.pfn))
        assert slot.state == SLOT_FAILED
        assert history.hypervisor.mapped == 0
        assert history.ctrs.reclaimed == history.ctrs.exposures == 5


@pytest.mark.parametrize("wanted", REBOUND)
@pytest.mark.parametrize("domain", REBOUND)
def test_without_a_driver_any_type_becomes_any_other_and_is_as_good_as_new(domain, wanted):
    with of(domain) as history:
        history.map_and_unmap(30, pages=3)
        history.unbind()
        assert history.store_type(DOMAIN_TYPES[wanted]) == 0
        assert history.domain.type == DOMAIN_TYPES[wanted]
        assert history.domain.dma_ops == (DMA_DIRECT if wanted == "identity" else DMA_IOMMU)
        for cpu in range(2):
            history.map_and_unmap(30, pages=3, cpu=cpu)
        assert found(history) == (0, 0, 0)
        report = history.layout.segment["teardown"][0]
        assert (report.table_pages, report.ranges_left, history.ctrs.lost_iovas) == (0, 0, 0)


@pytest.mark.parametrize("other", [S390_LAZY, S390_STRICT])
def test_the_other_dma_api_is_out_of_reach_even_without_a_driver(other):
    with of() as history:
        history.unbind()
        assert history.store_type(other) == -errno.EINVAL
    with of("s390-lazy") as history:
        history.unbind()
        assert history.store_type(STRICT) == -errno.EINVAL


def test_what_an_overrun_has_lost_is_free_again_in_a_new_domain():
    with History("DMA-SQ", aperture_mb=1, fq_size=4) as history:
        history.begin_flush()
        history.map_and_unmap(4)
        assert history.ctrs.overruns == 1
        history.unbind()
        history.store_type(IDENTITY)
        history.store_type(STRICT)
        assert all(history.map() for _ in range(256))
        assert history.violations == 0


def test_with_the_first_bug_a_switch_to_queues_of_each_cpu_builds_the_single_one():
    with of(bugs=["init-fq-before-type"]) as history:
        assert history.store_type(PERCPU_FQ) == 0
        assert (history.domain.type, history.domain.cookie.qt) == (PERCPU_FQ, SINGLE_QUEUE)
        history.map_and_unmap(3, cpu=1)
        assert history.depth() == 3
        assert found(history) == (0, 0, 1)


def test_the_first_bug_cannot_be_seen_where_the_single_queue_is_wanted():
    with of(bugs=["init-fq-before-type"]) as history:
        history.store_type(SINGLE_FQ)
        assert history.domain.cookie.qt == SINGLE_QUEUE
        assert found(history) == (0, 0, 0)


@lazy
def test_with_the_second_bug_the_type_is_right_in_the_end(kind, queue):
    with of(bugs=["queue-before-type"]) as history:
        assert history.store_type(kind) == 0
        assert (history.domain.type, history.domain.cookie.qt) == (kind, queue)


@lazy
def test_an_unmap_that_is_queued_while_the_type_says_strict_is_found(kind, queue):  # noqa: ARG001
    with of() as history:
        history.store_type(kind)
        history.domain.type = STRICT
        history.map_and_unmap(3)
        history.domain.type = kind
        history.map_and_unmap(2)
        assert found(history) == (0, 3, 0)


@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ", "identity", "s390-lazy"])
def test_bugs_do_nothing_to_a_domain_that_is_not_switched(domain):
    with of(domain, bugs=["init-fq-before-type", "queue-before-type"]) as history:
        history.map_and_unmap(5)
        assert found(history) == (0, 0, 0)
