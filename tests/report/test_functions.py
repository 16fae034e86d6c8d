"""A line for each function, in eighty columns, whatever it is called."""

from emu.analysis.run_data import load_run
from emu.analysis.run_schema import check_runs
from emu.report.functions import function_lines
from emu.report.page.document import report_page
from emu.report.page.series import subjects_of

from .folders import make_run, write_run


def function(**said):
    latency = {"p50": 12_300.0, "p99": 45_600.0}
    return {
        "name": "A",
        "type_at_end": "s390-strict",
        "cpus": 4096,
        "pairs_per_s": 123_456_789.0,
        "ops": 7,
        "latency_ns": {"map": latency, "unmap": latency},
        "flush_ns": {**latency, "max": 50_000.0},
        "flushes": {"full": 2, "timeout": 3},
        **said,
    }


def test_a_run_of_one_function_has_no_such_lines():
    assert not list(function_lines({"domain": "DMA", "functions": []}))
    assert not list(function_lines({"domain": "DMA"}))


def test_every_function_has_a_line_that_fits():
    named = [function(), function(name="a name that is much too long\nfor a line"), function(cpus=0, ops=0)]
    lines = list(function_lines({"domain": "DMA-FQ", "functions": named}))
    assert len(lines) == 4
    assert {len(line) for line in lines} == {80}
    assert lines[1].split() == [
        "A",
        "s390-strict",
        "4096",
        "123",
        "M",
        *["12.3", "µs"] * 2,
        "5",
        "12.3",
        "µs",
        "45.6",
        "µs",
    ]
    assert lines[2].startswith("a name th… ")


def test_an_idle_function_has_no_figures():
    idle = function(cpus=0, ops=0, flush_ns={"p50": 0.0, "p99": 0.0, "max": 0.0}, flushes={"full": 0})
    assert list(function_lines({"domain": "DMA", "functions": [idle]}))[1].split()[2:] == [
        "0",
        "–",
        "–",
        "–",
        "0",
        "–",
        "–",
    ]


def test_the_page_has_a_section_of_functions_only_where_there_are_several(tmp_path):
    named = [whole_function(), whole_function(name="<b>\n")]
    pages = {}
    for name, own in (("alone", []), ("several", named)):
        folder = write_run(tmp_path / name, [make_run("DMA", functions=own)])
        data = load_run(folder)
        check_runs(data)
        pages[name] = report_page(subjects_of([data]), "")
    assert 'id="functions"' not in pages["alone"]
    assert 'id="functions"' in pages["several"]
    assert "&lt;b&gt;\\n" in pages["several"]


def whole_function(**said):
    """As summary.json has it."""
    latency = make_run("DMA")["latency_ns"]
    return function(latency_ns=latency, flush_ns=latency["map"], violations=0, **said)
