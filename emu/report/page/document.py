"""One self-contained page of HTML: needs no network, and lets nothing be loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources

from emu.report.page.chart import Chart, Data, Key, Section
from emu.report.page.colours import DARK
from emu.report.page.comparison import HEADERS, comparison
from emu.report.page.contention import contention
from emu.report.page.exposure import exposure
from emu.report.page.fairness import fairness
from emu.report.page.flush_timeline import flush_timeline
from emu.report.page.functions import functions
from emu.report.page.latency import latency
from emu.report.page.over_time import over_time
from emu.report.page.series import Subject
from emu.report.page.surroundings import alarms, surroundings
from emu.report.page.text import kept_together, markup

BEGINNING = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="emu report">\n'
)
"""By which a report is known."""

_DASHES = {
    "solid": "",
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "11 4",
    "longdashdot": "11 3 2 3",
}
_SHAPES = {
    "circle": '<circle cx="7" cy="7" r="5"/>',
    "square": '<path d="M2 2h10v10h-10z"/>',
    "diamond": '<path d="M7 1l6 6-6 6-6-6z"/>',
    "triangle-up": '<path d="M7 1.5l6 10.5h-12z"/>',
    "cross": '<path d="M5 1h4v4h4v4h-4v4h-4v-4h-4v-4h4z"/>',
    "star": '<path d="M7 0l1.8 4.9 5.2.2-4.1 3.2 1.4 5-4.3-2.9-4.3 2.9 1.4-5-4.1-3.2 5.2-.2z"/>',
    "pentagon": '<path d="M7 1l6 4.4-2.3 7h-7.4l-2.3-7z"/>',
    "hourglass": '<path d="M1 1h12l-12 12h12z"/>',
}
_STRIPES = {
    "/": '<path d="M0 14L14 0M-4 9L9 -4M5 18L18 5"/>',
    "\\": '<path d="M0 0L14 14M5 -4L18 9M-4 5L9 18"/>',
    "x": '<path d="M0 14L14 0M0 0L14 14"/>',
    ".": '<path d="M4 4h1M10 4h1M4 10h1M10 10h1" stroke-width="2.5"/>',
    "-": '<path d="M0 4h14M0 10h14"/>',
    "|": '<path d="M4 0v14M10 0v14"/>',
    "+": '<path d="M0 7h14M7 0v14"/>',
    "": "",
}


def report_page(subjects: Sequence[Subject], plotly_js: str) -> str:
    """The whole page.

    Args:
        subjects: the runs, with their logs read.
        plotly_js: the library that draws.
    """
    sections = [
        comparison(subjects),
        *functions(subjects),
        over_time(subjects),
        latency(subjects),
        flush_timeline(subjects),
        contention(subjects),
        exposure(subjects),
        fairness(subjects),
        surroundings(subjects),
    ]
    return "".join(_page(subjects, sections, plotly_js))


def _page(subjects: Sequence[Subject], sections: Sequence[Section], plotly_js: str) -> Iterator[str]:
    script, style = _resource("page.js"), _resource("style.css")
    scripts = f"'{_digest(plotly_js)}' '{_digest(script)}'"
    title = f"emu: {', '.join(markup(subject.data.folder.name or subject.data.folder) for subject in subjects)}"
    yield BEGINNING
    # Whatever text of a run got around escaping: it could neither run nor load anything.
    yield f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; script-src {scripts}; '
    yield "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n'
    yield f"<style>\n{style}</style>\n</head>\n"
    yield '<body>\n<a class="skip" href="#main">Skip to the results</a>\n<header>\n<h1>Flush queues under load</h1>\n'
    yield from _runs(subjects)
    yield from _contents(sections)
    yield '</header>\n<main id="main" tabindex="-1">\n'
    yield from _alarms(alarms(subjects))
    yield '<noscript><p class="note">Pictures need JavaScript; all numbers are in the tables below.</p></noscript>\n'
    for section in sections:
        yield from _section(section)
    yield "</main>\n<footer><p>Written by emu report. Nothing on this page is loaded from elsewhere.</p></footer>\n"
    yield f'<script type="application/json" id="charts">{_charts(sections)}</script>\n'
    yield f"<script>{plotly_js}</script>\n<script>{script}</script>\n</body>\n</html>\n"


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _runs(subjects: Sequence[Subject]) -> Iterator[str]:
    yield '<ul class="runs">\n'
    for subject in subjects:
        letter = f"<strong>{subject.letter}</strong> " if len(subjects) > 1 else ""
        yield f"<li>{letter}<code>{markup(subject.data.folder)}</code> {_what_ran(subject)}</li>\n"
    yield "</ul>\n"


def _what_ran(subject: Subject) -> str:
    if not subject.runs:
        return "no domain has a result"
    run = subject.runs[0]
    cpus = f"{run['cpus']} CPU{'s' * (run['cpus'] != 1)}"
    where = "virtual clocks" if run["engine"] == "sim" else markup(run["engine"])
    return f"preset {markup(run['preset'])}, load {markup(run['workload'])}, {cpus}, {where}"


def _contents(sections: Sequence[Section]) -> Iterator[str]:
    links = (f'<li><a href="#{section.identity}">{section.title}</a></li>' for section in sections)
    yield f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>\n'


def _alarms(sentences: Sequence[str]) -> Iterator[str]:
    if sentences:
        items = "".join(f"<li>{kept_together(sentence)}</li>" for sentence in sentences)
        yield '<section class="alarm" role="alert" aria-labelledby="alarm"><h2 id="alarm">Read this first</h2>'
        yield f"<ul>{items}</ul></section>\n"


def _section(section: Section) -> Iterator[str]:
    yield f'<section aria-labelledby="{section.identity}">\n<h2 id="{section.identity}">{section.title}</h2>\n'
    for part in section.parts:
        if isinstance(part, Chart):
            yield from _figure(part)
        elif isinstance(part, Data):
            yield from (_table(part, cards=part.headers == HEADERS) if not part.is_folded else _folded(part))
        else:
            yield f"<p>{kept_together(part)}</p>\n"
    yield "</section>\n"


def _figure(chart: Chart) -> Iterator[str]:
    yield f'<figure aria-labelledby="{chart.identity}-title">\n<h3 id="{chart.identity}-title">{chart.title}</h3>\n'
    yield f'<p class="says" id="{chart.identity}-says">{chart.says}</p>\n'
    if len(chart.keys) > 1:
        keys = "".join(f"<li>{_key(chart, key)}</li>" for key in chart.keys)
        yield f'<ul class="legend" aria-label="Legend: show or hide">{keys}</ul>\n'
    height = chart.layout["height"]
    yield f'<div class="plot" id="chart-{chart.identity}" role="img" aria-labelledby="{chart.identity}-title" '
    yield f'aria-describedby="{chart.identity}-says" style="min-height:{height}px"></div>\n'
    yield from (f'<p class="note">{kept_together(note)}</p>\n' for note in chart.notes)
    yield from _folded(chart.data)
    yield "</figure>\n"


def _key(chart: Chart, key: Key) -> str:
    colours = f"--light:{key.colour};--dark:{DARK[key.colour]}"
    said = f'data-chart="chart-{chart.identity}" data-group="{key.group}" aria-pressed="true" style="{colours}"'
    return f'<button type="button" {said}>{_swatch(key)}{key.name}</button>'


def _swatch(key: Key) -> str:
    if key.dash is not None:
        line = f'<line x1="1" y1="7" x2="29" y2="7" stroke-width="3" stroke-dasharray="{_DASHES[key.dash]}"/>'
        return f'<svg class="line" width="30" height="14" aria-hidden="true">{line}</svg>'
    if key.symbol is not None:
        return f'<svg class="shape" width="14" height="14" aria-hidden="true">{_SHAPES[key.symbol]}</svg>'
    square = '<rect class="fill" width="14" height="14"/>'
    return f'<svg class="bar" width="14" height="14" aria-hidden="true">{square}{_STRIPES[key.pattern or ""]}</svg>'


def _folded(data: Data) -> Iterator[str]:
    yield f"<details><summary>Table: {data.caption}</summary>\n"
    yield from _table(data, cards=False)
    yield "</details>\n"


def _table(data: Data, *, cards: bool) -> Iterator[str]:
    # Roles are said, for a table that is laid out as cards on a phone would lose them.
    kind = "cards" if cards else "scroll"
    yield f'<div class="{kind}" tabindex="0" role="region" aria-label="{data.caption}"><table role="table">\n'
    yield f"<caption>{data.caption}</caption>\n"
    heads = "".join(f'<th role="columnheader" scope="col">{header}</th>' for header in data.headers)
    yield f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n<tbody role="rowgroup">\n'
    for first, *rest in data.shown:
        cells = (
            f'<td role="cell" data-label="{header}">{cell}</td>'
            for header, cell in zip(data.headers[1:], rest, strict=True)
        )
        yield f'<tr role="row"><th role="rowheader" scope="row">{first}</th>{"".join(cells)}</tr>\n'
    yield "</tbody>\n</table></div>\n"
    if data.left_out:
        yield f'<p class="note">{data.left_out} more rows are not shown here; summary.json has them.</p>\n'


def _charts(sections: Sequence[Section]) -> str:
    charts = [part for section in sections for part in section.parts if isinstance(part, Chart)]
    described = [
        {"id": f"chart-{chart.identity}", "traces": chart.traces, "layout": chart.layout, "narrow": chart.narrow}
        for chart in charts
    ]
    text = json.dumps({"dark": DARK, "charts": described}, separators=(",", ":"), allow_nan=False)
    # Within a script element nothing may look like an end of it.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
