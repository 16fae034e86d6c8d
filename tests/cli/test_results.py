"""What a command leaves: one JSON object, a table for people, a folder."""

import errno
import json
from pathlib import Path

import pytest

from emu.config import load
from emu.machine import run_folder
from emu.machine.run_folder import open_run_folder


def events(folder):
    return [json.loads(line) for line in Path(folder, "events.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("machine")
def test_json_is_one_object_and_nothing_else(emu):
    code, out, err = emu("run", "--json", "--out", "here")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary["schema"] == 1
    assert len(summary["runs"]) == 5
    assert summary == json.loads(Path("here/summary.json").read_text())


def test_json_holds_no_number_that_json_does_not_know(machine, emu):
    machine.runs["DMA"] = {"pairs_per_s": float("nan"), "iovas_per_flush": float("inf")}
    _, out, _ = emu("run", "--json", "--domain", "DMA")
    run = json.loads(out, parse_constant=pytest.fail)["runs"][0]
    assert (run["pairs_per_s"], run["iovas_per_flush"]) == (None, None)


@pytest.mark.usefixtures("machine")
def test_the_environment_says_what_ran_where(emu):
    _, out, _ = emu("run", "--json", "--cpus", "64")
    environment = json.loads(out)["environment"]
    assert environment["cores_usable"] >= 1
    assert any("64 CPUs + hypervisor on" in warning for warning in environment["warnings"])


@pytest.mark.usefixtures("machine")
def test_more_cpus_than_cores_is_said_to_people(emu):
    _, out, _ = emu("run", "--cpus", "64", "--preset", "lpar")
    assert "64 CPUs on" in " ".join(out.split())


def test_the_resolved_description_can_be_run_again(machine, emu):
    emu("run", "--cpus", "3", "--fq-size", "64", "--out", "here")
    assert load(Path("here/config.toml")) == machine.calls[0][0]


@pytest.mark.usefixtures("machine")
def test_the_default_folder_is_named_after_time_and_domain(emu):
    emu("run", "--domain", "DMA-SQ")
    emu("run")
    single, several = sorted((path.name for path in Path("emu-runs").iterdir()), key=lambda name: "run" in name)
    assert "-DMA-SQ-" in single
    assert "-run-" in several


@pytest.mark.usefixtures("machine")
def test_an_empty_folder_may_be_given(emu):
    Path("here").mkdir()
    assert emu("run", "--out", "here")[0] == 0


@pytest.mark.usefixtures("machine")
def test_a_current_directory_that_cannot_be_written_costs_a_line_not_the_run(emu):
    Path("emu-runs").touch()
    code, out, err = emu("run")
    assert code == 0
    assert "DMA-SQ" in out
    assert err.count("\n") == 1
    assert "emu-runs" in err


def test_events_tell_the_story(machine, emu):
    machine.outcomes["DMA-SQ"] = {"warnings": ["beware"], "died": "timer was killed by SIGSEGV"}
    emu("run", "--out", "here")
    told = events("here")
    assert told[0]["event"] == "run_started"
    assert told[0]["config"]["hypervisor"]["preset"] == "kvm"
    assert "cores" in told[0]["environment"]
    assert {"time", "time_ns", "role", "pid"} <= told[0].keys()
    by_name = {event["event"]: event for event in told}
    assert by_name["warning"]["message"] == "beware"
    assert by_name["death"]["message"] == "timer was killed by SIGSEGV"
    assert by_name["process_ended"]["role"] == "cpu 0"
    assert by_name["domain_finished"]["counters"]["Global RPCITs"] == 4
    assert told[-1] | {"exit_code": 3} == told[-1]
    assert [event["time_ns"] for event in told] == sorted(event["time_ns"] for event in told)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    with open_run_folder(tmp_path / "here", "run") as folder:
        folder.write("summary.json", "first")
        monkeypatch.setattr(run_folder.os, "fsync", full_disk)
        folder.write("summary.json", "second")
        assert "No space left on device" in folder.problem
    assert (tmp_path / "here/summary.json").read_text() == "first"
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["events.jsonl", "summary.json"]


@pytest.mark.usefixtures("machine")
def test_a_full_disk_is_one_line_and_the_results_are_printed(emu, monkeypatch):
    monkeypatch.setattr(run_folder.os, "fsync", full_disk)
    code, out, err = emu("run")
    assert code == 0
    assert "DMA-SQ" in out
    assert err.count("\n") == 1
    assert "No space left on device" in err


@pytest.mark.usefixtures("machine")
def test_a_full_disk_fails_the_command_when_the_folder_was_asked_for(emu, monkeypatch):
    monkeypatch.setattr(run_folder.os, "fsync", full_disk)
    assert emu("run", "--out", "here")[0] == 2


def test_a_log_that_fills_the_disk_is_given_up(tmp_path):
    folder = open_run_folder(tmp_path / "here", "run")
    folder.close()
    folder._open_log(Path("/dev/full"))
    folder.log("first")
    folder.log("second")
    assert "No space left on device" in folder.problem
    folder.close()


def full_disk(_descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_happens_to_a_running_machine_is_in_the_log(machine, emu):
    machine.events["DMA"] = [("sysfs_written", {"at_s": 0.5, "type": "DMA-FQ", "errno": None})]
    emu("run", "--domain", "DMA", "--out", "here")
    (told,) = [event for event in events("here") if event["event"] == "sysfs_written"]
    assert (told["domain"], told["type"], told["errno"]) == ("DMA", "DMA-FQ", None)


def test_a_machine_can_be_controlled_from_the_folder_of_its_run(machine, emu):
    emu("run", "--domain", "DMA", "--out", "here")
    assert machine.control_in == [Path("here")]


def test_domains_that_run_in_turn_record_to_folders_of_their_own(machine, emu):
    emu("run", "--domain", "DMA", "--domain", "DMA-SQ", "--out", "two")
    emu("run", "--domain", "DMA", "--out", "one")
    assert machine.recorded_to == [Path("two/DMA"), Path("two/DMA-SQ"), Path("one")]
