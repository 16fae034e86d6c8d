"""For how long devices could still reach what had been unmapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emu.report.page.chart import Chart, Data, Section, lanes_axis, layout, scale_for
from emu.report.page.colours import FAINT_INK, PAPER
from emu.report.page.series import Series, Subject
from emu.report.quantity import amount, duration

_POINTS = (("p50_ns", "half of them", "circle"), ("p99_ns", "99 %", "diamond"), ("max_ns", "longest", "triangle-up"))
_ACCESSES = ("accesses", "live", "unmapping", "faults", "stale", "stale_to_others", "undecided")


def exposure(subjects: Sequence[Subject]) -> Section:
    """The section of exposure."""
    series = [each for subject in subjects for each in subject.series]
    if not series:
        return Section("exposure", "Reachable after unmap", ["No domain has a result."])
    exposed = [each for each in series if each.run["exposure"].get("windows")]
    parts: list[Chart | Data | str] = []
    if exposed:
        parts.append(_chart(series, exposed))
    else:
        parts.append("No unmapped address was flushed while the run was watched.")
    watched = [each for each in series if each.run["exposure"].get("devices")]
    if watched:
        parts.append(_accesses(watched))
    else:
        parts.append("Accesses of devices: no device was emulated; run with --devices 1.")
    return Section("exposure", "Reachable after unmap", parts)


def _chart(series: Sequence[Series], exposed: Sequence[Series]) -> Chart:
    values = [[float(each.run["exposure"][point] or 0.0) for point, _, _ in _POINTS] for each in exposed]
    scale = scale_for([value for row in values for value in row], "time", is_time=True)
    lanes = [-lane for lane in range(len(exposed))]
    spans: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "hoverinfo": "skip",
        "x": [place for row in values for place in (*scale.place(np.array([min(row), max(row)])), None)],
        "y": [place for lane in lanes for place in (lane, lane, None)],
        "line": {"color": FAINT_INK, "width": 2},
    }
    traces = [spans]
    edge = {"color": PAPER, "width": 1}
    for number, (_, name, symbol) in enumerate(_POINTS):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": scale.place(np.array([row[number] for row in values])),
                "y": lanes,
                "text": [
                    f"{each.name}: {name} {duration(row[number])}" for each, row in zip(exposed, values, strict=True)
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": [each.colour for each in exposed], "symbol": symbol, "size": 12, "line": edge},
            }
        )
    return Chart(
        identity="exposure",
        title="For how long unmapped pages could be reached",
        says="From the unmap of an address to the end of the flush after which no device reaches it: half of them "
        "(circle), 99 % (diamond), the longest (triangle); further left is safer.",
        traces=traces,
        layout=layout(scale.axis, lanes_axis([each.name for each in exposed]), 90 + 34 * len(exposed)),
        narrow={"xaxis": scale.narrow},
        data=Data(
            "Time between unmap and flush; pages × time over all of them",
            ("scheme", "flushed", "p50", "p99", "longest", "page·seconds", "never flushed"),
            [_row(each) for each in series],
        ),
    )


def _row(series: Series) -> Sequence[str]:
    found = series.run["exposure"]
    has_any = bool(found.get("windows"))
    return (
        series.name,
        amount(found.get("windows")),
        *(duration(found.get(point) if has_any else None) for point, _, _ in _POINTS),
        amount(found.get("page_seconds")),
        amount(found.get("still_open")),
    )


def _accesses(series: Sequence[Series]) -> Data:
    return Data(
        "Accesses of devices. Stale: after the unmap had returned, and before the flush; to others: the page was "
        "another mapping's by then",
        ("scheme", "all", "live", "during the unmap", "refused", "stale", "of these to others", "undecided"),
        [(each.name, *(amount(each.run["exposure"]["devices"].get(name)) for name in _ACCESSES)) for each in series],
    )
