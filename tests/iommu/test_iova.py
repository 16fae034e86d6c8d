"""The IOVA allocator does what Linux's does, address by address."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emu.iommu.iova import IOVA_MAG_SIZE
from tests.iommu.harness import History
from tests.iommu.linux_iova import DMA_32BIT, LinuxIovaDomain
from tests.native.harness import scaled

pytestmark = pytest.mark.interpreted

START = 1 << 20
"""First pfn of the default aperture, at 4 GiB."""
LIMIT_32 = DMA_32BIT - 1


@pytest.fixture
def history():
    """1024 pages above 4 GiB, one CPU."""
    with History(aperture_mb=4) as made:
        yield made


TOP = START + 1024


def straddling(**options):
    """1024 pages, half of them below 4 GiB."""
    return History(aperture_start=(DMA_32BIT - 512) << 12, aperture_mb=4, **options)


# Where a range lies.


def test_addresses_are_handed_out_from_the_top_down(history):
    assert [history.alloc(1) for _ in range(4)] == [TOP - 1, TOP - 2, TOP - 3, TOP - 4]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 64, 100, 128, 200, 256, 300, 512])
def test_a_range_is_aligned_to_its_size_rounded_up_to_a_power_of_two(history, size):
    history.alloc(1)
    assert history.alloc(size) % (1 << (size - 1).bit_length()) == 0


@pytest.mark.parametrize(
    ("size", "pages"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (31, 32), (32, 32), (33, 33), (100, 100)]
)
def test_sizes_below_32_pages_are_rounded_up_to_a_power_of_two_and_larger_ones_are_not(history, size, pages):
    pfn = history.alloc(size)
    assert history.allocated_ranges() == [(pfn, pfn + pages - 1)]


def test_the_hole_that_alignment_left_is_used_when_there_is_no_room_below(history):
    history.alloc(1)
    assert history.alloc(512) == START
    assert history.alloc(64) == TOP - 128


# The magazines.


def test_what_was_freed_last_is_handed_out_first(history):
    pfns = [history.alloc(1) for _ in range(3)]
    for pfn in pfns:
        history.free(pfn, 1)
    assert [history.alloc(1) for _ in range(3)] == pfns[::-1]


@pytest.mark.parametrize("size", [3, 4])
def test_a_range_of_3_pages_comes_back_for_4_because_it_was_rounded_up(history, size):
    pfn = history.alloc(3)
    history.free(pfn, 3)
    assert history.magazine("loaded", order=2) == [pfn]
    assert history.alloc(size) == pfn


def test_a_range_of_33_pages_goes_back_to_the_tree(history):
    history.free(history.alloc(33), 33)
    assert history.allocated_ranges() == []


def test_what_one_cpu_freed_is_not_in_anothers_magazine():
    with History(cpus=2, aperture_mb=4) as history:
        pfn = history.alloc(1, cpu=0)
        history.free(pfn, 1, cpu=0)
        assert history.alloc(1, cpu=1) == pfn - 1
        assert history.alloc(1, cpu=0) == pfn


def test_a_magazine_holds_127_then_the_other_is_loaded(history):
    pfns = [history.alloc(1) for _ in range(IOVA_MAG_SIZE + 1)]
    for pfn in pfns:
        history.free(pfn, 1)
    assert history.magazine("prev") == pfns[:127]
    assert history.magazine("loaded") == pfns[127:]


def test_an_empty_magazine_is_swapped_with_the_previous_one(history):
    pfns = [history.alloc(1) for _ in range(IOVA_MAG_SIZE + 1)]
    for pfn in pfns:
        history.free(pfn, 1)
    assert [history.alloc(1), history.alloc(1)] == [pfns[127], pfns[126]]
    assert history.magazine("prev") == []
    assert history.magazine("loaded") == pfns[:126]


def test_a_cached_range_above_the_limit_is_passed_over_and_the_youngest_takes_its_place():
    with straddling() as history:
        low = history.alloc(1, limit_pfn=LIMIT_32)
        high = [history.alloc(1) for _ in range(2)]
        for pfn in (low, *high):
            history.free(pfn, 1)
        assert history.alloc(1, limit_pfn=LIMIT_32) == low
        assert history.magazine("loaded") == high[::-1]


def test_the_tree_serves_when_no_cached_range_is_below_the_limit():
    with straddling() as history:
        high = history.alloc(1)
        history.free(high, 1)
        assert history.alloc(1, limit_pfn=LIMIT_32) == LIMIT_32
        assert history.magazine("loaded") == [high]


def test_a_cached_range_of_which_only_the_start_is_below_the_limit_is_passed_over(history):
    pfn = history.alloc(4)
    history.free(pfn, 4)
    assert history.alloc(4, limit_pfn=pfn + 2) == pfn - 4
    assert history.alloc(4, limit_pfn=pfn + 3) == pfn


# The depot.


def fill_depot(history, magazines, cpu=0):
    """Free so many that both magazines of the CPU are full and `magazines` are in the depot, with one pfn loaded."""
    pfns = [history.alloc(1, cpu=cpu) for _ in range((magazines + 1) * IOVA_MAG_SIZE + 1)]
    for pfn in pfns:
        history.free(pfn, 1, cpu=cpu)
    return pfns


def test_a_full_magazine_goes_to_the_depot_when_the_other_is_full_too(history):
    pfns = fill_depot(history, 1)
    assert history.depot_size() == 1
    assert history.magazine("loaded") == pfns[-1:]
    assert history.magazine("prev") == pfns[:127]


def test_the_depot_serves_any_cpu_the_last_magazine_first():
    with History(cpus=2, aperture_mb=4) as history:
        pfns = fill_depot(history, 2, cpu=0)
        assert history.alloc(1, cpu=1) == pfns[3 * 127 - 1]
        assert history.depot_size() == 1


def test_a_magazine_for_the_depot_schedules_its_worker(history):
    assert history.pending_depot_works() == []
    fill_depot(history, 1)
    assert history.pending_depot_works() == [0]


def test_the_worker_returns_one_magazine_a_run_while_the_depot_holds_more_than_there_are_cpus():
    with History(cpus=2, aperture_mb=4) as history:
        fill_depot(history, 4)
        ranges = len(history.allocated_ranges())
        history.run_depot_work(0)
        assert history.depot_size() == 3
        assert len(history.allocated_ranges()) == ranges - IOVA_MAG_SIZE
        assert history.pending_depot_works() == [0]
        history.run_depot_work(0)
        assert history.depot_size() == 2
        assert history.pending_depot_works() == [0]


def test_the_worker_stops_when_the_depot_holds_one_magazine_for_each_cpu():
    with History(cpus=2, aperture_mb=4) as history:
        fill_depot(history, 2)
        history.run_depot_work(0)
        assert history.depot_size() == 2
        assert history.pending_depot_works() == []


def test_what_a_depot_of_before_6_7_has_no_room_for_goes_back_to_the_tree():
    with History(aperture_mb=4, depot_magazines=1) as history:
        pfns = [history.alloc(1) for _ in range(3 * IOVA_MAG_SIZE + 1)]
        for pfn in pfns[:-1]:
            history.free(pfn, 1)
        assert history.depot_size() == 1
        assert len(history.allocated_ranges()) == len(pfns)
        history.free(pfns[-1], 1)
        assert history.depot_size() == 1
        assert history.magazine("loaded") == pfns[-1:]
        assert len(history.allocated_ranges()) == len(pfns) - IOVA_MAG_SIZE
        assert history.pending_depot_works() == []


# Exhaustion.


@pytest.fixture
def small():
    """256 pages, one CPU."""
    with History(aperture_mb=1) as made:
        yield made


def test_a_range_that_does_not_fit_anywhere_is_refused(small):
    assert small.alloc(256) == START
    assert small.alloc(1) == 0


def test_caches_are_emptied_once_before_an_allocation_fails(small):
    pfns = [small.alloc(1) for _ in range(256)]
    for pfn in pfns:
        small.free(pfn, 1)
    assert small.ctrs.rcache_flushes == 0
    assert small.alloc(256) == START
    assert small.ctrs.rcache_flushes == 1


def test_caches_stay_when_the_caller_has_another_range_to_try(small):
    pfns = [small.alloc(1) for _ in range(256)]
    for pfn in pfns:
        small.free(pfn, 1)
    assert small.alloc(256, flush_rcache=False) == 0
    assert small.ctrs.rcache_flushes == 0


def test_nothing_is_lost_by_a_failed_allocation(small):
    pfns = [small.alloc(1) for _ in range(256)]
    assert small.alloc(1) == 0
    for pfn in pfns:
        small.free(pfn, 1)
    small.free_all_cached()
    assert small.iovad.nodes_used == 0
    assert small.ctrs.lost_iovas == 0
    assert small.alloc(256) == START


def test_no_memory_for_another_range_is_a_failed_allocation():
    with History(aperture_mb=4, iova_ranges=64) as history:
        pfns = [history.alloc(1) for _ in range(64)]
        assert history.alloc(1) == 0
        history.free(pfns[0], 1)
        assert history.alloc(1) == pfns[0]


def test_freeing_what_was_not_allocated_is_counted_and_changes_nothing(history):
    history.alloc(64)
    ranges = history.allocated_ranges()
    history.free(START, 64)
    assert history.ctrs.lost_iovas == 1
    assert history.violations == 64
    assert history.allocated_ranges() == ranges


def test_what_is_handed_out_twice_is_a_violation(history):
    pfn = history.alloc(2)
    history.free(pfn, 2)
    history.free(pfn, 2)
    assert history.violations == 2


# Limits.


def test_a_device_of_fewer_address_bits_gets_no_address_above_them():
    with History(aperture_mb=8, dma_bits=32, aperture_start=(1 << 32) - (4 << 20)) as history:
        assert history.map(1) == LIMIT_32


def test_addresses_below_4_gib_are_used_up_before_any_above():
    with straddling() as history:
        below = [history.map(1) for _ in range(512)]
        assert below == list(range(LIMIT_32, LIMIT_32 - 512, -1))
        assert history.domain.pci_32bit_workaround
        assert history.map(1) == DMA_32BIT + 511


def test_after_the_first_address_above_4_gib_none_below_is_tried_any_more():
    with straddling() as history:
        low = history.map(512)
        assert history.map(512) == DMA_32BIT
        assert not history.domain.pci_32bit_workaround
        history.unmap(low, 512)
        assert history.map(1) == LIMIT_32


def test_an_aperture_above_4_gib_gives_up_the_32_bit_addresses_at_once(history):
    assert history.map(1) == TOP - 1
    assert not history.domain.pci_32bit_workaround


def test_a_size_that_failed_below_4_gib_fails_again_without_a_search_until_something_below_is_freed():
    with straddling() as history:
        block = history.alloc(256, limit_pfn=LIMIT_32)
        history.alloc(128, limit_pfn=LIMIT_32)
        assert history.alloc(256, limit_pfn=LIMIT_32, flush_rcache=False) == 0
        assert history.iovad.max32_alloc_size == 256
        assert history.alloc(128, limit_pfn=LIMIT_32) == DMA_32BIT - 512
        history.free(block, 256)
        assert history.iovad.max32_alloc_size == DMA_32BIT
        assert history.alloc(256, limit_pfn=LIMIT_32) == block


# Where the search begins.


def test_the_search_begins_below_the_last_allocation_whatever_hole_is_above(history):
    history.alloc(1)
    assert history.alloc(256) == TOP - 512
    assert history.alloc(33) == TOP - 512 - 64


def test_a_free_above_the_last_allocation_moves_the_start_of_the_search_up_to_it(history):
    blocks = [history.alloc(64) for _ in range(4)]
    history.free(blocks[1], 64)
    assert history.alloc(64) == blocks[1]
    assert history.alloc(64) == blocks[3] - 64


def test_when_the_last_allocation_is_freed_the_search_begins_above_it(history):
    kept, freed = history.alloc(64), history.alloc(64)
    history.free(freed, 64)
    assert history.alloc(128) == kept - 192
    assert history.alloc(64) == kept - 256
    assert history.allocated_ranges() == [(kept - 256, kept - 193), (kept - 192, kept - 65), (kept, kept + 63)]


# Reserved ranges.


def test_a_reserved_range_is_never_handed_out():
    first, last = START + 500, START + 700
    with History(aperture_mb=4, reserved=[(first << 12, (last << 12) | 0xFFF)]) as history:
        pfns = {history.alloc(1) for _ in range(1024 - 201)}
        assert pfns == set(range(START, TOP)) - set(range(first, last + 1))
        assert history.alloc(1) == 0


def test_reserved_ranges_are_still_there_at_the_end():
    reserved = [((START + i * 100) << 12, ((START + i * 100) << 12) | 0xFFF) for i in range(3)]
    with History(aperture_mb=4, reserved=reserved) as history:
        for pfn in history.map_and_unmap(20, pages=5):
            assert pfn
        report = history.teardown()
        assert history.iovad.nodes_used == 3
        assert report.ranges_left == 0


# All of it, against a second implementation.

cpu_ids = st.integers(0, 2)
allocations = st.tuples(st.just("alloc"), cpu_ids, st.integers(1, 300), st.integers(1, 3), st.booleans())
bursts = st.tuples(st.just("alloc"), cpu_ids, st.integers(1, 4), st.integers(100, 400), st.booleans())
frees = st.tuples(st.just("free"), cpu_ids, st.integers(0, 1 << 20), st.integers(1, 400), st.booleans())
depot_works = st.tuples(st.just("depot"), st.just(0), st.integers(0, 5), st.integers(1, 4), st.booleans())
steps = st.lists(st.one_of(allocations, bursts, frees, depot_works), min_size=1, max_size=40)


@settings(max_examples=scaled(150, 6))
@given(cpus=st.integers(1, 3), reserved=st.booleans(), depot_magazines=st.sampled_from([0, 0, 1, 2]), steps=steps)
@example(cpus=1, reserved=False, depot_magazines=0, steps=[("alloc", 0, 1, 1024, True), ("free", 0, 0, 1024, False)])
@example(cpus=1, reserved=False, depot_magazines=1, steps=[("alloc", 0, 1, 1024, True), ("free", 0, 0, 1024, False)])
def test_any_history_gives_the_addresses_that_linux_gives(cpus, reserved, depot_magazines, steps):
    first = DMA_32BIT - 512
    ranges = [(first + 200, first + 209), (first + 700, first + 700)] if reserved else []
    in_bytes = [(lo << 12, (hi << 12) | 0xFFF) for lo, hi in ranges]
    with straddling(cpus=cpus, reserved=in_bytes, depot_magazines=depot_magazines) as history:
        linux = LinuxIovaDomain(first, cpus, ranges, depot_magazines)
        held = []
        for step, cpu, number, count, flag in steps:
            if step == "alloc":
                allocate(history, linux, held, cpu % cpus, number, count, below_4_gib=flag)
            elif step == "free":
                free(history, linux, held, cpu % cpus, number, count)
            else:
                run_depot_works(history, linux, number, count)
            assert history.pending_depot_works() == [order for order in range(6) if linux.work[order]]
        assert history.allocated_ranges() == linux.ranges()
        assert not linux.overlaps()
        free(history, linux, held, 0, 0, len(held))
        history.free_all_cached()
        assert history.iovad.nodes_used == len(ranges)
        assert history.allocated_ranges() == sorted(ranges)
        assert history.violations == 0
        assert history.ctrs.lost_iovas == 0


def allocate(history, linux, held, cpu, size, count, *, below_4_gib):
    limit = LIMIT_32 if below_4_gib else DMA_32BIT + 511
    for _ in range(count):
        expected = linux.alloc(size, cpu, limit, not below_4_gib)
        assert history.alloc(size, cpu, limit, flush_rcache=not below_4_gib) == expected
        if expected:
            held.append((expected, size))


def free(history, linux, held, cpu, seed, count):
    for i in range(min(count, len(held))):
        pfn, size = held.pop((seed * (i + 1)) % len(held))
        linux.free(pfn, size, cpu)
        history.free(pfn, size, cpu)


def run_depot_works(history, linux, order, runs):
    for _ in range(runs):
        if linux.work[order]:
            linux.run_depot_work(order)
            history.run_depot_work(order)
