"""Which of many configurations nobody has to give up something for: the Pareto front, and its knee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def pareto_front(costs: Matrix) -> npt.NDArray[np.bool_]:
    """Which rows no other row beats.

    Args:
        costs: shape (configurations, figures), less is better in each; infinite where a figure is unknown.

    Returns:
        Shape (configurations,). A row is beaten by another that is nowhere worse and somewhere better; of equal rows
        all stay.
    """
    stays = np.ones(len(costs), np.bool_)
    for place, row in enumerate(costs):
        stays[place] = not ((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any()
    return stays


def knee(gain: Sequence[float], cost: Sequence[float]) -> int:
    """Where on a front more gain begins to cost much more: its place.

    The point farthest above the straight line between the ends of the front, with the cost on a logarithmic scale
    and both scaled to 0…1 (Satopää et al., "Finding a 'Kneedle' in a Haystack", 2011). Where no point lies above that
    line, the one with the most gain.

    Args:
        gain: more is better, at least one.
        cost: less is better, above 0.
    """
    gains, costs = np.asarray(gain, np.float64), np.log(np.asarray(cost, np.float64))
    above = _scaled(gains) - _scaled(costs)
    best = np.flatnonzero(above >= above.max() - 1e-9)
    return int(best[np.argmax(gains[best])])


def _scaled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    span = values.max() - values.min()
    return (values - values.min()) / span if span else np.zeros_like(values)
