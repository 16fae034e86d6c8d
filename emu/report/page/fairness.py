"""How evenly the CPUs of a machine shared the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emu.analysis.fairness import jains_index
from emu.report.page.chart import Chart, Data, Section, key_of, layout, plain_axis
from emu.report.page.series import Series, Subject
from emu.report.quantity import NOTHING, amount

_MOST_MARKS = 128
"""Of a series; more CPUs than that share marks."""


def fairness(subjects: Sequence[Subject]) -> Section:
    """The section of fairness."""
    series = [each for subject in subjects for each in subject.series if any(_pairs(each))]
    if not series:
        return Section("fairness", "CPUs", ["What each CPU did is not known, or none did anything."])
    if max(len(_pairs(each)) for each in series) == 1:
        return Section("fairness", "CPUs", ["There was one CPU, which shared with nobody."])
    return Section("fairness", "CPUs", [_chart(series)])


def _pairs(series: Series) -> list[int]:
    found: list[int] = series.run.get("pairs_by_cpu") or []
    return found


def _chart(series: Sequence[Series]) -> Chart:
    most = max(len(_pairs(each)) for each in series)
    together = -(-most // _MOST_MARKS)
    highest = max(max(_pairs(each)) / np.mean(_pairs(each)) for each in series)
    notes = []
    if together > 1:
        notes.append(f"Each mark stands for {together} CPUs with neighbouring numbers: their mean, least and most.")
    return Chart(
        identity="cpus",
        title="Work of each CPU",
        says="Map+unmap pairs of each CPU, relative to the mean of its scheme: all at 100 % is fair.",
        traces=[_trace(each, number, len(series), together) for number, each in enumerate(series)],
        layout=layout(
            {**plain_axis("CPU"), "zeroline": False, "range": [-0.6, most - 0.4], **_whole_numbers(most)},
            {**plain_axis("% of the mean"), "range": [0.0, max(120.0, highest * 108)]},
            280,
        ),
        keys=[key_of(each, symbol=True) for each in series],
        data=Data(
            "Pairs by CPU; Jain's index is 1 where all did the same, and 1 ÷ CPUs where one did everything",
            ("scheme", "CPUs", "Jain's index", "least", "mean", "most"),
            [_row(each) for each in series],
        ),
        notes=[f"Jain's index: {', '.join(f'{each.name} {_index(each)}' for each in series)}.", *notes],
    )


def _whole_numbers(most: int) -> dict[str, Any]:
    return {"tickvals": list(range(most))} if most <= 8 else {"nticks": 8}


def _trace(series: Series, number: int, count: int, together: int) -> dict[str, Any]:
    pairs = np.array(_pairs(series), float)
    relative = pairs / pairs.mean() * 100
    parts = [relative[first : first + together] for first in range(0, len(relative), together)]
    means = np.array([part.mean() for part in parts])
    first = np.arange(len(parts)) * together
    # Series stand beside each other, not upon each other.
    aside = (number - (count - 1) / 2) * 0.5 / count * together
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": series.name,
        "legendgroup": series.name,
        "x": [round(float(at), 3) for at in first + (together - 1) / 2 + aside],
        "y": [round(float(mean), 2) for mean in means],
        "text": [
            f"CPU {begin}" if together == 1 else f"CPUs {begin}–{begin + len(part) - 1}"
            for begin, part in zip(first, parts, strict=True)
        ],
        "hovertemplate": f"{series.name}<br>%{{text}}: %{{y:.1f}} %<extra></extra>",
        "marker": {"color": series.colour, "symbol": series.symbol, "size": 10 if len(parts) <= 32 else 5},
    }
    if together > 1:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [round(float(part.max() - mean), 2) for part, mean in zip(parts, means, strict=True)],
            "arrayminus": [round(float(mean - part.min()), 2) for part, mean in zip(parts, means, strict=True)],
            "width": 0,
            "thickness": 1,
        }
    return trace


def _index(series: Series) -> str:
    index = jains_index(_pairs(series))
    return NOTHING if index is None else f"{index:.3f}"


def _row(series: Series) -> Sequence[str]:
    pairs = _pairs(series)
    return (
        series.name,
        amount(len(pairs)),
        _index(series),
        amount(min(pairs)),
        amount(float(np.mean(pairs))),
        amount(max(pairs)),
    )
