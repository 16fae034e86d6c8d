"""Numbers as people read them: at most seven characters, three significant digits or more."""

from __future__ import annotations

import math

NOTHING = "–"
EXACT_BELOW = 100_000
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def amount(value: float | None) -> str:
    """A number of things or of units that the row's label names: 0.031, 3.92, 255, 32767, 123 k, 1.05 M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) < EXACT_BELOW:
        return _digits(value)
    for factor, prefix in _PREFIXES:
        # 999 600 reads 1.00 M, not 1000 k.
        if abs(value) >= factor * 0.9995:
            return f"{_digits(value / factor)} {prefix}"
    return NOTHING


def duration(ns: float | None) -> str:
    """A time in the largest unit that it fills: 830 ns, 12.5 µs, 1.02 s."""
    if ns is None or not math.isfinite(ns):
        return NOTHING
    for factor, unit in _UNITS:
        if abs(ns) >= factor * 0.9995:
            return f"{_digits(ns / factor)} {unit}"
    return f"{_digits(ns)} ns"


def times(ratio: float | None) -> str:
    """How many times as much: 0.52 ×, 2.81 ×, 41 ×."""
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    return f"{ratio:.2f} ×" if ratio < 9.995 else f"{amount(ratio)} ×"


def _digits(value: float) -> str:
    size = abs(value)
    if isinstance(value, int) or size == 0:
        return f"{value:.0f}"
    if size < 0.0005:
        return "<0.001"
    if size < 0.9995:
        return f"{value:.3f}"
    if size < 9.995:
        return f"{value:.2f}"
    if size < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"
