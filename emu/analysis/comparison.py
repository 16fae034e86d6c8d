"""What rounds of several machines say: each beside the baseline, and what makes the numbers doubtful."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.analysis.paired import Difference, Drift, Floats, Plan, difference, drift, spread

SCHEMA = 1
_LARGE_SPREAD = 0.1
"""As pyperf has it."""
_SMALL_DRIFT = 0.01


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a run.

    Attributes:
        label: what it is, with its unit.
        read: takes it from an element of `runs` in summary.json, in that unit.
    """

    label: str
    read: Callable[[Mapping[str, Any]], float]


def _latency(call: str, percentile: str) -> Metric:
    return Metric(f"{call} {percentile}, µs", lambda run: run["latency_ns"][call][percentile] / 1e3)


METRICS = {
    "pairs": Metric("map+unmap pairs per s", lambda run: run["pairs_per_s"]),
    "map-p50": _latency("map", "p50"),
    "map-p99": _latency("map", "p99"),
    "unmap-p50": _latency("unmap", "p50"),
    "unmap-p99": _latency("unmap", "p99"),
    "exposure": Metric("longest reachable after unmap, ms", lambda run: run["exposure"]["max_ns"] / 1e6),
}
"""What can be compared, by the names of `--metric`."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate beside the baseline.

    Attributes:
        name: the candidate's.
        values: shape (rounds,), the metric.
        drift: of the values over the rounds.
        difference: from the baseline; None of the baseline itself, and where there is no ratio.
        ratio_drift: of the ratios over the rounds; None with no difference.
    """

    name: str
    values: Floats
    drift: Drift
    difference: Difference | None
    ratio_drift: Drift | None


def judge(names: Sequence[str], values: Floats, baseline: int, level: float) -> list[Judged]:
    """Put every candidate beside the baseline.

    Args:
        names: of the candidates.
        values: shape (rounds, candidates), at least one round.
        baseline: which of them the others are compared with.
        level: how often the interval of a ratio may miss.
    """
    base = values[:, baseline]
    found = []
    for number, name in enumerate(names):
        mine = values[:, number]
        has_ratio = number != baseline and bool(((mine > 0) & (base > 0)).all())
        found.append(
            Judged(
                name,
                mine,
                drift(mine) if (mine > 0).all() else Drift(0.0, 1.0),
                difference(mine, base, level) if has_ratio else None,
                drift(mine / base) if has_ratio else None,
            )
        )
    return found


def comparison(
    judged: Sequence[Judged], baseline: int, metric: str, plan: Plan, *, until: float | None, virtual: bool
) -> dict[str, Any]:
    """The object of comparison.json, but for `environment` and `candidates[].config`; see docs/compare.md.

    Args:
        judged: from `judge`.
        baseline: which of them the others are compared with.
        metric: a name of METRICS.
        plan: when one looked.
        until: the half-width, as a part, that was to be reached; None where none was.
        virtual: all clocks were virtual.
    """
    label, base = METRICS[metric].label, judged[baseline].name
    widths = [one.difference.half_width if one.difference else 0.0 for one in judged]
    return {
        "schema": SCHEMA,
        "metric": metric,
        "label": label,
        "baseline": base,
        "rounds": len(judged[baseline].values),
        "confidence": round(plan.confidence, 6),
        "until": until,
        "is_reached": None if until is None else max(widths) <= until,
        "candidates": [_candidate(one, number == baseline, base) for number, one in enumerate(judged)],
        "warnings": [*_warnings(judged, baseline), *_constant(judged, virtual=virtual)],
    }


def _candidate(one: Judged, is_baseline: bool, base: str) -> dict[str, Any]:
    low, middle, high = np.quantile(one.values, (0.25, 0.5, 0.75)).tolist()
    found = one.difference
    return {
        "name": one.name,
        "median": middle,
        "middle_half": [low, high],
        "spread": spread(one.values) if one.values.mean() else 0.0,
        "ratio": found.ratio if found else None,
        # Too few rounds have no interval, and JSON no infinity.
        "low": found.low if found and found.low else None,
        "high": found.high if found and found.low else None,
        "differs": found.is_found if found else None,
        "says": None if is_baseline else _statement(one, base),
    }


def _statement(one: Judged, base: str) -> str:
    found = one.difference
    if found is None:
        return f"{one.name}: no ratio to {base}, as one of them is 0 in a round"
    if not found.low:
        return f"{one.name}: {found.rounds} rounds are too few to tell it from {base}"
    if found.low == found.high == 1:
        return f"{one.name}: the same as {base} in every round"
    if not found.is_found:
        return f"{one.name}: no difference from {base} found; if there is one it is below {_percent(found.largest)}"
    low, high = found.low, found.high
    if low >= 2 or high <= 0.5:
        return f"{one.name}: {found.ratio:.3g} × {base} ({low:.3g} to {high:.3g})"
    word = "higher" if low > 1 else "lower"
    ends = sorted((abs(low - 1), abs(high - 1)))
    return (
        f"{one.name}: {_percent(abs(found.ratio - 1))} {word} than {base} ({_percent(ends[0])} to {_percent(ends[1])})"
    )


def _warnings(judged: Sequence[Judged], baseline: int) -> list[str]:
    base = judged[baseline].name
    said = []
    for one in judged:
        if one.drift.is_found and abs(one.drift.change) >= _SMALL_DRIFT:
            said.append(
                f"{one.name} {_moved(one.drift)} over the rounds: trust ratios more than the numbers of one machine"
            )
        if one.ratio_drift and one.ratio_drift.is_found and abs(one.ratio_drift.change) >= _SMALL_DRIFT:
            said.append(
                f"the ratio of {one.name} to {base} {_moved(one.ratio_drift)} over the rounds: it is no one number"
            )
        if one.values.mean() and spread(one.values) > _LARGE_SPREAD:
            said.append(
                f"{one.name} is unstable: the standard deviation is {_percent(spread(one.values))} of the mean; "
                "longer runs help, or a quieter computer"
            )
    return said


def _constant(judged: Sequence[Judged], *, virtual: bool) -> list[str]:
    if not virtual or len(judged[0].values) < 2 or any(np.ptp(one.values) for one in judged):
        return []
    return ["all rounds measured the same: nothing in this load is random, so the ratios are exact for it and no other"]


def _moved(found: Drift) -> str:
    return f"{'rose' if found.change > 0 else 'fell'} by {_percent(abs(found.change))}"


def _percent(part: float) -> str:
    """To two digits, or one after the point: 0.0012 is 0.12 %."""
    return f"{part * 100:.2g} %" if part < 0.0995 else f"{part * 100:.1f} %"
