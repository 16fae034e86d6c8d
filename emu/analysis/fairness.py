"""How evenly CPUs shared what was done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def jains_index(shares: Sequence[float]) -> float | None:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has everything; None where nobody has any.

    Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness", DEC-TR-301 (1984).
    """
    values = np.asarray(shares, float)
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else None
