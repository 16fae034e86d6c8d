"""Ratios of what took turns: one number of each round, divided by another of the same round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The first and third quartile; of one value, itself."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def ratio_of(measured: Sequence[float], beside: Sequence[float]) -> dict[str, Any]:
    """Median of the ratios of the same rounds (`ratio`), and the range of their middle half (`middle_half`)."""
    ratios = [one / other for one, other in zip(measured, beside, strict=True)]
    return {"ratio": median(ratios), "middle_half": middle_half(ratios)}


def ratio_text(found: dict[str, Any]) -> str:
    """What ratio_of() returns, in words: "0.990 (0.981 to 1.004)"."""
    low, high = found["middle_half"]
    return f"{found['ratio']:.3f} ({low:.3f} to {high:.3f})"
