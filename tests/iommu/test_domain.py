"""Domains: each type has its operations, its queue, and no more memory in use than it says."""

import pytest

from emu.iommu.domain import (
    DMA_DIRECT,
    DMA_IOMMU,
    DMA_S390,
    DOMAIN_TYPES,
    FQ_DEFAULTS,
    FQ_WARNING,
    PERCPU_FQ,
    SINGLE_FQ,
    STRICT,
)
from emu.iommu.flush_queue import PERCPU_QUEUE, SINGLE_QUEUE
from tests.iommu.harness import History


def of(domain, **options):
    return History(domain, aperture_mb=16, **options)


@pytest.mark.parametrize(
    ("domain", "operations"),
    [
        ("identity", DMA_DIRECT),
        ("DMA", DMA_IOMMU),
        ("DMA-FQ", DMA_IOMMU),
        ("DMA-SQ", DMA_IOMMU),
        ("s390-strict", DMA_S390),
        ("s390-lazy", DMA_S390),
    ],
)
def test_every_type_has_its_operations(domain, operations):
    with of(domain) as history:
        assert history.domain.type == history.domain.wanted_type == DOMAIN_TYPES[domain]
        assert history.domain.dma_ops == operations


@pytest.mark.parametrize("domain", ["identity", "DMA", "s390-strict", "s390-lazy"])
def test_a_type_without_a_queue_publishes_none(domain):
    with of(domain) as history:
        history.map_and_unmap(2)
        assert history.domain.cookie.fq_domain == 0
        assert not history.timer_is_armed()


def test_per_cpu_queues_are_as_many_as_cpus():
    with of("DMA-FQ", cpus=3) as history:
        assert history.domain.cookie.qt == PERCPU_QUEUE
        assert len(history.rings()) == 3
        assert len({int(ring.entries) for ring in history.rings()}) == 3


def test_the_single_queue_is_one_for_all_cpus():
    with of("DMA-SQ", cpus=3) as history:
        assert history.domain.cookie.qt == SINGLE_QUEUE
        for cpu in range(3):
            history.map_and_unmap(1, cpu=cpu)
        assert history.depth() == 3


def test_queues_have_the_kernels_sizes_and_timeouts():
    assert FQ_DEFAULTS == {PERCPU_FQ: (256, 10), SINGLE_FQ: (32768, 1000)}


@pytest.mark.parametrize(("domain", "kind"), [("DMA-FQ", PERCPU_FQ), ("DMA-SQ", SINGLE_FQ)])
def test_a_queue_has_the_defaults_of_its_kind_unless_told_otherwise(domain, kind):
    with of(domain) as history:
        cookie = history.domain.cookie
        assert (cookie.fq_size, cookie.fq_timeout_ns / 1e6) == FQ_DEFAULTS[kind]
    with of(domain, fq_size=16, fq_timeout_ms=2.5) as history:
        cookie = history.domain.cookie
        assert (cookie.fq_size, cookie.fq_timeout_ns) == (16, 2_500_000)
        assert {int(ring.mod_mask) for ring in history.rings()} == {15}


def test_without_memory_for_the_queue_a_domain_is_strict_and_says_so_in_the_kernels_words():
    with of("DMA-FQ", fq_memory_mb=0) as history:
        assert history.domain.type == STRICT
        assert history.domain.wanted_type == PERCPU_FQ
        assert history.domain.fq_init_failed
    assert FQ_WARNING == "iova flush queue initialization failed"


def test_the_page_at_address_0_is_never_handed_out():
    with History("DMA", aperture_start=0, aperture_mb=1) as history:
        assert {history.map(1) for _ in range(255)} == set(range(1, 256))
        assert history.map(1) == 0


@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ"])
def test_reserved_ranges_are_taken_from_every_aperture(domain):
    start = 1 << 20
    reserved = [((start + 250) << 12, ((start + 255) << 12) | 0xFFF), (start << 12, (start << 12) | 0xFFF)]
    with History(domain, aperture_mb=1, reserved=reserved) as history:
        assert history.map(1) == start + 249
        assert history.iovad.nodes_used == 2 + 1


@pytest.mark.parametrize("domain", DOMAIN_TYPES)
def test_every_type_ends_with_nothing_left(domain):
    with of(domain, cpus=2) as history:
        for cpu in range(2):
            history.map_and_unmap(40, pages=3, cpu=cpu)
        reclaimed = int(history.ctrs.reclaimed)
        report = history.teardown()
        assert (report.table_pages, report.ranges_left) == (0, 0)
        assert history.violations == history.ctrs.lost_iovas == 0
        assert report.queued + reclaimed == (0 if domain == "identity" else 80)
