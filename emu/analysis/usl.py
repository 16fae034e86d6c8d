"""The Universal Scalability Law, fitted to throughput by number of CPUs.

X(N) = λ N / (1 + σ (N - 1) + κ N (N - 1)): λ is what one CPU does, σ the part that only one can do at a time
(contention), κ what each costs each other one (coherency). With κ > 0 throughput has a peak, at sqrt((1 - σ) / κ) CPUs.
N. J. Gunther, *Guerrilla Capacity Planning*, Springer 2007.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_CONFIDENCE = 0.95
_PARAMETERS = 3


@dataclass(frozen=True, slots=True)
class Scalability:
    """A fit.

    Attributes:
        rate: λ, pairs per s of one CPU. contention: σ. coherency: κ.
        rate_interval, contention_interval, coherency_interval: of 95 %.
        worst: how far the fit is from a measured point at most, as a part of it.
    """

    rate: float
    contention: float
    coherency: float
    rate_interval: tuple[float, float]
    contention_interval: tuple[float, float]
    coherency_interval: tuple[float, float]
    worst: float

    @property
    def peak_cpus(self) -> float | None:
        """With how many CPUs throughput is highest; None where it never falls."""
        if self.coherency <= 0 or self.contention >= 1:
            return None
        return max(math.sqrt((1 - self.contention) / self.coherency), 1.0)

    def at(self, cpus: float) -> float:
        """Throughput of that many CPUs, in pairs per s."""
        return float(throughput(np.array([cpus]), self.rate, self.contention, self.coherency)[0])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "peak_cpus": self.peak_cpus}


def throughput(
    cpus: npt.NDArray[np.float64], rate: float, contention: float, coherency: float
) -> npt.NDArray[np.float64]:
    """The law itself; shape as `cpus`."""
    found: npt.NDArray[np.float64] = rate * cpus / (1 + contention * (cpus - 1) + coherency * cpus * (cpus - 1))
    return found


def fit_scalability(cpus: Sequence[float], pairs_per_s: Sequence[float]) -> Scalability:
    """Fit the law by least squares of logarithms, so that each point counts for as much, however large.

    Args:
        cpus: number of CPUs of each measurement; at least four different ones.
        pairs_per_s: what they did, above 0.

    Raises:
        ValueError: there are too few points to say anything of three parameters.
    """
    from scipy.optimize import curve_fit  # noqa: PLC0415 - heavy, and of an extra
    from scipy.stats import t  # noqa: PLC0415 - the same

    if len(set(cpus)) <= _PARAMETERS:
        raise ValueError(f"a fit needs more than {_PARAMETERS} numbers of CPUs, not {len(set(cpus))}")
    sizes, rates = np.asarray(cpus, float), np.asarray(pairs_per_s, float)
    first = float((rates / sizes)[sizes == sizes.min()].mean())

    def law(at: npt.NDArray[np.float64], rate: float, contention: float, coherency: float) -> Any:
        return np.log(throughput(at, rate * first, contention, coherency))

    # σ may exceed 1 where already the second CPU makes it slower.
    found, covariance = curve_fit(
        law, sizes, np.log(rates), p0=(1.0, 0.05, 1e-4), bounds=([1e-3, 0, 0], [1e3, 10, 10]), x_scale=(1, 0.1, 1e-3)
    )
    half = float(t.ppf((1 + _CONFIDENCE) / 2, max(len(sizes) - _PARAMETERS, 1))) * np.sqrt(np.diag(covariance))
    low, high = np.maximum(found - half, 0.0), found + half
    rate, contention, coherency = (float(value) for value in found)
    fitted = throughput(sizes, rate * first, contention, coherency)
    return Scalability(
        rate * first,
        contention,
        coherency,
        (float(low[0]) * first, float(high[0]) * first),
        (float(low[1]), float(high[1])),
        (float(low[2]), float(high[2])),
        float(np.abs(fitted / rates - 1).max()),
    )
