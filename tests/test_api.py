"""From Python: what the commands do, as objects and data frames."""

import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emu
from emu.analysis.questions import QUESTIONS
from emu.analysis.run_tables import COLUMNS

REPOSITORY = Path(__file__).parents[1]
SMALL = {"engine": "sim", "cpus": 2, "seconds": 0.02}


@pytest.fixture(scope="module")
def result():
    """Two domains, recorded."""
    return emu.run(**SMALL, domain=["DMA", "DMA-FQ"], record=True, breakdown=True, fq_size=64)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, emu; print({'numba', 'numpy', 'pandas', 'duckdb', 'rich', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "set()\n"


def test_every_name_is_there_and_no_other():
    for name in emu.__all__:
        assert getattr(emu, name)
    assert set(emu.__all__) <= set(dir(emu))
    with pytest.raises(AttributeError, match="lunch"):
        _ = emu.lunch


def test_a_result_has_the_summary_and_a_row_for_each_domain(result):
    frame = result.to_dataframe()
    assert [run["domain"] for run in result.runs] == ["DMA", "DMA-FQ"] == list(frame["domain"])
    assert list(frame["pairs_per_s"]) == [run["pairs_per_s"] for run in result.summary["runs"]]
    assert list(frame["latency_ns_map_p99"]) == [run["latency_ns"]["map"]["p99"] for run in result.runs]
    assert (result.exit_code, result.messages) == (0, [])


@pytest.mark.parametrize("table", [table for table in COLUMNS if table != "runs"])
def test_every_table_is_a_data_frame(result, table):
    frame = getattr(result, table)()
    assert list(frame.columns) == list(COLUMNS[table])
    same = result.sql(f"FROM {table}")
    assert len(frame) == len(same)
    assert len(frame) or table == "lock_waits"


def test_a_table_without_rows_has_its_columns():
    empty = emu.run(**SMALL, domain="DMA")
    assert list(empty.ops().columns) == list(COLUMNS["ops"])
    assert len(empty.ops()) == len(empty.breakdown()) == 0


def test_operations_are_as_many_as_were_done(result):
    done = result.ops().groupby(["domain", "op"], observed=True).size()
    for run in result.runs:
        assert done[run["domain"], "unmap"] == run["unmaps"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_can_be_asked(result, question):
    assert len(result.ask(question)) > 0
    assert question in emu.questions()


def test_a_run_that_nobody_keeps_leaves_nothing():
    folder = emu.run(**SMALL, domain="DMA").folder
    gc.collect()
    assert not folder.exists()
    with emu.run(**SMALL, domain="DMA") as kept:
        assert kept.folder.exists()
        assert kept.summary["folder"] is None
    assert not kept.folder.exists()


def test_a_run_that_is_kept_can_be_loaded(tmp_path):
    run = emu.run(**SMALL, domain="DMA", out=tmp_path / "here")
    again = emu.load(tmp_path / "here")
    assert again.summary == run.summary == json.loads((tmp_path / "here/summary.json").read_text())
    assert again.config == run.config
    assert len(again.export(tmp_path / "tables", format="csv")) == len(COLUMNS)
    assert again.log_summary()["exit_code"] == 0


def test_a_result_becomes_the_page_that_emu_report_writes(result, tmp_path):
    page = tmp_path / "page.html"
    assert result.report(page) == page
    written = page.read_text()
    assert written.lower().startswith("<!doctype html>")
    assert "DMA-FQ" in written
    assert list(tmp_path.iterdir()) == [page]


def test_results_are_asked_together(result):
    other = emu.run(**SMALL, domain="DMA-SQ")
    found = emu.sql("SELECT run, domain FROM runs", result, other)
    assert list(found["domain"]) == ["DMA", "DMA-FQ", "DMA-SQ"]
    assert found["run"].nunique() == 2


def test_a_description_is_changed_by_settings(result, tmp_path):
    (tmp_path / "machine.toml").write_text("[machine]\ncpus = 3\n[hypervisor]\npreset = 'lpar'\n")
    config = emu.load_config(tmp_path / "machine.toml", seed=7, set={"hypervisor.walk_ns": 2.5})
    assert (config.machine.cpus, config.machine.seed, config.hypervisor.walk_ns) == (3, 7, 2.5)
    changed = emu.load_config(config, cpus=4, preset="kvm", switch="0.5s:DMA-FQ")
    assert (changed.machine.cpus, changed.machine.seed) == (4, 7)
    assert changed.hypervisor == emu.load_config().hypervisor
    # What follows from other values follows from the changed ones.
    assert changed.domain.types == ["DMA"]
    assert emu.load_config(config, ops=5).machine.ops == 5
    assert emu.run(result.config, domain="DMA-FQ").runs[0] == result.runs[1]


def test_what_ends_a_command_otherwise_is_in_the_result():
    died = emu.run(engine="sim", cpus=1, seconds=10.0, domain="DMA", fault="drop:completion@5ms")
    assert died.exit_code == 3
    assert "waits for ever" in died.messages[0]


def test_a_replay_is_compared_with_the_kernel():
    replayed = emu.replay("s390x-lazy-nvme", engine="sim")
    assert replayed.summary["kernel"]["comparisons"]
    assert replayed.summary["capture"]["name"] == "s390x-lazy-nvme"


def test_a_verification_is_in_the_summary():
    verified = emu.replay("s390x-strict-nvme", verify=True)
    assert verified.summary["verification"]["agrees"]
    assert verified.exit_code == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: emu.run(cpus=0), emu.ConfigError, "cpus: must be at least 1, not 0"),
        (lambda: emu.run(domain="X"), emu.ConfigError, "domain: must be 'DMA'"),
        (lambda: emu.run(lunch=1), emu.ConfigError, "lunch: no such setting"),
        (lambda: emu.run(ops=1, seconds=1.0), emu.ConfigError, "ops and seconds contradict"),
        (lambda: emu.run(switch="soon"), emu.ConfigError, "needs the form TIME:TYPE"),
        (lambda: emu.run(set={"cpus": 1}), emu.ConfigError, "needs the form section.key"),
        (lambda: emu.run(set={"machine.lunch": 1}), emu.ConfigError, "set: machine.lunch: no such key"),
        (lambda: emu.run(set=3), emu.ConfigError, "set: needs values"),
        (lambda: emu.run(cpus=2, set={"machine.cpus": 1}), emu.ConfigError, "cpus and set both give machine.cpus"),
        (lambda: emu.run(costs="nowhere.toml", engine="sim"), emu.ConfigError, "nowhere.toml"),
        (lambda: emu.run("nowhere.toml"), emu.ConfigError, "cannot read nowhere.toml"),
        (lambda: emu.run(**SMALL, out=REPOSITORY), emu.ConfigError, "is not empty"),
        (lambda: emu.replay("lunch"), emu.ConfigError, "lunch: no such capture"),
        (lambda: emu.replay("s390x-lazy-nvme", speed="slow"), emu.ConfigError, "speed: must be asap or real"),
        (lambda: emu.load("nowhere"), emu.RunDataError, "nowhere/summary.json cannot be read"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(call, error, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert "--" not in str(raised.value)


def test_wrong_queries_are_errors_of_ours(result):
    with pytest.raises(emu.QueryError, match="syntax error"):
        result.sql("SELEC 1")
    with pytest.raises(emu.QueryError, match="no such question"):
        result.ask("lunch")
    with pytest.raises(emu.ExportError, match="xls: no such format"):
        result.export("nowhere", format="xls")


def test_a_missing_library_is_named_with_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'emu[logs]'")):
        result.to_dataframe()


def test_a_notebook_shows_the_table_and_no_markup_of_others(result, tmp_path):
    page = result._repr_html_()
    assert page.count("<td") == page.count("</td>") > 20
    assert "map+unmap pairs per s" in page
    (tmp_path / "summary.json").write_text(
        json.dumps({"schema": 1, "runs": [{**result.runs[0], "domain": "<script>\n\x1b[31m"}]})
    )
    hostile = emu.load(tmp_path)
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;\\n\\x1b[31m" in hostile._repr_html_()
    assert "\n" not in repr(hostile)


def test_a_result_says_in_a_line_what_it_is(result):
    assert re.fullmatch(r"<emu\.Result: DMA [\d.]+ k pairs/s, DMA-FQ [\d.]+( k)? pairs/s>", repr(result))
