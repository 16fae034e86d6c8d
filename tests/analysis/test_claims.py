"""What measurements say about a statement."""

import math

import numpy as np
import pytest

from emu.analysis.claims import (
    CANNOT_BE_SHOWN,
    DOES_NOT_HOLD,
    HOLDS,
    Interval,
    best_fit,
    growth_exponent,
    judged,
    paired_ratio,
)


def test_what_both_sides_share_in_a_round_cancels():
    rng = np.random.default_rng(1)
    of_the_round = np.exp(rng.normal(size=8))
    measured = paired_ratio(2 * of_the_round, of_the_round)
    assert measured == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_of_ratios_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(1000):
        measured = paired_ratio(1.5 * np.exp(0.1 * rng.normal(size=5)), np.exp(0.1 * rng.normal(size=5)))
        inside += measured.low <= 1.5 <= measured.high
    assert 930 <= inside <= 970


def test_a_single_round_has_no_interval():
    assert paired_ratio([3.0], [2.0]) == pytest.approx((1.5, 1.5, 1.5))


def test_the_exponent_of_growth_is_found():
    sizes = np.array([16.0, 32, 64, 128] * 3)
    noise = np.exp(0.1 * np.random.default_rng(3).normal(size=12))
    found = growth_exponent(sizes, 5 * sizes**1.5 * noise)
    assert found.low < 1.5 < found.high
    assert found.value == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.5, 0.45, 0.55), HOLDS),
        ((0.3, 0.2, 0.39), DOES_NOT_HOLD),
        ((0.7, 0.61, 0.8), DOES_NOT_HOLD),
        ((0.42, 0.38, 0.46), CANNOT_BE_SHOWN),
        ((0.5, 0.1, 2.0), CANNOT_BE_SHOWN),
    ],
)
def test_the_whole_interval_decides(interval, verdict):
    assert judged(Interval(*interval), 0.4, 0.6)[0] == verdict


def test_a_missing_bound_bounds_nothing():
    assert judged(Interval(9.0, 8.0, 1e9), 1.0, None)[0] == HOLDS
    assert judged(Interval(0.1, -math.inf, 0.2), None, 1.0)[0] == HOLDS


def test_the_best_fit_has_the_smallest_worst_error():
    published = np.array([10.0, 20.0])
    assert best_fit(np.array([[10.0, 40.0], [12.0, 18.0], [20.0, 20.0]]), published) == 1
