"""Bitmaps agree with a list of booleans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.native.bitmap import bitmap_bytes, word_t
from emu.native.record import int64_t

from . import harness
from .harness import at, running, scaled, shared

pytestmark = pytest.mark.interpreted


def nearly_empty(size, taken):
    return [bit in taken for bit in range(size)]


bitmaps = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=150),
    st.builds(nearly_empty, st.integers(1, 150), st.sets(st.integers(0, 70), max_size=8)),
)
# A run longer than the boundary would never fit: nobody may ask for one.
boundaries_and_counts = st.integers(0, 7).flatmap(lambda bit: st.tuples(st.just(1 << bit), st.integers(1, 1 << bit)))


def packed(bits):
    """A bitmap with these bits, and set bits behind them that nobody may look at."""
    words = shared(word_t, bitmap_bytes(len(bits)) // word_t.itemsize)
    for bit in range(len(words) * 32):
        if bit >= len(bits) or bits[bit]:
            words.bits[bit // 32] |= np.uint32(1 << bit % 32)
    return words


def unpacked(words, size):
    return [bool(words.bits[bit // 32] >> np.uint32(bit % 32) & 1) for bit in range(size)]


def model_zero_area(bits, start, count, boundary):
    for index in range(start, len(bits) - count + 1):
        crosses = index // boundary != (index + count - 1) // boundary
        if not crosses and not any(bits[index : index + count]):
            return index
    return -1


@st.composite
def runs(draw):
    bits = draw(bitmaps)
    start = draw(st.integers(0, len(bits) - 1))
    return bits, start, draw(st.integers(0, len(bits) - start))


@given(runs())
def test_setting_and_clearing_a_run_touches_only_the_run(run):
    bits, start, count = run
    for change, value in ((harness.set_bits, True), (harness.clear_bits, False)):
        words = packed(bits)
        change(at(words), start, count)
        assert unpacked(words, len(bits)) == bits[:start] + [value] * count + bits[start + count :]


@given(bitmaps, st.integers(0, 160))
def test_the_next_bit_is_the_next_one_set(bits, start):
    expected = next((i for i in range(start, len(bits)) if bits[i]), len(bits))
    words = packed(bits)
    assert harness.next_bit(at(words), len(bits), start) == expected


@settings(max_examples=scaled(500, 100))
@given(bitmaps, st.one_of(st.integers(0, 20), st.integers(0, 160)), boundaries_and_counts)
def test_the_zero_area_is_the_first_that_crosses_no_boundary(bits, start, boundary_and_count):
    boundary, count = boundary_and_count
    words = packed(bits)
    found = harness.zero_area(at(words), len(bits), start, count, boundary)
    assert found == model_zero_area(bits, start, count, boundary)


@given(bitmaps, st.data())
def test_an_atomic_bit_operation_says_what_was_there(bits, data):
    bit = data.draw(st.integers(0, len(bits) - 1))
    words = packed(bits)
    assert harness.set_one_bit(at(words), bit) == bits[bit]
    assert harness.set_one_bit(at(words), bit) == 1
    assert harness.clear_one_bit(at(words), bit) == 1
    assert harness.clear_one_bit(at(words), bit) == 0
    assert unpacked(words, len(bits)) == [*bits[:bit], False, *bits[bit + 1 :]]


def test_processes_that_claim_the_same_bits_share_them_out():
    bits = scaled(32 * 2000, 320)
    words, claimed = shared(word_t, bits // 32), shared(int64_t, 3)
    with running(*[(harness.claim_bits, at(words), bits, at(claimed, i)) for i in range(3)]):
        pass
    assert claimed.value.sum() == bits
