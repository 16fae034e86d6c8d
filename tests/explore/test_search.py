"""Pruning leaves no outcome out: what is explored with it ends as all interleavings do."""

import pytest

from emu.native.atomics import interpreted

if not interpreted:
    pytest.skip("what is explored is interpreted: NUMBA_DISABLE_JIT=1", allow_module_level=True)

from emu.explore.bounds import Bounds
from emu.explore.machine import Machine
from emu.explore.search import Limits, Search

pytestmark = pytest.mark.interpreted


def outcomes(machine, search):
    """Every (memory, books, violation) in which a run ends."""
    ends = set()
    books_end = machine.books.end

    def end():
        books_end()
        ends.add((machine.world.memory.digest, machine.books.digest()))

    machine.books.end = end
    with machine.ready():
        result = search.run()
    assert not result.found
    return ends, result


@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ"])
def test_every_outcome_of_all_interleavings_is_reached(domain):
    # Two CPUs with one append each: few enough steps to take them one by one in every order.
    bounds = Bounds((("queue",), ("queue",)), domain=domain, fq_size=4)
    pruned = Machine(bounds)
    ends, result = outcomes(pruned, Search(pruned.world, Limits(preemptions=None)))
    whole = Machine(bounds)
    whole.world.everywhere = True
    all_ends, all_result = outcomes(whole, Search(whole.world, Limits(preemptions=None)))
    # Addresses differ between the two, and digests with them.
    assert len(ends) == len(all_ends) > 1
    assert result.schedules + result.cut_short < all_result.schedules + all_result.cut_short
