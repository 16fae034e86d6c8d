"""When everything was flushed, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.analysis.flush_groups import flush_groups
from emu.analysis.flushes import CAUSES
from emu.analysis.run_data import RunDataError
from emu.report.page.chart import Chart, Data, Key, Section, lanes_axis, layout, plain_axis
from emu.report.page.colours import CAUSES as COLOURS
from emu.report.page.colours import SYMBOLS
from emu.report.page.series import Series, Subject
from emu.report.page.text import markup
from emu.report.quantity import amount, duration

_GROUPS = 250
"""Into how many intervals the time is cut."""
_NAMES = {
    "full": "queue full",
    "timeout": "timer",
    "no_resources": "out of resources",
    "wrap": "wrap-around",
    "early": "asked for by a policy",
}
_IDENTITY, _TITLE = "flushes", "Global flushes"


def flush_timeline(subjects: Sequence[Subject]) -> Section:
    """The section of flushes of everything."""
    series = [each for subject in subjects for each in subject.series]
    sentences, found = [], {}
    for each in series:
        try:
            flushes = each.data.flushes()
        except RunDataError as error:
            sentences.append(f"{each.name}: {markup(error)}.")
            continue
        if len(flushes):
            found[each.name] = flushes
        elif sum(each.run["flushes"].values()):
            sentences.append(f"{each.name}: its flushes were counted, but are not in its folder one by one.")
    if not found:
        why = "No flush of everything is known one by one." if sentences else "Nothing was flushed as a whole."
        return Section(_IDENTITY, _TITLE, [*sentences, why])
    shown = [each for each in series if each.name in found]
    quiet = [each.name for each in series if not sum(each.run["flushes"].values())]
    if quiet:
        sentences.append(f"None in: {', '.join(quiet)}.")
    return Section(_IDENTITY, _TITLE, [*sentences, _chart(shown, found)])


def _chart(series: Sequence[Series], found: dict[str, npt.NDArray[np.void]]) -> Chart:
    end_s = max(_end_s(each, found[each.name]) for each in series) or 1e-9
    groups = {each.name: flush_groups(found[each.name], each.data.clock, end_s / _GROUPS) for each in series}
    causes = [
        number for number in range(len(CAUSES)) if any((each["cause"] == number).any() for each in groups.values())
    ]
    total = sum(len(flushes) for flushes in found.values())
    marks = sum(len(each) for each in groups.values())
    notes = []
    if marks < total:
        notes.append(
            f"{amount(total)} flushes in {amount(marks)} marks: those of one cause within "
            f"{duration(end_s / _GROUPS * 1e9)} share a mark, which is the larger the more they are."
        )
    return Chart(
        identity="flush-timeline",
        title="Flushes over time, by cause",
        says="When each scheme flushed everything, and why.",
        traces=[_trace(series, groups, cause) for cause in causes],
        layout=layout(
            {**plain_axis("s since the start of the load"), "range": [-0.02 * end_s, 1.02 * end_s], "zeroline": False},
            lanes_axis([each.name for each in series]),
            90 + 56 * len(series),
        ),
        keys=[Key(_NAMES[CAUSES[cause]], CAUSES[cause], COLOURS[cause], symbol=SYMBOLS[cause]) for cause in causes],
        data=_data(series, found),
        notes=notes,
    )


def _end_s(series: Series, flushes: npt.NDArray[np.void]) -> float:
    latest = series.data.clock.since_start_ns(int(flushes["started_ticks"].max())) / 1e9
    return max(float(series.run["seconds"]), latest)


def _trace(series: Sequence[Series], groups: dict[str, npt.NDArray[np.void]], cause: int) -> dict[str, Any]:
    x, y, sizes, texts = [], [], [], []
    for lane, each in enumerate(series):
        for group in groups[each.name][groups[each.name]["cause"] == cause]:
            x.append(float(f"{group['at_s']:.5g}"))
            y.append(-lane + 0.24 - 0.16 * cause)
            sizes.append(6 + round(3 * float(np.log10(group["count"])), 1))
            many = f"{group['count']} flushes" if group["count"] > 1 else "one flush"
            waited = f"{amount(int(group['entries']))} IOVAs waited"
            texts.append(f"{each.name}: {many}, {waited}, longest {duration(float(group['longest_ns']))}")
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _NAMES[CAUSES[cause]],
        "legendgroup": CAUSES[cause],
        "x": x,
        "y": y,
        "text": texts,
        "hovertemplate": f"{_NAMES[CAUSES[cause]]}<br>%{{text}}<br>at %{{x}} s<extra></extra>",
        "marker": {
            "color": COLOURS[cause],
            "symbol": SYMBOLS[cause],
            "size": sizes,
            "opacity": 0.85,
            "line": {"width": 0},
        },
    }


def _data(series: Sequence[Series], found: dict[str, npt.NDArray[np.void]]) -> Data:
    rows = []
    for each in series:
        flushes = found[each.name]
        for cause, name in enumerate(CAUSES):
            these = flushes[flushes["cause"] == cause]
            ended = these[these["finished_ticks"] >= 0]
            took = (ended["finished_ticks"] - ended["started_ticks"]) * each.data.clock.tick_ns
            if len(these):
                rows.append(
                    (
                        each.name,
                        _NAMES[name],
                        amount(len(these)),
                        amount(float(these["entries"].mean())),
                        amount(float(ended["changed"].mean()) if len(ended) else None),
                        duration(float(np.median(took)) if len(took) else None),
                        duration(float(took.max()) if len(took) else None),
                    )
                )
    headers = ("scheme", "cause", "flushes", "IOVAs each", "entries changed each", "median time", "longest")
    return Data("Global flushes by cause", headers, rows)
