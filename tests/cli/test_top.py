"""`emu top` finds the machine that is meant, looks at it while it runs and while it ends, or says why not."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from emu.cli.top import Watched, _only_one
from emu.config import load
from emu.machine.look import LookError, machine_in_folder, machine_of_process, running_machines
from emu.machine.supervisor import run_machine
from emu.native.segment import SegmentPlan, shared_segments
from emu.workload.build import build_workload

REPOSITORY = Path(__file__).parents[2]
_PATIENCE_S = 60.0


def mine():
    """Segments of this process."""
    return [path for path in shared_segments() if path.name.split("-")[1] == str(os.getpid())]


def wait_until(holds):
    until = time.monotonic() + _PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


@pytest.fixture
def machine(tmp_path):
    """A machine of threads that runs until it is stopped: machine(options) → its folder, machine.stop()."""

    class Running:
        def __init__(self):
            self.threads, self.over = [], threading.Event()

        def __call__(self, domain="DMA-FQ", **machine):
            folder = tmp_path / "run"
            folder.mkdir(exist_ok=True)
            options = {"engine": "threads", "cpus": 2, "seconds": 60.0, **machine}
            overrides = [("domain", "types", [domain]), *(("machine", *option) for option in options.items())]
            thread = threading.Thread(target=self._run, args=(load(None, "kvm", overrides), domain, folder))
            thread.start()
            self.threads.append(thread)
            wait_until(lambda: mine() and running(folder))
            return folder

        def _run(self, config, domain, folder):
            with suppress(KeyboardInterrupt):
                run_machine(config, domain, build_workload(config), control_in=folder, on_progress=self._stop_if_over)

        def _stop_if_over(self, _fraction):
            if self.over.is_set():
                raise KeyboardInterrupt

        def stop(self):
            self.over.set()
            for thread in self.threads:
                thread.join()
            self.threads.clear()
            self.over.clear()

    started = Running()
    yield started
    started.stop()


def running(folder):
    try:
        look = machine_in_folder(folder).look()
    except LookError:
        return False
    return bool(look.contexts["ctrs"]["unmaps"].sum())


@pytest.fixture
def nobody(monkeypatch):
    """No machine runs, whoever else uses this computer."""
    monkeypatch.setattr("emu.machine.look.shared_segments", list)


def test_one_look_as_text(machine, emu):
    folder = machine()
    code, out, err = emu("top", str(folder), "--once", "--interval", "0.1")
    assert (code, err) == (0, "")
    for said in ("DMA-FQ  kvm, nvme  threads  2 CPUs", "0 violations", "cpu 1", "hypervisor", "reachable after unmap"):
        assert said in out
    assert "\x1b" not in out


def test_one_look_as_an_object(machine, emu):
    folder = machine()
    code, out, _ = emu("top", str(os.getpid()), "--once", "--json", "--interval", "0.1")
    found = json.loads(out)
    assert code == 0
    assert found["machine"]["folder"] == str(folder.resolve())
    assert (found["ended"], found["violations"], len(found["cpus"]), len(found["queue"]["rings"])) == (False, 0, 2, 2)
    assert found["pairs"] > 0
    assert sum(cpu["pairs"] for cpu in found["cpus"]) == found["pairs"]


def test_what_is_read_is_what_the_machine_counts(machine):
    attached = machine_in_folder(machine())
    earlier, later = attached.look(), attached.look()
    assert (later.contexts["ctrs"]["unmaps"] >= earlier.contexts["ctrs"]["unmaps"]).all()
    assert later.at_ns > earlier.at_ns
    assert later.at_ticks > earlier.at_ticks
    assert later.contexts["pid"][:2].tolist() == [os.getpid()] * 2
    with pytest.raises(ValueError, match="read-only"):
        attached._segment["control"]["stop"] = 1


def test_a_machine_that_ends_during_the_look_is_said_to_have(machine, emu, monkeypatch):
    folder = machine()
    monkeypatch.setattr("emu.cli.top.time.sleep", lambda _seconds: machine.stop())
    code, out, _ = emu("top", str(folder), "--once")
    assert code == 0
    assert out.endswith("\n\nthe machine has ended\n")
    assert "pairs in all" in out


def test_an_object_says_that_the_machine_has_ended(machine, emu, monkeypatch):
    folder = machine()
    monkeypatch.setattr("emu.cli.top.time.sleep", lambda _seconds: machine.stop())
    _, out, _ = emu("top", str(folder), "--once", "--json")
    assert json.loads(out)["ended"] is True


def test_the_view_keeps_the_last_figures_and_takes_up_the_next_machine(machine):
    watched = Watched(machine_in_folder(machine()))
    assert watched.look()["pairs"] > 0
    assert watched.note == ""
    machine.stop()
    last = watched.look()
    assert watched.note == "the machine has ended"
    assert watched.look() == last
    machine("DMA-SQ")
    following = watched.look()
    assert (following["machine"]["domain"], watched.note) == ("DMA-SQ", "")


def test_a_type_switched_under_the_look_changes_the_rings(machine, emu):
    folder = machine("DMA", timeline=[{"at_s": 0.2, "type": "DMA-SQ"}])

    def rings():
        _, out, _ = emu("top", str(folder), "--once", "--json", "--interval", "0.1")
        found = json.loads(out)
        return found["machine"]["type"] == "DMA-SQ" and found["queue"]

    assert [ring["name"] for ring in wait_until(rings)["rings"]] == ["single"]


def test_a_machine_of_processes_is_found_by_each_of_its_processes(tmp_path):
    command = [sys.executable, "-m", "emu", "run", "--cpus", "2", "--domain", "DMA-FQ", "--seconds", "60", "--quiet"]
    run = subprocess.Popen([*command, "--out", str(tmp_path / "run")], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: running(tmp_path / "run"))
        attached = machine_of_process(run.pid)
        child = int(attached.look().contexts["pid"][1])
        assert machine_of_process(child).name == attached.name
        run.kill()
        run.wait()
        wait_until(lambda: attached.has_ended)
        assert attached.look().contexts["ctrs"]["unmaps"].sum() > 0
    finally:
        run.kill()
        run.wait()


def test_several_machines_are_too_many(machine, emu, monkeypatch):
    machine()
    plan = SegmentPlan()
    plan.add("other", np.int64, 1)
    (path,) = mine()
    monkeypatch.setattr("emu.machine.look.shared_segments", lambda: [path, path])
    code, out, err = emu("top", "--once")
    assert (code, out) == (2, "")
    assert err.startswith("emu top: 2 machines are running: pid ")
    assert err.count("\n") == 1


def test_the_only_machine_needs_no_name(machine, monkeypatch):
    machine()
    (path,) = mine()
    monkeypatch.setattr("emu.machine.look.shared_segments", lambda: [path])
    assert _only_one().supervisor == os.getpid()


def test_a_segment_of_another_version_is_said_to_be(emu, monkeypatch):
    plan = SegmentPlan()
    plan.add("control", np.int64, 1)
    segment = plan.create(about={})
    try:
        monkeypatch.setattr("emu.machine.look.shared_segments", mine)
        code, _, err = emu("top", str(os.getpid()), "--once")
        assert running_machines() == []
    finally:
        segment.unlink()
    assert code == 2
    assert "of another version of emu (control differs)" in err


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--once",), "no machine is running; start one with emu run"),
        ((str(os.getpid()), "--once"), "or it is a simulation"),
        (("4194305", "--once"), "there is no process 4194305"),
        (("sim", "--once"), "is the run of a simulation (--engine sim)"),
        (("ended", "--once"), "no machine is running in ended"),
        (("no\nwhere", "--once"), "neither a run's folder nor a pid"),
        ((), "the live view needs a terminal; use --once"),
        (("--json",), "--json: only --once prints an object; add it"),
        (("--once", "--interval", "0.01"), "--interval 0.01: give 0.1 to 60 s"),
        (("--once", "--interval", "nan"), "--interval nan: give 0.1 to 60 s"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(emu, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("ended").mkdir()
    Path("sim").mkdir()
    Path("sim/config.toml").write_text('[machine]\nengine = "sim"\n')
    code, out, err = emu("top", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


def test_without_textual_the_live_view_says_what_to_install(emu, monkeypatch):
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "emu.report.live_screen", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, _, err = emu("top")
    assert code == 2
    assert "pip install 'emu[top]'" in err


def test_of_several_functions_every_ring_is_told_whose_it_is(machine, emu):
    folder = machine(functions=2)
    code, out, _ = emu("top", str(folder), "--once", "--json", "--interval", "0.1")
    assert code == 0
    names = [ring["name"] for ring in json.loads(out)["queue"]["rings"]]
    assert names == ["0: cpu 0", "0: cpu 1", "1: cpu 0", "1: cpu 1"]
