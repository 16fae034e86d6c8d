"""How runs went on: throughput, queue depth and hypervisor over time, from the samples in their logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from emu.analysis.samples import Samples
from emu.report.page.chart import Chart, Data, Section, key_of, layout, plain_axis, scale_for
from emu.report.page.series import Series, Subject
from emu.report.page.text import markup
from emu.report.quantity import amount

Numbers = npt.NDArray[np.float64]
Read = Callable[[Series, Samples], Numbers]

_ROWS = 20
_SECONDS = "s since the start of the load"


def over_time(subjects: Sequence[Subject]) -> Section:
    """The section of everything over time."""
    series = [each for subject in subjects for each in subject.series]
    sampled = [each for each in series if each.samples]
    if not sampled:
        return Section("time", "Over time", [*_missing(subjects, series), "No log tells how a run went on over time."])
    parts: list[Chart | str] = [
        *_missing(subjects, series),
        _chart(
            sampled,
            "throughput",
            "Throughput over time",
            "pairs per s",
            "Map+unmap pairs per second between two looks at the running machine.",
            lambda _, samples: samples.rate(samples.pairs),
        ),
    ]
    queued = [each for each in sampled if each.samples and each.samples.queued.any()]
    if queued:
        parts.append(
            _chart(
                queued,
                "queued",
                "Queue depth over time",
                "IOVAs",
                "Unmapped address ranges that waited for a flush, over all queues of a domain.",
                lambda _, samples: samples.queued,
            )
        )
    else:
        parts.append("Queue depth: no unmapped address was found waiting for a flush.")
    served = [each for each in sampled if each.samples and each.samples.busy_ns.any()]
    if served:
        parts.append(
            _chart(
                served,
                "busy",
                "Hypervisor over time",
                "% busy",
                "Part of the time for which the hypervisor served requests.",
                lambda each, samples: samples.busy(_servers(each)) * 100,
            )
        )
    else:
        parts.append("Hypervisor: it was asked for nothing, or the calling CPUs served themselves.")
    return Section("time", "Over time", parts)


def _missing(subjects: Sequence[Subject], series: Sequence[Series]) -> list[str]:
    problems = [f"{subject.letter}: {markup(subject.log_problem)}." for subject in subjects if subject.log_problem]
    without = [each.name for each in series if not each.samples]
    if without and len(without) < len(series):
        problems.append(f"Not sampled, as too short or its log is not whole: {', '.join(without)}.")
    return problems


def _servers(series: Series) -> int:
    """How many servers the hypervisor had, from how busy they were."""
    hypervisor, seconds = series.run["hypervisor"], series.run["seconds"]
    busy = hypervisor["utilisation"] * seconds * 1e9
    return max(1, round(hypervisor["busy_ns"] / busy)) if busy else 1


def _chart(series: Sequence[Series], identity: str, title: str, unit: str, says: str, read: Read) -> Chart:
    values = {each.name: read(each, each.samples) for each in series if each.samples}
    is_share = unit.startswith("%")
    scale = scale_for([0.0, 100.0] if is_share else np.concatenate(list(values.values())), unit)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(each.samples) < 3 else "lines",
            "name": each.name,
            "legendgroup": each.name,
            "x": [float(f"{at_s:.6g}") for at_s in each.samples.at_s],
            "y": scale.place(values[each.name]),
            "text": [amount(float(value)) for value in values[each.name]],
            "hovertemplate": f"{each.name}: %{{text}} {unit}<br>at %{{x:.3f}} s<extra></extra>",
            "line": {"color": each.colour, "dash": each.dash, "width": 2},
        }
        for each in series
        if each.samples
    ]
    return Chart(
        identity=identity,
        title=title,
        says=says,
        traces=traces,
        layout=layout({**plain_axis(_SECONDS), "rangemode": "tozero"}, scale.axis, 320),
        keys=[key_of(each, dash=True) for each in series],
        data=_data(f"{title}, {unit}: means over equal times", series, values),
    )


def _data(caption: str, series: Sequence[Series], values: dict[str, Numbers]) -> Data:
    end_s = max(float(each.samples.at_s[-1]) for each in series if each.samples)
    edges = np.linspace(0.0, end_s, _ROWS + 1)
    columns = []
    for each in series:
        if each.samples:
            of = np.clip(np.searchsorted(edges, each.samples.at_s) - 1, 0, _ROWS - 1)
            counts = np.bincount(of, minlength=_ROWS)
            sums = np.bincount(of, values[each.name], _ROWS)
            columns.append(
                [amount(float(total / count)) if count else "–" for total, count in zip(sums, counts, strict=True)]
            )
    rows = [(f"{edges[row]:.3f}–{edges[row + 1]:.3f}", *(column[row] for column in columns)) for row in range(_ROWS)]
    return Data(caption, ("s", *(each.name for each in series)), rows)
