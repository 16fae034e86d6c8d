"""Steps on an allocator whose state is made by hand: they tell what would happen, and change what they say."""

import pytest

from emu.addresses import steps
from emu.addresses.allocator import Allocator
from emu.addresses.aperture import Aperture
from emu.addresses.depots import Depots
from emu.addresses.peek import DEPOT, EMPTIED, LOADED, NOWHERE, PREV, TREE
from emu.iommu.iova import IOVA_MAG_SIZE

pytestmark = pytest.mark.interpreted

START = 1 << 32
END_PFN = (START >> 12) + 256
MILLISECOND = 1_000_000


@pytest.fixture
def allocator():
    with Allocator("DMA-SQ", 2, Aperture(START, START + (1 << 20))) as made:
        yield made


def allocated(allocator, count, cpu=0, pages=1):
    """So many allocations, each of which is what a look before said."""
    pfns = []
    for _ in range(count):
        pfns.append(allocator.step(steps.PEEK, pages, cpu=cpu) >> 3)
        assert allocator.step(steps.ALLOC_IF, pages, pfns[-1], cpu=cpu) == 0
    return pfns


def free(allocator, pfns, cpu=0, pages=1):
    for pfn in pfns:
        allocator.step(steps.FREE, pfn, pages, cpu=cpu)


def next_of(allocator, cpu=0, pages=1):
    answer = allocator.step(steps.PEEK, pages, cpu=cpu)
    return answer >> 3, answer & 7


def test_a_fresh_space_is_handed_out_top_down_from_the_tree(allocator):
    assert next_of(allocator) == (END_PFN - 1, TREE)
    assert next_of(allocator, pages=3) == (END_PFN - 4, TREE)
    assert allocated(allocator, 3) == [END_PFN - 1, END_PFN - 2, END_PFN - 3]
    assert allocator.violations == 0


def test_looking_changes_nothing(allocator):
    allocated(allocator, 2)
    before = [array.copy() for array in (allocator.layout.segment["domain"], allocator.layout.segment["magazines"])]
    allocator.step(steps.PEEK, 1)
    allocator.step(steps.PEEK_AFTER, 1, 1, 1)
    allocator.step(steps.PEEK_WITHOUT, 1, END_PFN - 1, 0)
    assert allocator.step(steps.ALLOC_IF, 1, END_PFN - 1) >> 3 == END_PFN - 3
    after = [allocator.layout.segment["domain"], allocator.layout.segment["magazines"]]
    used = before[0][0].cookie.iovad
    now = after[0][0].cookie.iovad
    for name in ("cached_node", "cached32_node", "max32_alloc_size", "nodes_used", "free_nodes"):
        assert used[name] == now[name], name
    assert (before[1] == after[1]).all()


def test_what_was_freed_last_comes_next_on_the_cpu_that_freed_it(allocator):
    first, second = allocated(allocator, 2)
    free(allocator, [first, second])
    assert next_of(allocator) == (second, LOADED)
    assert next_of(allocator, cpu=1) == (END_PFN - 3, TREE)
    place = allocator.find(first, 0)
    assert (place.source, place.magazine, place.depth) == (LOADED, (LOADED, 0), 1)
    assert allocator.step(steps.AT, 0, place.code) == first
    assert allocator.step(steps.COUNT, 0, place.code) == 2
    assert allocator.find(END_PFN - 3, 0).source == NOWHERE


def test_every_magazine_is_looked_into(allocator):
    pfns = allocated(allocator, 3 * IOVA_MAG_SIZE - 126)
    assert len(pfns) == 2 * IOVA_MAG_SIZE + 1
    free(allocator, pfns)
    # The first magazine went to the depot when the third began.
    assert allocator.find(pfns[0], 0).source == PREV
    assert allocator.find(pfns[IOVA_MAG_SIZE], 0).source == DEPOT
    assert allocator.find(pfns[-1], 0).source == LOADED
    assert next_of(allocator, cpu=1) == (pfns[2 * IOVA_MAG_SIZE - 1], DEPOT)
    allocated(allocator, 1)
    assert next_of(allocator) == (pfns[IOVA_MAG_SIZE - 1], PREV)


def test_caches_that_would_have_to_be_emptied_cannot_be_looked_into(allocator):
    pfns = allocated(allocator, 256)
    free(allocator, pfns[:3])
    assert next_of(allocator, cpu=1) == (0, EMPTIED)
    assert allocator.step(steps.ALLOC_IF, 1, pfns[0], cpu=1) == 0
    assert allocator.find(pfns[1], 0).source == NOWHERE
    assert allocator.violations == 0


def test_taking_from_the_middle_keeps_the_others_order(allocator):
    pfns = allocated(allocator, 4)
    free(allocator, pfns)
    allocator.step(steps.TAKE, 0, allocator.find(pfns[1], 0).code)
    allocator.step(steps.HAND_OUT, pfns[1], 1)
    assert allocated(allocator, 3) == [pfns[3], pfns[2], pfns[0]]
    assert allocator.violations == 0


def test_what_is_taken_is_replaced_where_that_is_asked_for(allocator):
    pfns = allocated(allocator, 3)
    free(allocator, pfns[:2])
    allocator.step(steps.TAKE, 0, allocator.find(pfns[0], 0).code, pfns[2])
    assert [allocator.find(pfn, 0).depth for pfn in (pfns[1], pfns[2])] == [0, 1]


def test_what_lies_above_sinks_to_the_bottom(allocator):
    pfns = allocated(allocator, 4)
    free(allocator, pfns)
    allocator.step(steps.SINK, 0, allocator.find(pfns[1], 0).code)
    assert allocated(allocator, 4) == [pfns[1], pfns[0], pfns[3], pfns[2]]


def test_runs_of_two_magazines_are_exchanged_as_far_as_both_go(allocator):
    pfns = allocated(allocator, 5)
    free(allocator, pfns[:3])
    free(allocator, pfns[3:], cpu=1)
    allocator.step(steps.EXCHANGE, 0, allocator.find(pfns[2], 0).code, allocator.find(pfns[4], 0).code)
    assert allocated(allocator, 3) == [pfns[4], pfns[3], pfns[0]]
    assert allocated(allocator, 2, cpu=1) == [pfns[2], pfns[1]]


def test_what_comes_after_another_cpus_allocation_is_told(allocator):
    assert allocator.step(steps.PEEK_AFTER, 1, 1, 1, cpu=0) >> 3 == END_PFN - 2
    assert allocator.step(steps.PEEK_AFTER, 1, 4, 1, cpu=0) >> 3 == END_PFN - 5


def test_what_came_before_another_cpus_allocation_is_told(allocator):
    cached = allocator.step(steps.CACHED, 0)
    (pfn,) = allocated(allocator, 1, cpu=1)
    assert allocator.step(steps.PEEK_WITHOUT, 1, pfn, cached, cpu=0) >> 3 == pfn
    assert next_of(allocator) == (pfn - 1, TREE)


def test_a_range_of_the_tree_can_be_taken_where_it_is_free(allocator):
    (top,) = allocated(allocator, 1)
    assert allocator.step(steps.RANGE_IN, top - 3, 8) == top << 20 | 1
    assert allocator.step(steps.TREE_TAKE, top, 1) == 0
    assert allocator.step(steps.TREE_TAKE, top - 2, 1) == 1
    assert not allocator.step(steps.TREE_FREE, top - 2, 1)
    assert allocated(allocator, 2) == [top - 1, top - 3]
    allocator.step(steps.TREE_GIVE, top - 2)
    assert allocator.step(steps.TREE_FREE, top - 2, 1)
    assert allocator.step(steps.RANGE_IN, top - 2, 1) == 0


def test_an_entry_is_dropped_from_the_middle_of_a_ring(allocator):
    pfns = allocated(allocator, 3)
    for pfn in pfns:
        allocator.step(steps.QUEUE, pfn, 1)
    assert [allocator.step(steps.RING_FIND, 0, pfn) for pfn in pfns] == [0, 1, 2]
    assert allocator.step(steps.RING_HAS, 0, 0)
    assert not allocator.step(steps.RING_HAS, 0, 1)
    allocator.step(steps.RING_DROP, 0, 1)
    assert [allocator.step(steps.RING_FIND, 0, pfn) for pfn in pfns] == [0, -1, 1]
    allocator.step(steps.HAND_OUT, pfns[1], 1)
    assert allocator.violations == 0


def test_only_what_a_finished_flush_covers_is_freed(allocator):
    first, second = allocated(allocator, 2)
    allocator.step(steps.QUEUE, first, 1)
    allocator.step(steps.BEGIN_FLUSH)
    allocator.step(steps.QUEUE, second, 1)
    assert allocator.step(steps.RING_LAST, 0, first, 1) == -1
    allocator.step(steps.END_FLUSH)
    assert [allocator.step(steps.RING_LAST, 0, pfn, 1) for pfn in (first, second)] == [0, -1]
    assert allocator.step(steps.RING_FREE, 0, 8, cpu=1) == 1
    assert next_of(allocator, cpu=1) == (first, LOADED)


def test_what_is_handed_out_twice_is_a_violation(allocator):
    (pfn,) = allocated(allocator, 1)
    allocator.step(steps.HAND_OUT, pfn, 1)
    assert allocator.violations == 1


# --- the depots' workers --------------------------------------------------------------------------------------------


def rich_depot(allocator, magazines):
    """Free enough to fill that many of the depot's; returns the pfns, oldest first."""
    pfns = [allocator.step(steps.ALLOC, 1) for _ in range((2 + magazines) * IOVA_MAG_SIZE)]
    for pfn in pfns:
        allocator.step(steps.HAND_OUT, pfn, 1)
    free(allocator, [*pfns])
    free(allocator, allocated(allocator, 1))
    return pfns


@pytest.fixture
def rich():
    with Allocator("DMA", 1, Aperture(START, START + (16 << 20))) as made:
        rich_depot(made, 3)
        yield made


def test_a_worker_runs_at_the_tick_after_its_100_ms_and_then_every_100_ms(rich):
    depots = Depots(rich, 4 * MILLISECOND, MILLISECOND)
    size = rich.depot_size(0)
    depots.arm(3 * MILLISECOND)
    depots.run_until(105 * MILLISECOND, 0)
    assert rich.depot_size(0) == size
    depots.run_until(106 * MILLISECOND, 0)
    assert rich.depot_size(0) == size - 1
    depots.run_until(300 * MILLISECOND, 0)
    assert rich.depot_size(0) == max(size - 2, 1)


def test_a_run_of_a_worker_is_taken_back(rich):
    depots = Depots(rich, 4 * MILLISECOND, 0)
    depots.arm(0)
    before, size = rich.step(steps.CACHED, 0), rich.depot_size(0)
    top = rich.step(steps.AT, 0, DEPOT)
    depots.run_until(110 * MILLISECOND, 0)
    assert rich.find(top, 0).source == NOWHERE
    assert depots.take_back(0, top, 112 * MILLISECOND)
    assert rich.step(steps.AT, 0, DEPOT) == top
    assert (rich.step(steps.CACHED, 0), rich.depot_size(0)) == (before, size)
    assert not depots.take_back(0, top, 112 * MILLISECOND)


def test_a_worker_that_is_not_waiting_cannot_have_run(rich):
    depots = Depots(rich, 4 * MILLISECOND, 0)
    assert not depots.may_have_run(0, 1 << 60)
    depots.arm(0)
    assert not depots.may_have_run(0, 50 * MILLISECOND)
    assert depots.may_have_run(0, 80 * MILLISECOND)
