"""A distribution of times as HdrHistogram's percentile text, `.hgrm`, which its plotters read."""

from __future__ import annotations

import io
from collections.abc import Iterable

from hdrh.histogram import HdrHistogram

_DIGITS = 3


def percentile_text(counts: Iterable[tuple[float, int]]) -> str:
    """The text, values in ns to three digits.

    Args:
        counts: (ns, how often), at least one; values below 1 ns count as 1.
    """
    rows = [(max(round(value), 1), count) for value, count in counts]
    histogram = HdrHistogram(1, 2 * max(value for value, _ in rows), _DIGITS)
    for value, count in rows:
        histogram.record_value(value, count)
    text = io.BytesIO()
    # The package scales every value but the standard deviation, so nothing is scaled.
    histogram.output_percentile_distribution(text, 1)
    return text.getvalue().decode()
