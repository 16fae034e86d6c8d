"""What measurements say about a statement: intervals, and whether they lie where the statement has them.

Intervals are of 95 %, by Student's t over rounds. Ratios are paired: both numbers of one are of the same round, and are
compared by their logarithms, so that a ratio and its inverse say the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

HOLDS, DOES_NOT_HOLD, CANNOT_BE_SHOWN = "holds", "does not hold", "cannot be shown here"
_CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one measurement of a claim.

    Attributes:
        claim: as in C2. name: what was measured. expected: in words.
        measured: None where nothing was. unit: of it, as it is read.
        verdict: HOLDS, DOES_NOT_HOLD or CANNOT_BE_SHOWN.
        why: a sentence.
        details: numbers behind it, for JSON.
    """

    claim: str
    name: str
    expected: str
    measured: Interval | None
    unit: str
    verdict: str
    why: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        measured = self.measured._asdict() if self.measured else None
        return {**asdict(self), "measured": measured}


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> Interval:
    """The ratio of two numbers that were measured together, several times.

    Args:
        of: one number of each round, above 0.
        to: the same of what it is compared with.

    Returns:
        The geometric mean of the ratios; of a single round, no more than that.
    """
    logs = np.log(np.asarray(of, float) / np.asarray(to, float))
    half = _t(len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    mean = float(logs.mean())
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> Interval:
    """The exponent b of value ~ size^b, by least squares of logarithms.

    Args:
        sizes: of each measurement, above 0; three or more, and not all the same.
        values: what was measured, above 0.
    """
    from scipy.stats import linregress  # noqa: PLC0415 - heavy, and of an extra

    line = linregress(np.log(sizes), np.log(values))
    half = _t(len(sizes) - 2) * float(line.stderr)
    return Interval(float(line.slope), float(line.slope) - half, float(line.slope) + half)


def judged(measured: Interval, at_least: float | None, at_most: float | None) -> tuple[str, str]:
    """The verdict over an interval, and why.

    It holds where the whole interval keeps the bounds, and does not where the whole of it breaks one.
    """
    low = -math.inf if at_least is None else at_least
    high = math.inf if at_most is None else at_most
    if low <= measured.low and measured.high <= high:
        return HOLDS, "the whole interval is in the range"
    if measured.high < low:
        return DOES_NOT_HOLD, "the whole interval is below the range"
    if measured.low > high:
        return DOES_NOT_HOLD, "the whole interval is above the range"
    return CANNOT_BE_SHOWN, "the interval reaches over the edge of the range; more rounds would narrow it"


def range_text(at_least: float | None, at_most: float | None, unit: str = "") -> str:
    """Bounds in words: "0.4 to 0.6 ×", "at most 0.9 ×"."""
    if at_least is None:
        return f"at most {at_most:g}{unit}"
    if at_most is None:
        return f"at least {at_least:g}{unit}"
    return f"{at_least:g} to {at_most:g}{unit}"


def best_fit(measured: npt.NDArray[np.float64], published: npt.NDArray[np.float64]) -> int:
    """Which of several curves comes closest to the published points: its worst point is off by the smallest part.

    Args:
        measured: shape (curves, points).
        published: shape (points,).
    """
    return int(np.argmin(np.abs(measured / published - 1).max(axis=1)))


def _t(degrees: int) -> float:
    from scipy.stats import t  # noqa: PLC0415 - heavy, and of an extra

    return float(t.ppf((1 + _CONFIDENCE) / 2, degrees))
