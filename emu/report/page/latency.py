"""How long maps and unmaps took: whole distributions on the axis of HdrHistogram, or the percentiles that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emu.analysis.histograms import percentile_steps, value_at
from emu.report.page.chart import Chart, Data, Section, key_of, layout, plain_axis, scale_for
from emu.report.page.series import Series, Subject
from emu.report.quantity import duration

_POINTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
_WRITTEN = (0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0)
_WHAT = {"map": "maps", "unmap": "unmaps"}


def latency(subjects: Sequence[Subject]) -> Section:
    """The section of latencies."""
    series = [each for subject in subjects for each in subject.series if each.run["ops"]]
    if not series:
        return Section("latency", "Latency", ["Nothing was mapped and unmapped."])
    return Section("latency", "Latency", [_chart(series, call) for call in _WHAT])


def _chart(series: Sequence[Series], call: str) -> Chart:
    curves = {each.name: _curve(each, call) for each in series}
    heights = np.concatenate([curve[1] for curve in curves.values()])
    scale = scale_for(heights, f"latency of {call}", is_time=True)
    furthest = max(float(curve[0].max()) for curve in curves.values())
    partial = [each.name for each in series if not _buckets(each, call)]
    return Chart(
        identity=f"latency-{call}",
        title=f"Latency of {_WHAT[call]}, by percentile",
        says=f"How long {_WHAT[call]} took: at 99 %, one in a hundred took at least that long. The largest are at the "
        "right; lower is faster.",
        traces=[_trace(each, call, *curves[each.name], scale.place(curves[each.name][1])) for each in series],
        layout=layout(_percentiles_axis(furthest, 1), scale.axis, 340),
        narrow={"xaxis": _percentiles_axis(furthest, 2)},
        keys=[key_of(each, dash=True) for each in series],
        data=Data(
            f"Latency of {_WHAT[call]}; whole distributions are told by upper ends of buckets 3 % wide",
            ("scheme", *(f"{point * 100:.12g} %" if point < 1 else "longest" for point in _WRITTEN)),
            [(each.name, *(duration(_value(each, call, point)) for point in _WRITTEN)) for each in series],
        ),
        notes=[f"Only some percentiles are known, joined by straight lines: {', '.join(partial)}."] if partial else [],
    )


def _buckets(series: Series, call: str) -> list[list[float]]:
    found: list[list[float]] = (series.run.get("histograms") or {}).get(call, [])
    return found


def _curve(series: Series, call: str) -> tuple[Any, Any]:
    buckets = _buckets(series, call)
    if buckets:
        return percentile_steps(buckets)
    known = series.run["latency_ns"][call]
    # The largest of n values is one in n.
    places = [*(1 / (1 - fraction) for fraction in _POINTS.values()), max(float(series.run["ops"]), 1000.0)]
    return np.array(places), np.array([*(known[point] for point in _POINTS), known["max"]], float)


def _value(series: Series, call: str, fraction: float) -> float | None:
    buckets = _buckets(series, call)
    if buckets:
        return value_at(buckets, fraction)
    known = series.run["latency_ns"][call]
    name = next((name for name, known_fraction in _POINTS.items() if known_fraction == fraction), None)
    found: float | None = known["max"] if fraction == 1 else known[name] if name else None
    return found


def _trace(series: Series, call: str, one_in: Any, heights: Any, places: list[float]) -> dict[str, Any]:
    is_whole = bool(_buckets(series, call))
    return {
        "type": "scatter",
        "mode": "lines" if is_whole else "lines+markers",
        "name": series.name,
        "legendgroup": series.name,
        "x": [float(f"{place:.6g}") for place in one_in],
        "y": places,
        "text": [
            f"{duration(float(height))} at {_percent(float(place))}"
            for height, place in zip(heights, one_in, strict=True)
        ],
        "hovertemplate": f"{series.name}: %{{text}}<extra></extra>",
        "line": {"color": series.colour, "dash": series.dash, "width": 2, "shape": "hv" if is_whole else "linear"},
    }


def _percent(one_in: float) -> str:
    return f"{(1 - 1 / one_in) * 100:.9g} %"


def _percentiles_axis(furthest: float, every: int) -> dict[str, Any]:
    """The axis of 1 / (1 - q): each decade is another nine."""
    decades = max(3, int(np.ceil(np.log10(furthest))))
    # Where every other is left out, 99 % and 99.99 % stay.
    powers = range(every, decades + 1, every)
    marks = [2.0, *(10.0**power for power in powers)]
    return {
        **plain_axis("percentile of calls"),
        "type": "log",
        "range": [0.0, float(np.log10(furthest)) if furthest > 1000 else 3.0],
        "tickvals": marks,
        "ticktext": [_percent(mark) for mark in marks],
    }
