"""`emu logs`: what is asked of runs, what is answered, and what must not be possible."""

import csv
import io
import itertools
import json

import duckdb
import pytest

import emu as package
from emu.analysis.questions import QUESTIONS
from emu.analysis.run_tables import COLUMNS

HOSTILE = "a\n[red]b\x1b[31m<script>\u202ec\udcff"
"""A line break, two kinds of markup, control characters, and half a surrogate pair."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recorded run on virtual clocks."""
    path = tmp_path_factory.mktemp("logs") / "first"
    package.run(
        engine="sim", cpus=2, seconds=0.02, domain=["DMA", "DMA-FQ"], record=True, breakdown=True, fq_size=64, out=path
    )
    return path


def asked(emu, folder, sql):
    """The rows of a query."""
    code, out, err = emu("logs", str(folder), "--sql", sql, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_in_short_a_run_is_counts_rates_gaps_and_losses(emu, folder):
    code, out, err = emu("logs", str(folder))
    assert (code, err) == (0, "")
    assert "first: emu run, 2 domains in" in out
    assert "exit code 0" in out
    for word in ("flush_finished", "timer_fired", "events recorded, 0 lost", "nothing for at most"):
        assert word in out


def test_in_short_as_json_has_what_the_log_has(emu, folder):
    _, out, _ = emu("logs", str(folder), "--json")
    (found,) = json.loads(out)
    entries = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert found["entries"] == len(entries)
    counted = sum(event["count"] for domain in found["domains"] for event in domain["events"].values())
    assert counted + sum(found["outside"].values()) == len(entries)
    for domain in found["domains"]:
        moments = sorted(
            entry["at_ns"] for entry in entries if entry.get("domain") == domain["domain"] and "at_ns" in entry
        )
        inside = [0, *(at_ns for at_ns in moments if at_ns < domain["load_s"] * 1e9), round(domain["load_s"] * 1e9)]
        assert domain["longest_gap_ns"] == max(b - a for a, b in itertools.pairwise(inside))


@pytest.mark.parametrize("table", COLUMNS)
def test_every_table_can_be_asked(emu, folder, table):
    rows = asked(emu, folder, f"FROM {table} LIMIT 3")
    # Nobody waited for a lock, maybe.
    assert rows or table == "lock_waits"
    for row in rows:
        assert row["run"] == "first"
        assert set(COLUMNS[table]) <= row.keys()


def test_operations_are_as_many_as_the_summary_says(emu, folder):
    summary = json.loads((folder / "summary.json").read_text())
    found = asked(emu, folder, "SELECT domain, op, count(*) AS n FROM ops GROUP BY ALL")
    counts = {(row["domain"], row["op"]): row["n"] for row in found}
    for run in summary["runs"]:
        assert counts[run["domain"], "map"] == run["maps"]
        assert counts[run["domain"], "unmap"] == run["unmaps"]


def test_requests_are_those_that_were_served(emu, folder):
    summary = json.loads((folder / "summary.json").read_text())
    found = asked(
        emu,
        folder,
        "FROM requests SELECT domain, count() AS n, count_if(everything) AS global, sum(service_ns) AS busy GROUP BY 1",
    )
    counts = {row["domain"]: row for row in found}
    for run in summary["runs"]:
        ours = counts[run["domain"]]
        assert ours["n"] == run["hypervisor"]["requests"]
        assert ours["global"] == run["hypervisor"]["global_requests"]
        assert ours["busy"] == run["hypervisor"]["busy_ns"]


def test_flushes_are_those_of_the_summary_and_of_the_log(emu, folder):
    summary = json.loads((folder / "summary.json").read_text())
    found = asked(emu, folder, "SELECT domain, cause, count(*) AS n FROM flushes GROUP BY ALL")
    counts = {(row["domain"], row["cause"]): row["n"] for row in found}
    for run in summary["runs"]:
        for cause, count in run["flushes"].items():
            assert counts.get((run["domain"], cause), 0) == count
    both = """
        SELECT f.took_ns, e.fields FROM flushes f JOIN events e
        ON e.event = 'flush_finished' AND e.domain = f.domain AND e.at_ns = f.finished_ns AND e.role = f.role"""
    rows = asked(emu, folder, both)
    assert len(rows) == sum(counts.values())
    assert all(row["took_ns"] == row["fields"]["took_ns"] for row in rows)


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES",
        "DESCRIBE ops",
        "SUMMARIZE flushes",
        "PIVOT ops ON op USING count(*) GROUP BY domain",
        "EXPLAIN FROM ops",
    ],
)
def test_whatever_only_asks_is_answered(emu, folder, sql):
    assert asked(emu, folder, sql)


def test_several_runs_are_told_apart(emu, folder, tmp_path):
    other = tmp_path / "second"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).symlink_to(path)
    names = {row["run"] for row in json.loads(emu("logs", str(folder), str(other), "--ask", "exposure", "--json")[1])}
    assert names == {"first", "second"}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_an_answer_in_every_form(emu, folder, question):
    code, table, err = emu("logs", str(folder), "--ask", question)
    assert (code, err) == (0, "")
    assert "DMA-FQ" in table
    rows = json.loads(emu("logs", str(folder), "--ask", question, "--json")[1])
    as_csv = list(csv.DictReader(io.StringIO(emu("logs", str(folder), "--ask", question, "--csv")[1])))
    assert [row["domain"] for row in as_csv] == [row["domain"] for row in rows]


def test_the_slowest_flush_comes_first(emu, folder):
    rows = json.loads(emu("logs", str(folder), "--ask", "slowest-flushes", "--json")[1])
    assert [row["took_ns"] for row in rows] == sorted((row["took_ns"] for row in rows), reverse=True)
    assert rows[0]["took_ns"] == asked(emu, folder, "SELECT max(took_ns) AS most FROM flushes")[0]["most"]


def test_contention_has_the_columns_of_perf_and_stages_that_add_up(emu, folder):
    _, out, _ = emu("logs", str(folder), "--ask", "lock-contention")
    header = next(line for line in out.splitlines() if "contended" in line)
    assert header.split() == ["contended", "total", "wait", "max", "wait", "avg", "wait", "type", "caller"]
    assert "iova_fq.lock (queue_iova, fq_flush_timeout)" in out
    assert "queue   hypervisor queue" in out
    differences = [float(line.split()[-4]) for line in out.splitlines() if "between them" in line]
    assert len(differences) == 4
    assert all(abs(percent) < 5 for percent in differences)


def test_the_timeline_adds_up_to_the_run(emu, folder):
    summary = json.loads((folder / "summary.json").read_text())
    rows = json.loads(emu("logs", str(folder), "--ask", "timeline", "--json")[1])
    for run in summary["runs"]:
        ours = [row for row in rows if row["domain"] == run["domain"]]
        assert len(ours) == 20
        pairs = sum(row["pairs_per_s"] for row in ours) * run["seconds"] / 20
        assert pairs == pytest.approx(run["ops"])
        assert sum(row["flushes"] for row in ours) == sum(run["flushes"].values())


def test_a_wrong_question_lists_the_right_ones(emu, folder):
    code, _, err = emu("logs", str(folder), "--ask", "lunch")
    assert code == 2
    assert err.count("\n") == 1
    assert all(question in err for question in QUESTIONS)


@pytest.mark.parametrize(
    "sql",
    [
        "SELEC 1",
        "SELECT * FROM lunch",
        "",
        "-- nothing",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "SELECT 1; SELECT * FROM read_blob('/etc/passwd')",
        "COPY (SELECT 1) TO 'out.csv'",
        "EXPORT DATABASE 'out'",
        "ATTACH 'out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET temp_directory = 'out'",
        "SELECT * FROM runs_frame",
        "CREATE TABLE mine AS SELECT 1",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'out.csv'",
        "CALL enable_logging(storage = 'file', storage_path = 'out')",
        "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = 'out')",
    ],
)
def test_what_reaches_out_or_is_wrong_is_refused_in_one_line(emu, folder, tmp_path, monkeypatch, sql):
    monkeypatch.chdir(tmp_path)
    runs_frame = "what Python has is not there either"
    code, out, err = emu("logs", str(folder), "--sql", sql)
    assert (code, out) == (2, ""), runs_frame
    assert err.startswith("emu logs: --sql: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_tables_are_exported_as_files(emu, folder, tmp_path, form):
    code, _out, err = emu("logs", str(folder), "--export", str(tmp_path / "it's here"), "--format", form)
    assert (code, err) == (0, "")
    files = sorted(path.name for path in (tmp_path / "it's here").iterdir())
    assert files == sorted(f"{table}.{form}" for table in COLUMNS)
    with duckdb.connect() as connection:
        ((count,),) = connection.execute(f"FROM '{tmp_path}/it''s here/ops.{form}' SELECT count(*)").fetchall()
    assert count == asked(emu, folder, "SELECT count(*) AS n FROM ops")[0]["n"] > 0
    again = emu("logs", str(folder), "--export", str(tmp_path / "it's here"))
    assert again[0] == 2
    assert "not empty" in again[2]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "needs the folder of a run"),
        (("nowhere",), "nowhere/summary.json"),
        (("RUN", "--sql", "SELECT 1", "--ask", "timeline"), "contradict"),
        (("RUN", "--csv", "--json"), "contradict"),
        (("RUN", "--format", "csv"), "--export"),
        (("RUN", "--export", "there", "--json"), "--format"),
        (("RUN", "--export", "there", "--format", "xls"), "parquet, csv, json"),
    ],
)
def test_a_wrong_call_is_one_line(emu, folder, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    code, out, err = emu("logs", *(str(folder) if word == "RUN" else word for word in arguments))
    assert (code, out) == (2, "")
    assert word in err
    assert err.count("\n") == 1


def test_a_missing_library_is_named_with_what_to_install(emu, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    code, _, err = emu("logs", str(folder), "--ask", "timeline")
    assert code == 2
    assert err == "emu logs: needs duckdb, which is not installed; pip install 'emu[logs]'\n"


@pytest.fixture
def hostile(folder, tmp_path):
    """The same run, whose folder and texts have been written by somebody who means harm."""
    path = tmp_path / HOSTILE
    path.mkdir()
    summary = json.loads((folder / "summary.json").read_text())
    for run in summary["runs"]:
        run["workload"] = HOSTILE
        run["processes"][0]["role"] = HOSTILE
        run["locks"][0]["name"] = HOSTILE
        (path / run["domain"]).symlink_to(folder / run["domain"])
    (path / "summary.json").write_text(json.dumps(summary))
    entry = {"time": HOSTILE, "time_ns": 1, "role": HOSTILE, "pid": 1, "event": "warning", "message": HOSTILE}
    odd = {"time": 1, "time_ns": 10**40, "event": HOSTILE, "pid": "x", "at_ns": None, "more": {HOSTILE: [HOSTILE]}}
    lines = [json.dumps(entry), json.dumps({**entry, "domain": HOSTILE}), json.dumps(odd)]
    (path / "events.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--csv",),
        ("--json",),
        *(("--ask", question) for question in QUESTIONS),
        *(("--sql", f"FROM {table} LIMIT 5") for table in COLUMNS),
        ("--sql", "FROM events", "--csv"),
        ("--sql", "FROM events", "--json"),
        ("--sql", 'SELECT 1 AS "[red]\x1b[31m"'),
        ("--sql", "SELECT chr(27) || '[31m' || chr(10) FROM range(2)", "--csv"),
    ],
)
def test_what_others_have_written_shows_as_text(emu, hostile, arguments):
    code, out, err = emu("logs", str(hostile), *arguments)
    assert (code, err) == (0, "")
    assert not any(letter in out for letter in "\x1b\u202e\udcff")
    shown = {line for line in out.splitlines() if "[red]" in line}
    # What was a line break in a name is none here.
    assert not any(line.startswith("[red]b") for line in out.splitlines())
    assert shown or "LIMIT" in str(arguments) or "chr" in str(arguments)


def test_the_text_of_others_comes_through_json_as_it_was(emu, hostile):
    found = asked(emu, hostile, "SELECT fields->>'message' AS message FROM events WHERE event = 'warning'")
    assert {row["message"] for row in found} == {HOSTILE.replace("\udcff", r"\udcff")}


@pytest.mark.parametrize(
    "change",
    [{"locks": [{}]}, {"locks": 3}, {"processes": ["x"]}, {"hypervisor": None}, {"breakdown": {"map": {}}}],
)
def test_a_summary_that_is_none_of_ours_is_one_line(emu, folder, tmp_path, change):
    summary = json.loads((folder / "summary.json").read_text())
    summary["runs"] = [summary["runs"][0] | change]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "events.jsonl").write_text("")
    for table in COLUMNS:
        code, _, err = emu("logs", str(tmp_path), "--sql", f"FROM {table}")
        assert code in (0, 2)
        assert err.count("\n") == (code == 2)
