"""The DMA API as drivers call it, through every scheme."""

import json

import pytest

from emu.iommu.counters import KERNEL_NAMES, iommu_ctrs
from emu.iommu.domain import DOMAIN_TYPES
from emu.iommu.io_pgtable import ZPCI_PTE_INVALID
from tests.iommu.harness import History
from tests.native.harness import scaled

pytestmark = pytest.mark.interpreted

TRANSLATED = scaled([domain for domain in DOMAIN_TYPES if domain != "identity"], ["DMA-SQ", "s390-lazy"])
STRICT = ["DMA", "s390-strict"]
LAZY = ["DMA-FQ", "DMA-SQ", "s390-lazy"]


def of(domain, **options):
    return History(domain, aperture_mb=16, **options)


@pytest.fixture(params=TRANSLATED)
def history(request):
    with of(request.param, segments=[3, 1, 4]) as made:
        yield made


# One range.


def test_a_map_translates_every_page_of_its_range(history):
    pfn = history.map(5, phys_pfn=0x1234)
    assert [history.pte(pfn + i) for i in range(5)] == [(0x1234 + i) << 12 for i in range(5)]


def test_a_map_translates_nothing_beside_its_range(history):
    pfn = history.map(5)
    assert not history.is_mapped(pfn - 1)
    assert not history.is_mapped(pfn + 5)


def test_an_unmap_ends_the_translation_of_its_range(history):
    pfn, other = history.map(5), history.map(2)
    history.unmap(pfn, 5)
    assert {history.pte(pfn + i) for i in range(5)} == {ZPCI_PTE_INVALID}
    assert history.is_mapped(other)


def test_pages_and_calls_are_counted(history):
    history.map_and_unmap(4, pages=3)
    history.map(7)
    assert (history.ctrs.mapped_pages, history.ctrs.unmapped_pages) == (4 * 3 + 7, 4 * 3)
    assert (history.ctrs.maps, history.ctrs.unmaps) == (5, 4)


# Scatter-gather: segments of 3, 1 and 4 pages, each as far behind the last as that is long.


def test_segments_are_adjacent_for_the_device_and_apart_in_memory(history):
    pfn = history.map_sg(0, 3, phys_pfn=1000)
    physical = [1000, 1001, 1002, 1006, 1008, 1009, 1010, 1011]
    assert [history.pte(pfn + i) >> 12 for i in range(8)] == physical


def test_a_list_may_begin_at_any_segment(history):
    pfn = history.map_sg(1, 2, phys_pfn=1000)
    assert [history.pte(pfn + i) >> 12 for i in range(5)] == [1000, 1002, 1003, 1004, 1005]


def test_a_list_is_unmapped_as_one_range(history):
    pfn = history.map_sg(0, 3)
    history.unmap(pfn, 8)
    assert not any(history.is_mapped(pfn + i) for i in range(8))
    assert (history.ctrs.mapped_pages, history.ctrs.unmapped_pages) == (8, 8)


# What the hypervisor is told.


def test_where_tables_are_shadowed_every_map_call_is_one_sync_map_rpcit(history):
    history.map(1)
    history.map(17)
    history.map_sg(0, 3)
    assert history.ctrs.sync_map_rpcits == 3
    assert history.server.requests == 3


@pytest.mark.parametrize("domain", TRANSLATED)
def test_where_tables_are_not_shadowed_a_map_tells_nobody(domain):
    with of(domain, segments=[3, 1, 4], preset="lpar") as history:
        history.map(17)
        history.map_sg(0, 3)
        assert history.ctrs.sync_map_rpcits == 0
        assert history.server.requests == 0


@pytest.mark.parametrize("domain", STRICT)
def test_strict_every_unmap_is_one_sync_rpcit_whatever_its_size(domain):
    with of(domain, segments=[3, 1, 4]) as history:
        history.map_and_unmap(1, pages=17)
        history.unmap(history.map_sg(0, 3), 8)
        assert history.ctrs.sync_rpcits == 2
        assert history.ctrs.global_rpcits == 0


@pytest.mark.parametrize("domain", LAZY)
def test_lazily_an_unmap_tells_nobody(domain):
    with of(domain) as history:
        history.map_and_unmap(100)
        assert history.ctrs.sync_rpcits == history.ctrs.global_rpcits == 0
        assert history.ctrs.sync_map_rpcits == 100


@pytest.mark.parametrize("domain", STRICT)
def test_strict_an_unmap_is_over_and_its_iova_free_when_it_returns(domain):
    with of(domain) as history:
        history.map_and_unmap(1, pages=2)
        assert history.ctrs.reclaimed == 1
        assert history.ctrs.exposures == 1
        assert history.ctrs.exposure_page_ticks == 2 * history.ctrs.exposure_max_ticks > 0


# Failure.


def test_a_map_for_which_there_is_no_address_fails_and_is_counted():
    with History("DMA", aperture_mb=1) as history:
        assert history.map(256)
        assert history.map(1) == 0
        assert (history.ctrs.maps, history.ctrs.map_failures) == (1, 1)
        assert history.ctrs.mapped_pages == 256
        assert history.ctrs.sync_map_rpcits == 1


@pytest.mark.parametrize("domain", TRANSLATED)
def test_a_map_that_is_refused_by_the_host_leaves_nothing_behind(domain):
    with of(domain, hypervisor={"mapping_limit": 4}) as history:
        assert history.map(8) == 0
        assert history.ctrs.mapped_pages == history.ctrs.unmapped_pages
        report = history.teardown()
        assert (report.table_pages, report.ranges_left) == (0, 0)
        assert history.ctrs.reclaimed == history.ctrs.unmaps == 0
        assert history.violations == 0


# No translation.


def test_identity_gives_the_device_the_physical_address_and_touches_nothing():
    with of("identity", segments=[3, 1]) as history:
        assert history.map(5, phys_pfn=0x1234) == 0x1234
        assert history.map_sg(0, 2, phys_pfn=0x99) == 0x99
        history.unmap(0x1234, 5)
        assert (history.ctrs.maps, history.ctrs.unmaps) == (2, 1)
        others = [name for name in iommu_ctrs.names if name not in ("maps", "unmaps")]
        assert [name for name in others if history.ctrs[name]] == []
        assert history.server.requests == 0
        assert history.domain.s390.pgtable.page_tables_used == 0


# Counters.


def test_counters_have_the_names_of_the_kernels_statistics():
    assert list(KERNEL_NAMES) == ["Mapped pages", "Unmapped pages", "Global RPCITs", "Sync Map RPCITs", "Sync RPCITs"]
    assert set(KERNEL_NAMES.values()) <= set(iommu_ctrs.names)


@pytest.mark.captures
def test_a_real_kernels_statistics_have_these_names(captures_dir):
    described = (captures_dir / "s390x-6.12-strict-nvme-2cpu.json").read_text()
    phases = json.loads(described)["phases"]
    first = next(iter(phases.values())) if isinstance(phases, dict) else phases[0]
    assert all(f'"{name}"' in json.dumps(first) for name in KERNEL_NAMES)
