"""The front has what nothing beats, and its knee is where gain begins to cost more."""

import numpy as np
import pytest

from emu.analysis.pareto import knee, pareto_front


def test_what_is_beaten_is_not_on_the_front():
    costs = np.array([[1, 5], [2, 2], [5, 1], [3, 3], [2, 6]], float)
    assert pareto_front(costs).tolist() == [True, True, True, False, False]


def test_equals_all_stay():
    assert pareto_front(np.array([[1, 1], [1, 1], [1, 2]], float)).tolist() == [True, True, False]


def test_an_unknown_figure_is_worst():
    assert pareto_front(np.array([[1, np.inf], [1, 7]], float)).tolist() == [False, True]


def test_the_front_is_that_of_all_pairs():
    costs = np.random.default_rng(1).integers(0, 6, (60, 3)).astype(float)
    beaten = [any((b <= a).all() and (b < a).any() for b in costs) for a in costs]
    assert pareto_front(costs).tolist() == [not one for one in beaten]


def test_the_knee_has_most_of_the_gain_for_little_of_the_cost():
    assert knee([100, 97, 60, 10], [1000, 100, 50, 10]) == 1
    assert knee([10, 60, 97, 100], [10, 50, 100, 1000]) == 2


@pytest.mark.parametrize(("gain", "cost"), [([5], [1]), ([7, 7], [3, 3])])
def test_a_front_of_one_point_is_its_own_knee(gain, cost):
    assert knee(gain, cost) == 0


def test_where_nothing_bends_the_most_gain_counts():
    assert knee([1, 2], [10, 100]) == 1
