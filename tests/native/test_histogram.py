"""Histograms keep values to 1/32 of their size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.native.histogram import BUCKETS, bucket_bounds, mean, percentile
from emu.native.record import int64_t

from . import harness
from .harness import at, shared

pytestmark = pytest.mark.interpreted

MOST = 2**57 - 1
# Values of all sizes, not only large ones.
values = st.integers(0, 57).flatmap(lambda bits: st.integers(0, (1 << bits) - 1))
samples = st.lists(values, min_size=1, max_size=200)
BOUNDS = bucket_bounds()


def recorded(numbers):
    counts = shared(int64_t, BUCKETS)
    source = np.array(numbers, np.int64)
    harness.record_all(at(counts), source.ctypes.data, len(numbers))
    return counts.value


@given(values)
def test_a_value_lies_in_its_bucket(value):
    bucket = harness.bucket_index(value)
    assert int(BOUNDS[bucket]) <= value < int(BOUNDS[bucket + 1])


def test_buckets_follow_each_other_without_gap_and_are_at_most_a_32nd_wide():
    widths = np.diff(BOUNDS)
    assert (widths > 0).all()
    assert (widths[32:] / BOUNDS[32:-1] <= 1 / 32).all()
    assert (widths[:32] == 1).all()


def test_the_largest_value_has_the_last_bucket():
    assert harness.bucket_index(MOST) == BUCKETS - 1


def test_negative_values_count_as_zero():
    assert harness.bucket_index(-5) == 0


@given(samples)
def test_every_value_is_counted_once(numbers):
    counts = recorded(numbers)
    assert counts.sum() == len(numbers)


@given(samples, st.floats(0, 1))
def test_a_percentile_is_the_true_one_to_a_32nd(numbers, fraction):
    true = float(np.percentile(numbers, fraction * 100, method="inverted_cdf"))
    assert percentile(recorded(numbers), fraction) == pytest.approx(true, rel=1 / 32)


@given(samples)
def test_the_mean_is_the_true_one_to_a_32nd(numbers):
    assert mean(recorded(numbers)) == pytest.approx(sum(numbers) / len(numbers), rel=1 / 32)


def test_an_empty_histogram_has_zero_everywhere():
    empty = np.zeros(BUCKETS, np.int64)
    assert percentile(empty, 0.5) == 0.0
    assert mean(empty) == 0.0
