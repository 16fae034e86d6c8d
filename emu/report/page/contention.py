"""Where the time went: waits for locks, and the stages of maps and unmaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emu.report.page.chart import Chart, Data, Key, Section, bar_look, key_of, lanes_axis, layout, pattern_of, scale_for
from emu.report.page.colours import SERIES
from emu.report.page.series import Series, Subject
from emu.report.page.text import markup, shortened
from emu.report.quantity import NOTHING, amount, duration
from emu.report.table import lock_share

_MOST_LOCKS = 10
_LEAST = 0.002
"""Of the longest bar; a shorter one cannot be seen."""
_LONGEST_NAME = 22
_STAGES = {
    "call": ("call and measuring", SERIES[6], ""),
    "allocator": ("address allocator", SERIES[2], ""),
    "tables": ("tables", SERIES[4], ""),
    "queue": ("flush queue", SERIES[0], ""),
    "queue_lock": ("lock of the queue", SERIES[0], "/"),
    "flush_wait": ("wait for another's flush", SERIES[5], ""),
    "hypervisor_queue": ("hypervisor: waiting", SERIES[1], "x"),
    "hypervisor_service": ("hypervisor: serving", SERIES[1], ""),
    "hypervisor_return": ("hypervisor: there and back", SERIES[3], "."),
}
"""What each stage of emu.analysis.breakdown is called, its colour and its pattern."""


_ONE = {"map": "a map", "unmap": "an unmap"}


def contention(subjects: Sequence[Subject]) -> Section:
    """The section of locks and stages."""
    series = [each for subject in subjects for each in subject.series]
    parts = [*_breakdowns(series), _locks(series)] if series else ["No domain has a result."]
    return Section("contention", "Where the time went", parts)


def _locks(series: Sequence[Series]) -> Chart | str:
    shares = {each.name: _shares(each) for each in series}
    dearest: dict[str, float] = {}
    for share in shares.values():
        for name, part in share.items():
            dearest[name] = max(dearest.get(name, 0.0), part)
    if not dearest:
        return "Locks: nobody waited for one."
    most = max(dearest.values())
    visible = [name for name in sorted(dearest, key=lambda name: -dearest[name]) if dearest[name] >= most * _LEAST]
    names = visible[:_MOST_LOCKS]
    bars = [
        (name, each, shares[each.name][name])
        for name in names
        for each in series
        if shares[each.name].get(name, 0.0) >= most * _LEAST
    ]
    # Bars of one lock stand close together, and those of different locks apart.
    places, place, before = [], 1.0, None
    for name, _, _ in bars:
        place -= 1.0 if name == before else 1.9
        places.append(place)
        before = name
    middles = [float(np.mean([at for at, bar in zip(places, bars, strict=True) if bar[0] == name])) for name in names]
    shown = [each for each in series if any(bar[1] is each for bar in bars)]
    lanes = lanes_axis([markup(shortened(name, _LONGEST_NAME)) for name in names])
    left_out = len(dearest) - len(names)
    return Chart(
        identity="locks",
        title="Waiting for locks",
        says="Part of all CPUs' time that was spent waiting for each lock, the dearest first.",
        traces=[_waits_of(each, bars, places) for each in shown],
        layout=layout(
            scale_for([0.0, most], "% of all CPUs' time").axis,
            {**lanes, "tickvals": middles, "range": [places[-1] - 0.8, places[0] + 0.8]},
            90 + round(18 * (places[0] - places[-1] + 1.6)),
            barmode="overlay",
        ),
        keys=[key_of(each) for each in shown],
        data=Data(
            "Locks for which anybody waited",
            ("scheme", "lock", "acquired", "contended", "total wait", "average wait", "longest wait", "% of CPU time"),
            [row for each in series for row in _lock_rows(each)],
        ),
        notes=[f"Too little to be seen, or too many: {left_out} more in the table."] if left_out else [],
    )


def _waits_of(series: Series, bars: Sequence[tuple[str, Series, float]], places: Sequence[float]) -> dict[str, Any]:
    mine = [(name, share, at) for (name, each, share), at in zip(bars, places, strict=True) if each is series]
    return {
        "type": "bar",
        "orientation": "h",
        "name": series.name,
        "legendgroup": series.name,
        "y": [round(at, 2) for _, _, at in mine],
        "x": [share for _, share, _ in mine],
        "width": 0.85,
        "text": [f"{markup(name)}: {amount(share)} %" for name, share, _ in mine],
        "textposition": "none",
        "hovertemplate": f"{series.name}<br>%{{text}}<extra></extra>",
        "marker": bar_look(series),
    }


def _shares(series: Series) -> dict[str, float]:
    found = {str(lock["name"]): lock_share(series.run, lock["total_wait_ns"]) for lock in series.run["locks"]}
    return {name: share * 100 for name, share in found.items() if share}


def _lock_rows(series: Series) -> Iterator[Sequence[str]]:
    for lock in series.run["locks"]:
        if lock["contended"]:
            share = lock_share(series.run, lock["total_wait_ns"])
            yield (
                series.name,
                markup(lock["name"]),
                amount(lock["acquisitions"]),
                amount(lock["contended"]),
                duration(lock["total_wait_ns"]),
                duration(lock["avg_wait_ns"]),
                duration(lock["max_wait_ns"]),
                amount(share * 100 if share is not None else None),
            )


def _breakdowns(series: Sequence[Series]) -> Iterator[Chart | str]:
    known = [each for each in series if each.run.get("breakdown")]
    if not known:
        yield "Stages of maps and unmaps: they were not measured; run with --breakdown."
        return
    without = [each.name for each in series if not each.run.get("breakdown")]
    if without:
        yield f"Stages of maps and unmaps were not measured in: {', '.join(without)}."
    for call in ("map", "unmap"):
        called = [each for each in known if each.run["breakdown"][call]["calls"]]
        if called:
            yield _stages(called, call)


def _stages(series: Sequence[Series], call: str) -> Chart:
    means = [_means(each.run["breakdown"][call]) for each in series]
    used = [stage for stage in _STAGES if any(mean.get(stage) for mean in means)]
    totals = [sum(mean.values()) for mean in means]
    scale = scale_for([0.0, max(totals)], f"time of one {call}, mean", is_time=True)
    traces = []
    for stage in used:
        title, colour, pattern = _STAGES[stage]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": title,
                "legendgroup": stage,
                "y": [-lane for lane in range(len(series))],
                "x": [round(mean.get(stage, 0.0), 2) for mean in means],
                "width": 0.62,
                "text": [f"{each.name}: {duration(mean.get(stage))}" for each, mean in zip(series, means, strict=True)],
                "textposition": "none",
                "hovertemplate": f"{title}<br>%{{text}}<extra></extra>",
                "marker": {"color": colour, "pattern": pattern_of(pattern)},
            }
        )
    rows = [
        (_STAGES[stage][0], *(_part(mean, stage, total) for mean, total in zip(means, totals, strict=True)))
        for stage in used
    ]
    rows.append(("all stages", *(duration(total) for total in totals)))
    rows.append(("measured around the call", *(duration(_measured(each.run["breakdown"][call])) for each in series)))
    return Chart(
        identity=f"stages-{call}",
        title=f"Stages of {call}s",
        says=f"Where the time of {_ONE[call]} went, on average over all.",
        traces=traces,
        layout=layout(scale.axis, lanes_axis([each.name for each in series]), 90 + 34 * len(series), barmode="stack"),
        keys=[Key(_STAGES[stage][0], stage, _STAGES[stage][1], pattern=_STAGES[stage][2]) for stage in used],
        data=Data(f"Time of one {call}, mean", ("stage", *(each.name for each in series)), rows),
    )


def _means(found: dict[str, Any]) -> dict[str, float]:
    return {stage: found["stages_ns"].get(stage, 0) / found["calls"] for stage in _STAGES}


def _measured(found: dict[str, Any]) -> float:
    return float(found["measured_ns"] / found["calls"])


def _part(mean: dict[str, float], stage: str, total: float) -> str:
    value = mean.get(stage, 0.0)
    return f"{duration(value)} ({value / total * 100:.1f} %)" if value and total else NOTHING
