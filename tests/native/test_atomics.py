"""Atomic operations return what was there, and lose nothing between processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.native.atomics import atomic64_t, atomic_t
from emu.native.record import int64_t

from . import harness
from .harness import at, running, scaled, shared

pytestmark = pytest.mark.interpreted

words = st.integers(-(2**62), 2**62 - 1)


@given(words, words)
def test_each_operation_returns_what_was_there(before, value):
    counter = shared(atomic64_t)
    for operation, after in (
        (harness.add_64, before + value),
        (harness.or_64, before | value),
        (harness.and_64, before & value),
        (harness.xor_64, before ^ value),
        (harness.exchange_64, value),
    ):
        counter.counter[0] = before
        assert operation(at(counter), value) == before
        assert counter.counter[0] == after


@given(words, words, words)
def test_compare_and_exchange_stores_only_over_the_expected_value(found, expected, new):
    counter = shared(atomic64_t)
    for old in (expected, found):
        counter.counter[0] = found
        assert harness.compare_exchange_64(at(counter), old, new) == found
        assert counter.counter[0] == (new if old == found else found)


@given(words)
def test_a_store_is_what_the_next_load_sees(value):
    counter = shared(atomic64_t)
    assert harness.store_and_load_64(at(counter), value) == value + 1


def test_a_32_bit_field_leaves_its_neighbour_alone():
    counters = shared(atomic_t, 2)
    counters.counter[:] = -1, 5
    assert harness.add_32(at(counters), 1) == -1
    assert counters.counter.tolist() == [0, 5]


@given(st.integers(1, 2**63 - 1))
def test_highest_and_lowest_bit(value):
    assert harness.highest_bit(value) == value.bit_length() - 1
    assert harness.lowest_bit(value) == (value & -value).bit_length() - 1


@pytest.mark.parametrize("increment", [harness.add_often, harness.increment_by_compare_exchange])
def test_processes_that_add_at_once_lose_no_addition(increment):
    counter = shared(atomic64_t)
    times = scaled(100_000, 500)
    with running(*[(increment, at(counter), times)] * 3):
        pass
    assert counter.counter[0] == 3 * times


def test_a_full_barrier_forbids_that_both_sides_miss_each_other():
    rounds = scaled(5_000, 100)
    flags, seen, barrier = shared(int64_t, 2 * rounds), shared(int64_t, 2 * rounds), shared(atomic64_t)
    with running(
        (harness.store_then_look, at(flags), at(flags, rounds), at(seen), rounds, at(barrier)),
        (harness.store_then_look, at(flags, rounds), at(flags), at(seen, rounds), rounds, at(barrier)),
    ):
        pass
    assert ((seen.value[:rounds] + seen.value[rounds:]) >= 1).all()
