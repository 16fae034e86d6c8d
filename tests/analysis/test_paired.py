"""What is said of ratios of the same round is wrong as rarely as it claims to be."""

import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from emu.analysis.paired import LEVEL, difference, drift, fewest_rounds, level_of, plan_of, spread

ROUNDS, TRIALS = 12, 1000
MOST_ERRORS = TRIALS * LEVEL + 4 * math.sqrt(TRIALS * LEVEL)
"""Four standard deviations above what is claimed; of the fixed seeds here none comes near it by chance."""

DRAWS = {
    "normal": lambda draw, n: np.exp(0.02 * draw.standard_normal(n)),
    "outliers": lambda draw, n: np.exp(0.02 * draw.standard_t(2, n)),
    "two-humped": lambda draw, n: np.where(draw.random(n) < 0.5, 1.0, 0.95) * np.exp(0.005 * draw.standard_normal(n)),
    "quantised": lambda draw, n: np.round(30 * np.exp(0.05 * draw.standard_normal(n))) / 30,
    "one-sided": lambda draw, n: 1 / (1 + 0.02 * draw.exponential(size=n)),
}


def pairs(name, rounds=ROUNDS, *, seed=7):
    draw = np.random.default_rng(seed)
    for _ in range(TRIALS):
        yield DRAWS[name](draw, rounds), DRAWS[name](draw, rounds)


@pytest.mark.parametrize("name", DRAWS)
def test_equals_are_seldom_called_different(name):
    assert sum(difference(one, other, LEVEL).is_found for one, other in pairs(name)) <= MOST_ERRORS


@pytest.mark.parametrize("name", DRAWS)
def test_the_true_ratio_is_seldom_outside_the_interval(name):
    found = [difference(one * 1.3, other, LEVEL) for one, other in pairs(name)]
    assert sum(not one.low <= 1.3 <= one.high for one in found) <= MOST_ERRORS


def test_five_percent_are_seen_through_two_percent_of_jitter():
    found = [difference(one * 0.95, other, LEVEL) for one, other in pairs("normal")]
    assert sum(one.is_found and one.ratio < 1 for one in found) >= 0.95 * TRIALS
    assert np.median([one.ratio for one in found]) == pytest.approx(0.95, abs=0.002)


@pytest.mark.parametrize(("name", "until"), [("normal", 0.015), ("outliers", 0.02), ("two-humped", 0.015)])
def test_stopping_when_the_ratio_is_known_well_enough_costs_no_errors(name, until):
    plan = plan_of(48, LEVEL, looks_on_the_way=True)
    wrong = 0
    for one, other in pairs(name, 48):
        looked = (difference(one[:look], other[:look], plan.level) for look in plan.looks)
        last = next((found for found in looked if found.half_width <= until), None)
        wrong += (last or difference(one, other, plan.level)).is_found
    assert wrong <= MOST_ERRORS


@pytest.mark.parametrize("rounds", [8, 9, 12, 24, 40])
def test_a_difference_is_found_where_the_exact_signed_rank_test_finds_one(rounds):
    draw = np.random.default_rng(rounds)
    verdicts = set()
    for _ in range(100):
        one, other = np.exp(0.02 * draw.standard_normal((2, rounds)))
        one *= 1.015
        by_test = wilcoxon(np.log(one / other), method="exact").pvalue <= LEVEL
        assert difference(one, other, LEVEL).is_found == by_test
        verdicts.add(by_test)
    assert verdicts == {True, False}


def test_too_few_rounds_say_nothing():
    assert fewest_rounds(LEVEL) == 8
    slow, fast = np.full(8, 1.0), np.full(8, 2.0)
    assert difference(fast, slow, LEVEL).is_found
    nothing = difference(fast[:7], slow[:7], LEVEL)
    assert (nothing.ratio, nothing.low, nothing.high) == (pytest.approx(2.0), 0.0, math.inf)
    assert not nothing.is_found
    assert nothing.half_width == math.inf


def test_what_measured_the_same_in_every_round_does_not_differ():
    same = np.linspace(1.0, 2.0, 12)
    found = difference(same, same, LEVEL)
    assert (found.ratio, found.low, found.high) == (1.0, 1.0, 1.0)
    assert not found.is_found
    assert found.half_width == found.largest == 0.0


def test_a_disturbance_of_whole_rounds_hides_nothing():
    disturbed = np.array([1.0, 9.0, 1.0, 3.0, 1.0, 1.0, 7.0, 1.0, 2.0, 1.0, 5.0, 1.0])
    found = difference(disturbed * 1.02, disturbed, LEVEL)
    assert found.is_found
    assert found.ratio == pytest.approx(1.02)


def test_one_outlier_does_not_move_the_ratio():
    beside = np.exp(0.001 * np.random.default_rng(1).standard_normal(12))
    measured = 1.05 * np.exp(0.001 * np.random.default_rng(2).standard_normal(12))
    measured[3] *= 10
    assert difference(measured, beside, LEVEL).ratio == pytest.approx(1.05, abs=0.005)


def test_exchanging_the_two_turns_the_ratio_round():
    one, other = next(pairs("outliers"))
    there, back = difference(one, other, LEVEL), difference(other, one, LEVEL)
    assert (1 / there.ratio, 1 / there.high, 1 / there.low) == pytest.approx((back.ratio, back.low, back.high))


def test_many_comparisons_share_what_may_go_wrong():
    assert level_of(1) == level_of(5) == LEVEL
    assert level_of(10) * 10 == pytest.approx(0.05)


def test_looks_on_the_way_share_the_level_and_each_has_rounds_enough():
    plan = plan_of(96, LEVEL, looks_on_the_way=True)
    assert plan.looks == (12, 24, 48, 96)
    assert plan.level * 4 == pytest.approx(LEVEL)
    assert plan.confidence == pytest.approx(0.99)
    assert plan_of(1000, 1e-5, looks_on_the_way=True).looks[0] >= fewest_rounds(1e-5)
    assert plan_of(30, LEVEL, looks_on_the_way=False).looks == (30,)
    with pytest.raises(ValueError, match="must be at least 8"):
        plan_of(7, LEVEL, looks_on_the_way=False)


def test_a_trend_is_told_from_jitter():
    draw = np.random.default_rng(3)
    jitter = 1 + 0.02 * draw.standard_normal(12)
    assert not drift(jitter).is_found
    falling = drift(jitter * np.linspace(1.0, 0.7, 12))
    assert falling.is_found
    assert falling.change == pytest.approx(-0.2, abs=0.05)
    assert not drift(np.ones(12)).is_found
    assert not drift(np.ones(2)).is_found


def test_jitter_is_seldom_called_a_trend():
    draw = np.random.default_rng(4)
    assert sum(drift(draw.random(12) + 1).is_found for _ in range(TRIALS)) <= MOST_ERRORS


def test_spread_is_a_part_of_the_mean():
    assert spread(np.array([90.0, 110.0])) == pytest.approx(math.sqrt(200) / 100)
    assert spread(np.array([5.0])) == 0.0


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 2.0]), ([], []), ([1.0, 0.0], [1.0, 1.0]), ([math.nan], [1])])
def test_what_has_no_ratio_is_an_error(one, other):
    with pytest.raises(ValueError, match=r"needs as many|has no ratio"):
        difference(np.array(one, float), np.array(other, float), LEVEL)
