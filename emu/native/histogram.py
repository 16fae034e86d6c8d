"""Histograms with a bounded relative error, in the manner of HdrHistogram: 32 buckets for each power of two.

A histogram is an array of int64 in the segment, written by one process. Values are ticks; only readers convert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emu.native.atomics import ilog2
from emu.native.compile import inline
from emu.native.record import element, int64_t

SUB_BITS = 5
_SUB = 1 << SUB_BITS
BUCKETS = _SUB * (58 - SUB_BITS)
"""Enough for 2^57 ticks, a year of cycles."""


@inline
def bucket_of(value: int) -> int:
    """Index of the bucket that counts `value`; values below 0 count as 0."""
    if value < _SUB:
        return max(value, 0)
    exponent = ilog2(value) - SUB_BITS
    return (exponent << SUB_BITS) + (value >> exponent)


@inline
def record_value(histogram: int, value: int) -> None:
    """Count one value in the histogram at this address."""
    element(int64_t, histogram, bucket_of(value)).value += 1


def bucket_bounds() -> npt.NDArray[np.float64]:
    """Lowest value of each bucket and, last, the end of the last one; shape (BUCKETS + 1,)."""
    index = np.arange(BUCKETS + 1)
    exponent = np.maximum(index >> SUB_BITS, 1) - 1
    mantissa = np.where(index < _SUB, index, _SUB + (index & (_SUB - 1)))
    return np.ldexp(mantissa.astype(np.float64), exponent)


def _middles() -> npt.NDArray[np.float64]:
    """Mean of the whole numbers that each bucket counts."""
    bounds = bucket_bounds()
    return (bounds[:-1] + bounds[1:] - 1) / 2


def percentile(counts: npt.NDArray[Any], fraction: float) -> float:
    """Middle of the bucket in which the value at `fraction` (0…1) lies; 0 when nothing was counted."""
    total = int(counts.sum())
    if not total:
        return 0.0
    rank = max(1, int(np.ceil(fraction * total)))
    bucket = int(np.searchsorted(np.cumsum(counts), rank))
    return float(_middles()[bucket])


def mean(counts: npt.NDArray[Any]) -> float:
    """Mean of the counted values, to the buckets' resolution; 0 when nothing was counted."""
    total = int(counts.sum())
    return float((_middles() * counts).sum() / total) if total else 0.0
