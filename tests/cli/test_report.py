"""`emu report` writes one file, never over another's, and says in one line what is wrong."""

import json
import sys

import pytest
from report.folders import make_run, write_run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory with the folder of a run, `run`."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [make_run("DMA"), make_run("DMA-SQ")])
    return tmp_path


def test_the_page_is_in_the_first_run_and_needs_no_other_file(here, emu):
    write_run(here / "second", [make_run("DMA")])
    assert emu("report", "run", "second") == (0, "Report: run/report.html\n", "")
    page = (here / "run/report.html").read_text()
    assert "Plotly" in page
    assert "default-src 'none'" in page
    assert [path.name for path in here.rglob("*.html")] == ["report.html"]
    assert not list(here.rglob("*.tmp"))


def test_an_older_report_is_replaced(here, emu):
    emu("report", "run", "--out", "page.html")
    before = (here / "page.html").stat().st_ino
    assert emu("report", "run", "--out", "page.html")[0] == 0
    assert (here / "page.html").stat().st_ino != before


@pytest.mark.parametrize("held", [b"", b"<!DOCTYPE html>\n<html>mine", b"\xff\xfe\x00"])
def test_a_file_that_is_no_report_is_left_alone(here, emu, held):
    (here / "mine.html").write_bytes(held)
    code, out, err = emu("report", "run", "--out", "mine.html")
    assert (code, out) == (2, "")
    assert "mine.html is there and no report of emu; name another file" in err
    assert (here / "mine.html").read_bytes() == held


def test_names_with_markup_and_control_characters_make_a_page(here, emu):
    write_run(here / "<b>\n\x1b[31m", [make_run("DMA")])
    code, out, _ = emu("report", "<b>\n\x1b[31m", "--out", "page.html")
    assert (code, out) == (0, "Report: page.html\n")
    assert "&lt;b&gt;\\n\\x1b[31m" in (here / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the folder of a run"),
        (("nowhere",), "nowhere/summary.json cannot be read"),
        (("run", "nowhere"), "nowhere/summary.json cannot be read"),
        (("run", "--out", "no/such/page.html"), "no/such/page.html cannot be written"),
        (("run", "--out", "run"), "run cannot be used: Is a directory"),
        (("damaged",), "damaged/summary.json: runs.0.latency_ns: not as this version of emu writes it"),
        (("run", "--nonsense"), "--nonsense"),
    ],
)
def test_a_wrong_call_is_one_line(here, emu, arguments, said):
    write_run(here / "damaged", [make_run("DMA", latency_ns="low")])
    code, out, err = emu("report", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.usefixtures("here")
def test_without_plotly_it_says_what_to_install(emu, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, err = emu("report", "run")
    assert (code, "pip install 'emu[report]'" in err) == (2, True)


@pytest.mark.parametrize("key", sorted(make_run("DMA")))
def test_what_is_missing_or_of_another_kind_is_one_line_or_not_missed(here, emu, key):
    for number, change in enumerate((lambda run: run.pop(key), lambda run: run.update({key: [{"x": None}]}))):
        run = make_run("DMA-FQ")
        change(run)
        folder = here / f"changed-{number}"
        write_run(folder, [make_run("DMA")])
        whole = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(whole | {"runs": [run]}))
        code, _, err = emu("report", str(folder), "--out", "page.html")
        assert (code, err.count("\n")) in ((0, 0), (2, 1))
