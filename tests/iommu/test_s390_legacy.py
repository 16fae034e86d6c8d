"""The DMA API that s390 had of its own: a pointer that only advances, and one flush when it has come round."""

import gzip
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.iommu.harness import History
from tests.native.harness import scaled

PAGES = 256
START = 1 << 20


def lazy(**options):
    return History("s390-lazy", aperture_mb=1, **options)


def strict(**options):
    return History("s390-strict", aperture_mb=1, **options)


@pytest.fixture(params=["s390-lazy", "s390-strict"])
def either(request):
    with History(request.param, aperture_mb=1) as history:
        yield history


@pytest.fixture
def history():
    """Lazy, 256 pages."""
    with lazy() as made:
        yield made


# The pointer.


@pytest.mark.interpreted
def test_addresses_come_from_the_bottom_up(either):
    assert [either.map(2), either.map(1), either.map(3)] == [START, START + 2, START + 3]


@pytest.mark.interpreted
def test_the_pointer_passes_what_is_free_again(either):
    assert either.map_and_unmap(5) == [START, START + 1, START + 2, START + 3, START + 4]


@pytest.mark.interpreted
def test_the_pointer_wraps_round_when_nothing_is_left_above(either):
    assert either.map_and_unmap(PAGES)[-1] == START + PAGES - 1
    assert either.map(1) == START


@pytest.mark.interpreted
def test_a_range_that_does_not_fit_before_the_end_wraps_early(either):
    either.map_and_unmap(1, pages=250)
    assert either.map(10) == START
    assert either.map(1) == START + 10


@pytest.mark.interpreted
def test_what_is_still_mapped_is_passed_over_after_the_wrap(either):
    kept = [either.map(1) for _ in range(3)]
    either.map_and_unmap(PAGES - 3)
    assert either.map(1) == kept[-1] + 1


# Lazy.


@pytest.mark.interpreted
def test_no_flush_until_the_pointer_wraps_and_then_exactly_one(history):
    history.map_and_unmap(PAGES)
    assert history.ctrs.global_rpcits == history.ctrs.sync_rpcits == 0
    history.map(1)
    assert history.ctrs.global_rpcits == history.ctrs.flushes_wrap == 1
    history.map_and_unmap(PAGES - 1)
    assert history.ctrs.global_rpcits == 1


@pytest.mark.interpreted
def test_the_flush_at_the_wrap_makes_everything_unmapped_reusable(history):
    history.map_and_unmap(PAGES)
    assert history.ctrs.reclaimed == 0
    history.map(1)
    assert history.ctrs.reclaimed == PAGES
    assert [history.map(1) for _ in range(PAGES - 1)] == list(range(START + 1, START + PAGES))


@pytest.mark.interpreted
def test_exposure_lasts_until_the_wrap(history):
    history.map_and_unmap(PAGES)
    assert history.ctrs.exposures == 0
    history.map(1)
    assert history.ctrs.exposures == PAGES
    assert history.ctrs.exposure_max_ticks > 0


@pytest.mark.interpreted
def test_when_all_is_mapped_a_flush_is_tried_and_the_map_fails(history):
    for _ in range(PAGES):
        history.map(1)
    assert history.map(1) == 0
    assert history.ctrs.map_failures == 1
    assert history.ctrs.global_rpcits == 1


@pytest.mark.interpreted
def test_after_a_failure_the_next_unmap_makes_room_again(history):
    pfns = [history.map(1) for _ in range(PAGES)]
    history.map(1)
    history.unmap(pfns[7])
    assert history.map(1) == pfns[7]


# Strict.


@pytest.mark.interpreted
def test_strict_flushes_every_unmap_and_never_everything():
    with strict() as history:
        history.map_and_unmap(PAGES + 10)
        assert history.ctrs.sync_rpcits == PAGES + 10
        assert history.ctrs.global_rpcits == history.ctrs.flushes_wrap == 0
        assert history.ctrs.reclaimed == PAGES + 10


@pytest.mark.interpreted
def test_strict_fails_without_a_flush_when_all_is_mapped():
    with strict() as history:
        for _ in range(PAGES):
            history.map(1)
        assert history.map(1) == 0
        assert history.ctrs.global_rpcits == 0


# The boundary of 4 GiB.


@pytest.mark.interpreted
@pytest.mark.parametrize("aperture_start", [(2 << 32) - (1 << 20), (2 << 32) - (3 << 20)])
def test_no_range_crosses_a_boundary_of_4_gib(aperture_start):
    boundary = 2 << 20
    with History("s390-lazy", aperture_start=aperture_start, aperture_mb=4) as history:
        below = boundary - (aperture_start >> 12)
        history.map_and_unmap(below // 128 - 1, pages=128)
        history.map_and_unmap(1, pages=100)
        assert history.map(28) == boundary - 28
        assert history.map(1) == boundary
    with History("s390-lazy", aperture_start=aperture_start, aperture_mb=4) as history:
        history.map_and_unmap(below // 128 - 1, pages=128)
        history.map_and_unmap(1, pages=100)
        assert history.map(29) == boundary


# Accounts.


@pytest.mark.interpreted
def test_nothing_is_left_when_everything_is_unmapped(either):
    either.map_and_unmap(PAGES + 30)
    either.map_and_unmap(20, pages=7)
    report = either.teardown()
    assert (report.ranges_left, report.table_pages) == (0, 0)
    assert not either.layout.segment["iommu_bitmap"].any()
    assert not either.layout.segment["lazy_bitmap"].any()
    assert either.violations == 0
    assert either.ctrs.reclaimed + report.queued == either.ctrs.unmaps


@pytest.mark.interpreted
def test_a_map_that_failed_is_not_an_unmap(either):
    either.domain.s390.pgtable.page_tables_max = 0
    assert either.map(4) == 0
    either.teardown()
    assert either.ctrs.map_failures == 1
    assert either.ctrs.reclaimed == 0
    assert either.violations == 0
    assert not either.layout.segment["iommu_bitmap"].any()


class LinuxBitmaps:
    """dma_alloc_address() and dma_free_address() with Python's own means."""

    def __init__(self, *, is_strict):
        self.is_strict = is_strict
        self.used, self.lazy, self.next = set(), set(), 0

    def _area(self, start, pages):
        for offset in range(start, PAGES - pages + 1):
            if self.used.isdisjoint(range(offset, offset + pages)):
                self.used.update(range(offset, offset + pages))
                return offset
        return None

    def alloc(self, pages):
        offset = self._area(self.next, pages)
        if offset is None:
            if not self.is_strict:
                self.used -= self.lazy
                self.lazy.clear()
            offset = self._area(0, pages)
            if offset is None:
                return 0
        self.next = offset + pages
        return START + offset

    def free(self, pfn, pages):
        area = range(pfn - START, pfn - START + pages)
        if self.is_strict:
            self.used.difference_update(area)
        else:
            self.lazy.update(area)


steps = st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 1000)), max_size=scaled(200, 60))


@pytest.mark.interpreted
@settings(max_examples=scaled(100, 5))
@given(is_strict=st.booleans(), steps=steps)
def test_any_history_gives_the_addresses_that_linux_gives(is_strict, steps):
    with strict() if is_strict else lazy() as history:
        linux, live = LinuxBitmaps(is_strict=is_strict), []
        for maps, pages, choice in steps:
            if maps or not live:
                expected = linux.alloc(pages)
                assert history.map(pages) == expected
                if expected:
                    live.append((expected, pages))
            else:
                pfn, pages_of_it = live.pop(choice % len(live))
                linux.free(pfn, pages_of_it)
                history.unmap(pfn, pages_of_it)
        assert history.violations == 0


# A real kernel. Lazily it has one RPCIT for each map and nothing else, so the trace is the list of its addresses.


@pytest.mark.captures
def test_addresses_are_those_of_linux_6_1(captures_dir):
    trace = gzip.decompress((captures_dir / "s390x-6.1-legacy-default-nvme-2cpu.trace.gz").read_bytes()).decode()
    rpcits = [(int(addr, 16), int(range_, 16)) for addr, range_ in re.findall(r"addr=0x(\w+) range=0x(\w+)", trace)]
    with History("s390-lazy", aperture_start=1 << 32, aperture_mb=2048) as history:
        # In the order of their addresses, which is that of their allocation: the pointer never came round.
        ours = [(history.map(length >> 12) << 12, length) for _, length in sorted(rpcits)]
    assert ours == sorted(rpcits)
    assert len(ours) > 10_000
