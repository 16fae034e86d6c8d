"""`emu export`: what other tools, and our own replay, read in what a run left."""

import gzip
import json
import runpy
import sys
from pathlib import Path

import pytest
from trace_lanefix import fix_overlaps

from emu.cli.app import dispatch
from emu.cli.failure import FINE, WRONG_CALL

EXAMPLES = Path(__file__).parents[2] / "tools" / "examples"
RUN = ["run", "--engine", "sim", "--cpus", "2", "--seconds", "0.03", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A recorded run of two domains, and one of three that was not recorded."""
    folder = tmp_path_factory.mktemp("runs")
    recorded = ["--record", "--domain", "DMA-FQ", "--domain", "DMA"]
    plain = [
        "--fq-size",
        "64",
        "--set",
        "domain.fq_timeout_ms=10",
        "--domain",
        "DMA-SQ",
        "--domain",
        "DMA",
        "--domain",
        "identity",
    ]
    assert dispatch([*RUN, *recorded, "--out", str(folder / "recorded")]) == FINE
    assert dispatch([*RUN, *plain, "--out", str(folder / "plain")]) == FINE
    return folder


@pytest.fixture
def trace(emu, runs, tmp_path):
    """The events that `emu export --format perfetto` writes: trace("recorded", "--most", "9")."""

    def exported(name, *options):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        assert emu("export", str(runs / name), "--format", "perfetto", "--out", str(out), *options)[0] == FINE
        return json.loads(out.read_text()), out

    return exported


def summary_of(runs, name, domain):
    summary = json.loads((runs / name / "summary.json").read_text())
    return next(run for run in summary["runs"] if run["domain"] == domain)


def slices_named(events, name):
    return [event for event in events if event["ph"] == "X" and event["name"].startswith(name)]


# --- Perfetto -------------------------------------------------------------------------------------------------------


def test_perfetto_need_not_move_or_shorten_any_slice(trace, tmp_path, capsys):
    _, out = trace("recorded")
    fix_overlaps(str(out), str(tmp_path / "fixed.json"))
    said = capsys.readouterr().out
    assert "snapped 0 " in said
    assert ", 0 new lanes" in said


def test_every_event_has_what_its_phase_needs(trace):
    events = trace("recorded")[0]["traceEvents"]
    needs = {"M": {"name", "args"}, "X": {"ts", "dur", "name"}, "C": {"ts", "name", "args"}, "i": {"ts", "s", "name"},
             "s": {"ts", "id", "name", "cat"}, "f": {"ts", "id", "name", "cat", "bp"}}  # fmt: skip
    for event in events:
        assert {"pid", "tid"} | needs[event["ph"]] <= set(event)
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
    assert {event["ph"] for event in events} == set(needs)


def test_domains_are_processes_and_their_processes_tracks(trace):
    events = trace("recorded")[0]["traceEvents"]
    named = [event for event in events if event["name"] == "process_name"]
    assert [event["args"]["name"].split(":")[0] for event in named] == ["DMA-FQ", "DMA"]
    tracks = [event["args"]["name"] for event in events if event["name"] == "thread_name" and event["pid"] == 1]
    assert tracks == ["supervisor", "cpu 0", "cpu 1", "timer", "hypervisor"]


def test_every_map_unmap_and_flush_is_a_slice(trace, runs):
    events = trace("recorded", "--domain", "DMA-FQ")[0]["traceEvents"]
    run = summary_of(runs, "recorded", "DMA-FQ")
    assert len(slices_named(events, "map")) == run["maps"]
    assert len(slices_named(events, "unmap")) == run["unmaps"]
    assert len(slices_named(events, "flush")) == sum(run["flushes"].values()) > 0
    assert len(slices_named(events, "serve")) == run["hypervisor"]["requests"]


def test_an_arrow_leads_from_each_request_to_its_service(trace):
    events = trace("recorded", "--domain", "DMA")[0]["traceEvents"]
    served = {(event["tid"], event["ts"]) for event in slices_named(events, "serve")}
    requested = {(event["tid"], event["ts"]) for event in slices_named(events, "request")}
    begins = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert begins.keys() == ends.keys()
    assert len(begins) == len(served)
    assert {(event["tid"], event["ts"]) for event in begins.values()} <= requested
    assert {(event["tid"], event["ts"]) for event in ends.values()} == served
    assert all(begins[number]["ts"] <= ends[number]["ts"] for number in begins)


def test_the_hypervisor_is_as_busy_in_the_trace_as_in_the_summary(trace, runs):
    events = trace("recorded", "--domain", "DMA")[0]["traceEvents"]
    busy_ns = summary_of(runs, "recorded", "DMA")["hypervisor"]["busy_ns"]
    assert sum(event["dur"] for event in slices_named(events, "serve")) * 1000 == pytest.approx(busy_ns, rel=0.001)


def test_an_unrecorded_run_has_flushes_counters_and_timers(trace, runs):
    events = trace("plain", "--domain", "DMA-SQ")[0]["traceEvents"]
    flushes = summary_of(runs, "plain", "DMA-SQ")["flushes"]
    assert len(slices_named(events, "flush")) == sum(flushes.values()) > 0
    assert not slices_named(events, "map")
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {"queued IOVAs", "mapped pages", "hypervisor queue", "being flushed"}
    assert {"timer_armed", "timer_fired"} <= {event["name"] for event in events if event["ph"] == "i"}


def test_what_is_left_out_is_said(trace):
    whole, _ = trace("recorded", "--domain", "DMA", "--most", "100")
    events = whole["traceEvents"]
    assert 0 < len(slices_named(events, "map")) + len(slices_named(events, "unmap")) <= 100
    (note,) = whole["otherData"]["left_out"]
    assert "only the first 100 at most" in note
    (mark,) = [event for event in events if event["name"] == "operations end here"]
    assert mark["args"]["note"] == note
    assert trace("recorded", "--domain", "DMA")[0]["otherData"]["left_out"] == []


def test_a_file_that_ends_with_gz_is_compressed(emu, runs, tmp_path):
    out = tmp_path / "t.json.gz"
    emu("export", str(runs / "plain"), "--format", "perfetto", "--out", str(out))
    assert json.loads(gzip.decompress(out.read_bytes()))["traceEvents"]


def test_stdout_holds_the_trace_alone(emu, runs):
    code, out, err = emu("export", str(runs / "plain"), "--format", "perfetto", "--out", "-")
    assert code == FINE
    assert json.loads(out)["traceEvents"]
    assert err.startswith("-: ")


def test_hostile_texts_of_the_log_stay_texts(emu, runs, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("summary.json", "events.jsonl"):
        (copy / name).write_bytes((runs / "plain" / name).read_bytes())
    hostile = '</script><script>alert(1)</script>\n[red]"\x1b[31m'
    entry = {"event": "death", "role": "cpu 0", "domain": "DMA", "message": hostile, "time_ns": 1, "pid": 1, "time": ""}
    with (copy / "events.jsonl").open("a") as log:
        log.write(json.dumps(entry) + "\n")
    _, out, _ = emu("export", str(copy), "--format", "perfetto", "--out", "-")
    (death,) = [event for event in json.loads(out)["traceEvents"] if event["name"] == "death"]
    assert death["args"]["message"] == hostile


# --- ftrace ---------------------------------------------------------------------------------------------------------


def verified(emu, capsys, tmp_path, engine, cpus, domain="DMA"):
    run, out = tmp_path / "run", tmp_path / "own.trace"
    machine = ["--engine", engine, "--cpus", str(cpus), "--domain", domain, "--seconds", "0.05"]
    assert dispatch(["run", *machine, "--record", "--quiet", "--out", str(run)]) == FINE
    assert dispatch(["export", str(run), "--format", "ftrace", "--out", str(out)]) == FINE
    capsys.readouterr()
    code, found, _ = emu("replay", str(out), "--verify", "--json", "--quiet", "--out", str(tmp_path / "again"))
    return code, json.loads(found), json.loads((run / "summary.json").read_text())["runs"][0]


@pytest.mark.parametrize(("engine", "cpus"), [("sim", 1), ("sim", 2), ("processes", 1), ("threads", 1)])
def test_a_replay_of_our_own_strict_run_is_identical(emu, capsys, tmp_path, engine, cpus):
    code, found, run = verified(emu, capsys, tmp_path, engine, cpus)
    assert code == FINE
    assert {name: both["emu"] for name, both in found["counters"].items()} == run["counters"]
    assert found["disagreements"] == []
    assert found["iova"]["identical"] == found["iova"]["maps"] == run["maps"] > 0


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_where_real_cpus_overlap_only_their_order_may_differ(emu, capsys, tmp_path, engine):
    code, found, run = verified(emu, capsys, tmp_path, engine, 2)
    assert code == FINE
    assert {name: both["emu"] for name, both in found["counters"].items()} == run["counters"]
    iova = found["iova"]
    assert iova["maps"] == run["maps"]
    assert iova["identical"] >= 0.95 * iova["maps"]


@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict"])
def test_lazy_runs_flush_at_the_same_unmaps_and_timers_again(emu, capsys, tmp_path, domain):
    code, found, run = verified(emu, capsys, tmp_path, "sim", 2, domain)
    assert (code, found["disagreements"]) == (FINE, [])
    assert found["domain"] == domain
    assert {name: both["emu"] for name, both in found["counters"].items()} == run["counters"]


def test_the_text_is_in_the_order_of_its_times(emu, runs, tmp_path):
    out = tmp_path / "t.trace"
    emu("export", str(runs / "recorded"), "--format", "ftrace", "--domain", "DMA-FQ", "--out", str(out))
    lines = [line for line in out.read_text().splitlines() if not line.startswith("#")]
    times = [float(line.split()[3].rstrip(":")) for line in lines]
    assert len(times) > 100
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["plain", "--domain", "identity"], "translates nothing"),
        (["recorded"], "name one with --domain"),
        (["recorded", "--domain", "DMA-SQ"], "has no 'DMA-SQ', but DMA-FQ, DMA"),
        (["plain", "--domain", "DMA"], "run it with --record"),
    ],
)
def test_what_cannot_be_a_kernels_trace_is_refused_in_one_line(emu, runs, options, said):
    code, out, err = emu("export", str(runs / options[0]), "--format", "ftrace", *options[1:])
    assert (code, out) == (WRONG_CALL, "")
    assert said in err
    assert err.count("\n") == 1


# --- HdrHistogram ---------------------------------------------------------------------------------------------------


def rows_of(text):
    """(value, percentile, count) of each line of a distribution."""
    rows = [line.split() for line in text.splitlines()[2:] if not line.startswith("#")]
    return [(float(row[0]), float(row[1]), int(row[2])) for row in rows]


@pytest.mark.parametrize(("name", "domain"), [("recorded", "DMA"), ("plain", "DMA")])
@pytest.mark.parametrize("of", ["map", "unmap"])
def test_percentiles_are_those_of_the_summary(emu, runs, name, domain, of):
    _, out, _ = emu("export", str(runs / name), "--format", "hgrm", "--domain", domain, "--of", of, "--out", "-")
    run, rows = summary_of(runs, name, domain), rows_of(out)
    assert rows[-1][2] == run[f"{of}s"]
    median = next(value for value, percentile, _ in rows if percentile >= 0.5)
    assert median == pytest.approx(run["latency_ns"][of]["p50"], rel=0.05)
    assert rows[-1][0] == pytest.approx(run["latency_ns"][of]["max"], rel=0.05)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_exposure_and_waits_are_counted_as_in_the_summary(emu, runs):
    run = summary_of(runs, "plain", "DMA-SQ")
    counts = {"exposure": run["exposure"]["windows"], "wait": run["hypervisor"]["requests"]}
    for of, count in counts.items():
        options = ("--format", "hgrm", "--domain", "DMA-SQ", "--of", of, "--out", "-")
        _, out, _ = emu("export", str(runs / "plain"), *options)
        assert rows_of(out)[-1][2] == count > 0


def test_histograms_of_the_summary_hold_every_operation(runs):
    run = summary_of(runs, "plain", "DMA")
    for name, count in (("map", run["maps"]), ("unmap", run["unmaps"])):
        bounds = [bound for bound, _ in run["histograms"][name]]
        assert sum(count for _, count in run["histograms"][name]) == count
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == run["latency_ns"][name]["max"]


# --- files and calls ------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_not_overwritten(emu, runs, tmp_path):
    out = tmp_path / "t.json"
    out.write_text("mine")
    code, _, err = emu("export", str(runs / "plain"), "--format", "perfetto", "--out", str(out))
    assert code == WRONG_CALL
    assert "is there already" in err
    assert out.read_text() == "mine"


def test_what_fails_leaves_no_file(emu, runs, tmp_path):
    broken = tmp_path / "run"
    broken.mkdir()
    (broken / "summary.json").write_bytes((runs / "plain" / "summary.json").read_bytes())
    code, _, err = emu("export", str(broken), "--format", "perfetto")
    assert code == WRONG_CALL
    assert "events.jsonl cannot be read" in err
    assert [path.name for path in broken.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "pdf"], "must be perfetto, ftrace or hgrm"),
        (["--format", "hgrm", "--of", "life"], "must be map, unmap, exposure or wait"),
        (["--format", "perfetto", "--most", "0"], "must be 1 or more"),
        (["--format", "perfetto"], "name the folder of a run"),
    ],
)
def test_wrong_calls_are_told_in_one_line(emu, tmp_path, options, said):
    code, out, err = emu("export", str(tmp_path), *options)
    assert (code, out) == (WRONG_CALL, "")
    assert said in err
    assert err.count("\n") == 1


def test_without_the_package_it_says_what_to_install(emu, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    monkeypatch.delitem(sys.modules, "emu.report.percentiles", raising=False)
    code, _, err = emu("export", str(runs / "plain"), "--format", "hgrm", "--domain", "DMA")
    assert code == WRONG_CALL
    assert "pip install 'emu[traces]'" in err


# --- example scripts ------------------------------------------------------------------------------------------------


def test_the_slowest_flush_is_told_first(runs, monkeypatch, capsys):
    script = EXAMPLES / "slowest_flushes.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(runs / "recorded"), "2"])
    runpy.run_path(str(script), run_name="__main__")
    header, *rows = capsys.readouterr().out.splitlines()
    took = header.split("\t").index("took_us")
    with (runs / "recorded" / "events.jsonl").open() as log:
        flushes = [entry for entry in map(json.loads, log) if entry["event"] == "flush_finished"]
    longest = sorted((entry["took_ns"] / 1e3 for entry in flushes), reverse=True)[:2]
    assert [float(row.split("\t")[took]) for row in rows] == pytest.approx(longest, abs=0.001)


def test_queues_are_drawn_as_deep_as_they_were(runs, monkeypatch, capsys):
    script = EXAMPLES / "queue_depth.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(runs / "plain")])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    with (runs / "plain" / "events.jsonl").open() as log:
        depths = [e["queued"] for e in map(json.loads, log) if e["event"] == "sample" and e["domain"] == "DMA-SQ"]
    assert f"DMA-SQ: at most {max(depths)} IOVAs" in said
    assert "DMA: at most 0 IOVAs" in said
