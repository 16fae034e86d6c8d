"""What is drawn lies in its range, and every part of the range is drawn."""

import numpy as np
import pytest
from pydantic import ValidationError

from emu.sweep.ranges import Range


def draws(count=4000, **kind):
    generator = np.random.default_rng(1)
    chosen = Range.model_validate(kind)
    return [chosen.draw(generator) for _ in range(count)]


def test_whole_bounds_give_whole_numbers_with_both_ends():
    assert set(draws(uniform=[2, 5])) == {2, 3, 4, 5}
    assert set(draws(log_uniform=[1, 4])) == {1, 2, 3, 4}
    assert set(draws(powers_of_two=[16, 128])) == {16, 32, 64, 128}


def test_bounds_with_a_point_give_numbers_between_them():
    values = draws(uniform=[1.0, 3.0])
    assert 1 <= min(values) < 1.1
    assert 2.9 < max(values) <= 3
    assert np.mean(values) == pytest.approx(2, abs=0.05)


def test_each_magnitude_is_as_likely():
    values = np.array(draws(log_uniform=[0.1, 1000.0]))
    shares = [np.mean((values >= low) & (values < 10 * low)) for low in (0.1, 1, 10, 100)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_the_same_seed_draws_the_same():
    assert draws(uniform=[0.0, 1.0]) == draws(uniform=[0.0, 1.0])
    assert set(draws(choices=["DMA", "DMA-FQ"])) == {"DMA", "DMA-FQ"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({}, "needs one of uniform"),
        ({"uniform": [1, 2], "choices": [1]}, "needs one of uniform"),
        ({"uniform": [2, 1]}, "lowest < highest"),
        ({"uniform": [float("nan"), 1.0]}, "lowest < highest"),
        ({"log_uniform": [0, 1]}, "above 0"),
        ({"powers_of_two": [16, 100]}, "powers of two"),
        ({"powers_of_two": [1.0, 2.0]}, "powers of two"),
        ({"choices": [1, 1]}, "twice"),
        ({"gaussian": [1, 2]}, "Extra inputs"),
    ],
)
def test_what_is_no_range_is_refused(kind, said):
    with pytest.raises(ValidationError, match=said):
        Range.model_validate(kind)
