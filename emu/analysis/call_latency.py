"""Average and standard deviation of how long calls took, from their histogram, also as the kernel's benchmark has them.

`kernel/dma/map_benchmark.c` cuts every latency down to whole units of 100 ns, sums these and their squares, and takes
the average, the variance and its root in whole numbers. A histogram's values are known to its buckets, which are 3 %
wide: a bucket stands for as many values in its middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emu.native.histogram import bucket_bounds

_UNIT_NS = 100


@dataclass(frozen=True, slots=True)
class CallLatency:
    """How long calls took.

    Attributes:
        calls: how many there were.
        average_ns, deviation_ns: to the buckets' width.
        average_100ns, deviation_100ns: as the kernel's benchmark counts them, in units of 100 ns.
    """

    calls: int
    average_ns: float
    deviation_ns: float
    average_100ns: int
    deviation_100ns: int


def call_latency(buckets: Sequence[Sequence[float]], tick_ns: float) -> CallLatency:
    """What a histogram says.

    Args:
        buckets: one of `histograms` in summary.json: [upper end in ns, count] of each bucket that counted anything.
        tick_ns: what the bounds are multiples of: `clock.tick_ns` in summary.json.
    """
    if not buckets:
        return CallLatency(0, 0.0, 0.0, 0, 0)
    ends, counted = np.asarray(buckets, float).T
    bounds = bucket_bounds()
    middles = (bounds[:-1] + bounds[1:] - 1) / 2 * tick_ns
    # Bounds in summary.json are rounded: the nearest one is meant.
    upper = bounds[1:] * tick_ns
    values = middles[np.searchsorted((upper[:-1] + upper[1:]) / 2, ends)]
    average = float(np.average(values, weights=counted))
    deviation = math.sqrt(float(np.average((values - average) ** 2, weights=counted)))
    # Sums of squares can be larger than an int64.
    units = [int(value // _UNIT_NS) for value in values]
    counts = [int(count) for count in counted]
    calls = sum(counts)
    mean = sum(map(int.__mul__, units, counts)) // calls
    squares = sum(unit * unit * count for unit, count in zip(units, counts, strict=True)) // calls
    return CallLatency(calls, average, deviation, mean, math.isqrt(squares - mean * mean))
