"""Whole distributions as summary.json has them: [upper end in ns, count] of each bucket that counted anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def value_at(buckets: Sequence[Sequence[float]], fraction: float) -> float | None:
    """Upper end of the bucket in which the value at `fraction` (0…1) lies, in ns; None where nothing was counted."""
    if not buckets:
        return None
    ends, counts = np.asarray(buckets, float).T
    rank = max(1.0, np.ceil(fraction * counts.sum()))
    return float(ends[min(np.searchsorted(np.cumsum(counts), rank), len(ends) - 1)])


def percentile_steps(buckets: Sequence[Sequence[float]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The distribution as HdrHistogram plots it: one value in how many is at least so large.

    Returns:
        Where each step begins, 1 / (1 - q), and its height in ns; both shape (buckets + 1,), the last point being the
        end of the last step. Two empty arrays where nothing was counted.
    """
    if not buckets:
        return np.empty(0), np.empty(0)
    ends, counts = np.asarray(buckets, float).T
    total = counts.sum()
    # The values of a bucket and of all above it.
    at_least = total - np.cumsum(counts) + counts
    one_in = total / at_least
    # The largest value is one in `total`: its step is drawn a little beyond, or it would not be seen.
    return np.append(one_in, max(total, one_in[-1]) * 1.5), np.append(ends, ends[-1])
