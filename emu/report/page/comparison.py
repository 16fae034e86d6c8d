"""The headline: all schemes in one table, and their throughput in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emu.report.page.chart import Chart, Data, Scale, Section, bar_look, lanes_axis, layout, scale_for
from emu.report.page.series import Series, Subject
from emu.report.page.text import markup
from emu.report.quantity import amount, duration, times
from emu.report.reading import gain_and_exposure, most_waited_for_locks
from emu.report.table import baseline_of

HEADERS = (
    "scheme",
    "pairs per s",
    "relative",
    "map p50",
    "map p99",
    "unmap p50",
    "unmap p99",
    "flushes",
    "reachable for up to",
    "violations",
)


def comparison(subjects: Sequence[Subject]) -> Section:
    """The section of the headline."""
    series = [each for subject in subjects for each in subject.series]
    if not series:
        return Section("comparison", "Side by side", ["No domain has a result: the run was stopped before one ended."])
    table = Data(
        "Relative: to the strict scheme of the same run, or to its first. Reachable: the longest time for which a "
        "device could still reach an unmapped page.",
        HEADERS,
        [row for subject in subjects for row in _rows(subject)],
    )
    return Section("comparison", "Side by side", [*_sentences(subjects), table, _picture(series)])


def _sentences(subjects: Sequence[Subject]) -> Iterator[str]:
    for subject in subjects:
        which = f"{subject.letter}: " if len(subjects) > 1 else ""
        if subject.runs:
            said = (*gain_and_exposure(subject.runs), *most_waited_for_locks(subject.runs))
            yield from (markup(f"{which}{sentence.rstrip('.')}.") for sentence in said)
    yield from _between_runs(subjects)


def _between_runs(subjects: Sequence[Subject]) -> Iterator[str]:
    """The same scheme in another run."""
    if len(subjects) < 2:
        return
    first = {each.data.domain: each for each in reversed(subjects[0].series)}
    for subject in subjects[1:]:
        ratios = []
        for each in subject.series:
            other = first.get(each.data.domain)
            if other and other.run["pairs_per_s"]:
                ratio = times(each.run["pairs_per_s"] / other.run["pairs_per_s"])
                ratios.append(f"{markup(each.data.domain)} {ratio}")
        if ratios:
            yield f"{subject.letter}, pairs per s relative to {subjects[0].letter}: {', '.join(ratios)}."


def _rows(subject: Subject) -> Iterator[Sequence[str]]:
    for each in subject.series:
        run, base = each.run, baseline_of(subject.runs)["pairs_per_s"]
        latency = run["latency_ns"] if run["ops"] else {}
        reach = run["exposure"].get("max_ns") if run["exposure"].get("windows") else None
        yield (
            each.name,
            amount(run["pairs_per_s"]),
            times(run["pairs_per_s"] / base if base else None),
            *(duration(latency.get(call, {}).get(point)) for call in ("map", "unmap") for point in ("p50", "p99")),
            amount(sum(run["flushes"].values())),
            duration(reach),
            amount(run["violations"]),
        )


def _picture(series: Sequence[Series]) -> Chart:
    rates = np.array([each.run["pairs_per_s"] for each in series], float)
    scale = scale_for(rates, "map+unmap pairs per s")
    if scale.is_log:
        # Room for the number beside the rightmost mark.
        scale.axis["range"][1] += 0.12 * (scale.axis["range"][1] - scale.axis["range"][0]) + 0.3
    else:
        scale.axis["range"] = [0.0, float(rates.max()) * 1.3 or 1.0]
    return Chart(
        identity="pairs",
        title="Throughput",
        says="Map+unmap pairs per second of each scheme; further right is faster.",
        traces=[_rate(each, -lane, scale) for lane, each in enumerate(series)],
        layout=layout(scale.axis, lanes_axis([each.name for each in series]), 90 + 34 * len(series), barmode="overlay"),
        narrow={"xaxis": scale.narrow},
        data=Data(
            "Throughput, and what was done in all",
            ("scheme", "pairs per s", "pages per s", "pairs", "seconds"),
            [
                (
                    each.name,
                    amount(each.run["pairs_per_s"]),
                    amount(each.run["pages_per_s"]),
                    amount(each.run["ops"]),
                    amount(each.run["seconds"]),
                )
                for each in series
            ],
        ),
    )


def _rate(series: Series, lane: int, scale: Scale) -> dict[str, Any]:
    rate = float(series.run["pairs_per_s"])
    trace = {
        "name": series.name,
        "x": scale.place(np.array([rate])),
        "y": [lane],
        "text": [f"  {amount(rate)}"],
        "hovertext": [f"{series.name}: {amount(rate)} pairs per s"],
        "hoverinfo": "text",
        "cliponaxis": False,
    }
    # A bar has no length where there is no 0.
    if scale.is_log:
        look = {"color": series.colour, "size": 13, "symbol": series.symbol}
        return {**trace, "type": "scatter", "mode": "markers+text", "textposition": "middle right", "marker": look}
    form = {"type": "bar", "orientation": "h", "textposition": "outside", "width": 0.62}
    return {**trace, **form, "marker": bar_look(series)}
