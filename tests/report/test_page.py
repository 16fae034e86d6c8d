"""The page of `emu report`: only what the data has, nothing that others wrote as markup."""

import json
import re
from html.parser import HTMLParser

import plotly.graph_objects
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.analysis.flushes import CAUSES
from emu.analysis.run_data import load_run
from emu.report.live_table import _CAUSES as LIVE_NAMES
from emu.report.page.colours import CAUSES as COLOURS
from emu.report.page.colours import DARK, SERIES, SYMBOLS
from emu.report.page.document import report_page
from emu.report.page.flush_timeline import _NAMES as NAMES
from emu.report.page.series import subjects_of
from emu.report.page.text import kept_together, markup

from .folders import SCHEMES, entry, log_of, make_run, write_run

HOSTILE = "<script>alert(1)</script>\"'&\n\x1b[31m\u202e<img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.identities, self.links, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.identities += [named["id"]] if "id" in named else []
        self.links += [named[name] for name in ("href", "src") if name in named]
        assert not [name for name in named if name.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def charts_of(page):
    """What the page tells its script: {identity: chart}."""
    (told,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    return {chart["id"]: chart for chart in json.loads(told)["charts"]}


@pytest.fixture
def report_on():
    """The page about some folders: report_on(folder, …); the library that draws is left out of it."""
    return lambda *folders: report_page(subjects_of([load_run(folder) for folder in folders]), "void 0;")


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "first", [make_run(name, rate) for name, rate in SCHEMES.items()])


def test_a_whole_run_has_every_chart(folder, report_on):
    assert set(charts_of(report_on(folder))) == {
        *("chart-pairs", "chart-throughput", "chart-queued", "chart-busy", "chart-latency-map", "chart-latency-unmap"),
        *("chart-flush-timeline", "chart-stages-map", "chart-stages-unmap", "chart-locks", "chart-exposure"),
        "chart-cpus",
    }


def test_plotly_knows_every_property_of_the_charts(folder, report_on):
    for chart in charts_of(report_on(folder, folder)).values():
        plotly.graph_objects.Figure(data=chart["traces"], layout={**chart["layout"], **chart["narrow"]})


def test_every_colour_of_a_chart_has_one_for_the_dark(folder, report_on):
    described = json.dumps(list(charts_of(report_on(folder)).values()))
    assert set(re.findall(r"#[0-9a-f]{6}", described)) <= DARK.keys()


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colour", SERIES)
def test_lines_stand_out_in_light_and_dark(colour):
    # 3 is what WCAG 2 asks for graphics; the panels behind charts are a little off the paper.
    assert contrast(colour, "#f5f7f9") > 3.5
    assert contrast(DARK[colour], "#1a2027") > 3.5


def test_every_cause_of_a_flush_has_names_and_looks_of_its_own():
    assert tuple(NAMES) == tuple(LIVE_NAMES) == CAUSES
    assert len(set(COLOURS)) == len(COLOURS) == len(CAUSES) <= len(SYMBOLS)
    assert set(COLOURS) <= set(SERIES)


def test_identities_are_unique_and_links_lead_to_them(folder, report_on):
    page = Page(report_on(folder))
    assert len(page.identities) == len(set(page.identities))
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.identities)


def test_the_page_says_what_the_table_of_the_run_says(folder, report_on):
    text = Page(report_on(folder)).text
    assert (
        "DMA-SQ: 1.79\u00a0× the pairs of DMA, but a device could reach unmapped pages for up to 396\u00a0ms." in text
    )


def test_every_chart_has_its_numbers_in_a_table(folder, report_on):
    page = Page(report_on(folder))
    assert page.tags.count("figure") == 12
    assert page.tags.count("details") >= 12
    assert page.tags.count("summary") == page.tags.count("details")


def test_what_others_wrote_is_text(tmp_path, report_on):
    log = [*log_of([]), entry("fault", domain=HOSTILE, fault=HOSTILE, at_s=0.1, done=HOSTILE)]
    log += [entry("error", message=HOSTILE)]
    locks = [make_run("DMA-FQ")["locks"][0] | {"name": HOSTILE}]
    said = {"warnings": [HOSTILE], "notes": [HOSTILE], "locks": locks, "preset": HOSTILE, "workload": HOSTILE}
    run = make_run("DMA-FQ") | said | {"domain": HOSTILE, "died": HOSTILE, "faults": [HOSTILE]}
    where = tmp_path / HOSTILE.replace("/", "")
    page = report_on(write_run(where, [run], log=log, environment={"warnings": [HOSTILE], "cpu": HOSTILE}))
    parsed = Page(page)
    assert (parsed.tags.count("script"), parsed.tags.count("img")) == (3, 0)
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<script>alert(1)</script>" in parsed.text
    assert "<" not in re.sub(r"<br>|<extra></extra>", "", json.dumps(charts_of(page)))


def test_nothing_in_the_charts_can_end_the_element_that_holds_them(folder, report_on):
    (told,) = re.findall(r'<script type="application/json" id="charts">(.*)</script>\n<script>', report_on(folder))
    assert "extra" in told
    assert not set("<>&") & set(told)


@given(st.text())
def test_markup_is_one_line_of_visible_text(text):
    made = markup(text)
    assert made.isprintable()
    assert not set("<>\"'") & set(made)


def test_numbers_stay_with_their_units():
    assert kept_together("1 % of 20 ms, 3 k of 4 maps") == "1\u00a0% of 20\u00a0ms, 3\u00a0k of 4 maps"


def test_violations_stand_above_everything_else(tmp_path, report_on):
    first = {"at_s": 0.1, "by": "cpu 0", "iova": "0x1000", "what": "handed out while in use"}
    run = make_run("DMA", violations=2, violations_by_kind={"handed_out_twice": 2}, first_violations=[first])
    page = report_on(write_run(tmp_path / "run", [run]))
    alarm, rest = page.index("Read this first"), page.index("Side by side</h2>")
    assert alarm < page.index("2 violations: an IOVA was handed out while still in use. This is a bug.") < rest


def test_a_sound_run_raises_no_alarm(folder, report_on):
    assert "Read this first" not in report_on(folder)


def test_a_run_of_which_nothing_ended_says_so(tmp_path, report_on):
    log = [entry("run_started", schema=1, config={}, environment={}), entry("interrupted")]
    page = report_on(write_run(tmp_path / "run", [], log=[*log, entry("run_finished", exit_code=130, error=None)]))
    assert not charts_of(page)
    text = Page(page).text
    assert "No domain has a result" in text
    assert "the run was interrupted" in text


def test_a_domain_that_was_interrupted_is_marked_as_partial(tmp_path, report_on):
    folder = write_run(tmp_path / "run", [make_run("DMA", interrupted=True)])
    assert "DMA was interrupted; its numbers are partial." in Page(report_on(folder)).text


def test_a_log_without_its_end_is_shown_as_far_as_it_goes(folder, report_on):
    log = folder / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:80]) + lines[80][:30])
    page = report_on(folder)
    assert {trace["name"] for trace in charts_of(page)["chart-throughput"]["traces"]} == {"DMA", "DMA-FQ"}
    text = Page(page).text
    assert "Not sampled, as too short or its log is not whole: DMA-SQ, s390-lazy, identity." in text
    assert "the log ends before the run did" in text


def test_a_damaged_log_costs_only_what_it_told(folder, report_on):
    (folder / "events.jsonl").write_text("{]\n")
    page = report_on(folder)
    assert "chart-throughput" not in charts_of(page)
    assert "chart-latency-map" in charts_of(page)
    assert "not a log of events" in Page(page).text


def test_damaged_events_cost_only_the_flushes_of_their_domain(folder, report_on):
    (folder / "DMA-FQ/events-machine.bin").write_bytes(b"emu-events 9 []\n")
    page = report_on(folder)
    lanes = charts_of(page)["chart-flush-timeline"]["layout"]["yaxis"]["ticktext"]
    assert lanes == ["DMA-SQ"]
    assert "events of version 9" in Page(page).text


def test_many_flushes_share_marks_and_the_page_says_so(tmp_path, report_on):
    page = report_on(write_run(tmp_path / "run", [make_run("DMA-FQ")], flushes=40_000))
    traces = charts_of(page)["chart-flush-timeline"]["traces"]
    assert sum(len(trace["x"]) for trace in traces) <= 2 * 252
    counted = [int(re.search(r"(\d+) flushes|one flush", text)[1] or 1) for trace in traces for text in trace["text"]]
    assert sum(counted) == 40_000
    assert "40000 flushes in " in Page(page).text


def test_a_run_without_histograms_shows_the_percentiles_that_are_known(tmp_path, report_on):
    page = report_on(write_run(tmp_path / "run", [make_run("DMA", histograms=None)]))
    (trace,) = charts_of(page)["chart-latency-map"]["traces"]
    assert trace["x"][:3] == [2.0, 10.0, 100.0]
    assert "Only some percentiles are known" in Page(page).text


def test_a_run_without_breakdown_says_how_to_get_one(tmp_path, report_on):
    page = report_on(write_run(tmp_path / "run", [make_run("DMA", breakdown=None)]))
    assert not [name for name in charts_of(page) if "stages" in name]
    assert "run with --breakdown" in Page(page).text


def test_many_cpus_share_marks(tmp_path, report_on):
    run = make_run("DMA", cpus=4096, pairs_by_cpu=[100 + number % 7 for number in range(4096)])
    (trace,) = charts_of(report_on(write_run(tmp_path / "run", [run])))["chart-cpus"]["traces"]
    assert len(trace["x"]) == 128


def test_several_runs_are_told_apart_by_letters(tmp_path, report_on):
    folders = [write_run(tmp_path / name, [make_run("DMA"), make_run("DMA-SQ", 94_000)]) for name in ("one", "two")]
    page = report_on(*folders)
    names = [trace["name"] for trace in charts_of(page)["chart-throughput"]["traces"]]
    assert names == ["A DMA", "A DMA-SQ", "B DMA", "B DMA-SQ"]
    looks = {(trace["line"]["color"], trace["line"]["dash"]) for trace in charts_of(page)["chart-throughput"]["traces"]}
    assert len(looks) == 4
    assert "B, pairs per s relative to A: DMA 1.00\u00a0×, DMA-SQ 1.00\u00a0×." in Page(page).text
