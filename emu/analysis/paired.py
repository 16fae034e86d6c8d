"""How sure a ratio is between two things that took turns, from the numbers of the same rounds.

What disturbs a machine disturbs neighbours alike, so it is the ratios of each round that are judged. Where the two are
the same and a draw decided who of a round went first, a ratio is as often above 1 as it is below, by as much: that
alone makes Wilcoxon's signed-rank test exact, whatever the distribution, outliers and all. The interval is that test
turned round (the ratios that it would not reject), so that an interval without 1 and a difference that was found are
one and the same thing. An interval from a bootstrap is too narrow with a dozen rounds; tools/check_compare.py measures
both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.01
"""How often a comparison of equals may name a difference."""
FAMILY_LEVEL = 0.05
"""How often any of several comparisons with the same baseline may."""
_FIRST_LOOK = 12
_DRIFT_LEVEL = 0.01


@dataclass(frozen=True, slots=True)
class Difference:
    """What the rounds say about a ratio.

    Attributes:
        rounds: how many there were.
        ratio: the Hodges–Lehmann estimate: the median of the geometric means of all pairs of rounds' ratios.
        low, high: ends of its interval; 0 and infinity where there are too few rounds for any.
    """

    rounds: int
    ratio: float
    low: float
    high: float

    @property
    def is_found(self) -> bool:
        """Whether the two differ, as far as the interval's confidence goes."""
        return not self.low <= 1.0 <= self.high

    @property
    def half_width(self) -> float:
        """Half of the interval, as a part of the ratio: 0.02 where it is known to 2 %."""
        return math.sqrt(self.high / self.low) - 1.0 if self.low > 0 else math.inf

    @property
    def largest(self) -> float:
        """How far from 1 the ratio can be at most, as a part: 0.03 where it is within 0.97 to 1.03."""
        return max(self.high - 1.0, 1.0 - self.low)


@dataclass(frozen=True, slots=True)
class Plan:
    """After how many rounds one looks whether there are enough, and how often an interval may miss each time.

    Intervals miss at one look or another in no more than `level` × looks of all cases, whatever makes one stop.

    Attributes:
        looks: numbers of rounds, rising; the last is the most there will be.
        level: how often the interval of one look may miss.
    """

    looks: tuple[int, ...]
    level: float

    @property
    def confidence(self) -> float:
        """Of the interval that one stops with."""
        return 1.0 - self.level * len(self.looks)


@dataclass(frozen=True, slots=True)
class Drift:
    """A trend over the rounds.

    Attributes:
        change: from the first third of the rounds to the last, as a part: -0.1 where it fell by 10 %.
        p_value: of the Mann–Kendall test, how often chance alone brings a trend like it.
    """

    change: float
    p_value: float

    @property
    def is_found(self) -> bool:
        """Whether there is one."""
        return self.p_value < _DRIFT_LEVEL


def level_of(comparisons: int) -> float:
    """How often each of several comparisons may err, so that any does in FAMILY_LEVEL of all cases at most."""
    return min(LEVEL, FAMILY_LEVEL / max(comparisons, 1))


def fewest_rounds(level: float) -> int:
    """Rounds without which nothing can be said: chance alone puts all ratios on one side in 2 of 2^n cases."""
    return math.ceil(math.log2(2.0 / level))


def plan_of(most: int, level: float, *, looks_on_the_way: bool) -> Plan:
    """When to look: at the end only, or after 12 rounds, 24, 48 and so on to the end.

    Args:
        most: rounds at most.
        level: how often an interval may miss, over all looks.
        looks_on_the_way: look before the end too.

    Raises:
        ValueError: so few rounds say nothing; the message says how many would.
    """
    looks = [most]
    if looks_on_the_way:
        doubled = (_FIRST_LOOK << power for power in range(most.bit_length()))
        looks = [*(number for number in doubled if number < most), most]
    # Each look costs some of the level, and with less of it more rounds are needed.
    while len(looks) > 1 and looks[0] < fewest_rounds(level / len(looks)):
        del looks[0]
    if most < fewest_rounds(level):
        raise ValueError(f"must be at least {fewest_rounds(level)}, for fewer rounds say nothing at {1 - level:.3g}")
    return Plan(tuple(looks), level / len(looks))


def difference(measured: Floats, beside: Floats, level: float) -> Difference:
    """Compare two things by the numbers of the same rounds.

    Args:
        measured: shape (rounds,), all above 0.
        beside: of the baseline, in the same rounds; same shape, all above 0.
        level: how often the interval may miss.

    Returns:
        The ratio of `measured` to `beside`.

    Raises:
        ValueError: the shapes differ, there is no round, or a number is not above 0.
    """
    if measured.shape != beside.shape or measured.ndim != 1 or not len(measured):
        raise ValueError(f"needs as many numbers of both, at least one: {measured.shape} and {beside.shape}")
    if not (np.isfinite(measured) & np.isfinite(beside) & (measured > 0) & (beside > 0)).all():
        raise ValueError("has no ratio where a number is not above 0")
    logs = np.log(measured) - np.log(beside)
    rounds = len(logs)
    first, second = np.triu_indices(rounds)
    averages = np.sort((logs[first] + logs[second]) / 2)
    left_out = _left_out(rounds, level)
    low, high = (averages[left_out - 1], averages[-left_out]) if left_out else (-math.inf, math.inf)
    return Difference(rounds, math.exp(float(np.median(averages))), math.exp(low), math.exp(high))


def drift(values: Floats) -> Drift:
    """Whether numbers rise or fall over the rounds.

    Args:
        values: shape (rounds,), all above 0.
    """
    rounds = len(values)
    if rounds < 3:
        return Drift(0.0, 1.0)
    later = np.sign(values[None, :] - values[:, None])
    score = float(np.triu(later, 1).sum())
    deviation = math.sqrt(rounds * (rounds - 1) * (2 * rounds + 5) / 18)
    # Scores are two apart.
    p_value = math.erfc(max(abs(score) - 1.0, 0.0) / deviation / math.sqrt(2))
    third = max(rounds // 3, 1)
    return Drift(float(np.median(values[-third:]) / np.median(values[:third])) - 1.0, p_value)


def spread(values: Floats) -> float:
    """Standard deviation as a part of the mean; 0 of a single number.

    Args:
        values: shape (rounds,), all above 0.
    """
    return float(values.std(ddof=1) / values.mean()) if len(values) > 1 else 0.0


@lru_cache(maxsize=64)
def _left_out(rounds: int, level: float) -> int:
    """Which of the sorted averages, from either end, the interval ends with, from 1; 0 where there is none.

    Under no difference, as many averages are below 0 as the signed-rank statistic says, whose distribution is that of
    the sum of those of the numbers 1 to n that a coin chooses.
    """
    distribution = np.ones(1)
    for rank in range(1, rounds + 1):
        chosen = np.concatenate((np.zeros(rank), distribution))
        distribution = (np.concatenate((distribution, np.zeros(rank))) + chosen) / 2
    # Not below a level that is met exactly.
    return int(np.searchsorted(2 * np.cumsum(distribution), level * (1 + 1e-9), side="right"))
