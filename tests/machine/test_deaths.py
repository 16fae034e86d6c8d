"""Whatever dies, or is stopped: the rest ends within half a second, says why, keeps results and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.machine.machines import run

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux


@pytest.fixture(scope="module", autouse=True)
def _compiled_before():
    """Not in the commands under test: they are timed."""
    run("DMA", machine_cpus=1, machine_ops=10)


@pytest.fixture
def start(tmp_path):
    """Start `emu run` with these arguments; ended afterwards."""
    started = []

    def command(*arguments, machine=True):
        process = subprocess.Popen(
            [sys.executable, "-m", "emu", "run", "--out", tmp_path / "out", "--json", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if machine:
            wait_for_machine(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def members(process):
    """Processes of the machine: forked from the command, and not the resource tracker."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if not any("resource_tracker" in word for word in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def wait_for_machine(process, count=4):
    until = time.monotonic() + 30
    while len(members(process)) < count and time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.3)


def segments_of(pid):
    return list(SHARED_MEMORY.glob(f"emu-{pid}-*"))


LONG = ("--cpus", 2, "--seconds", 30, "--domain", "DMA-SQ")
ROLES = ["cpu 0", "cpu 1", "timer", "hypervisor"]


@pytest.mark.parametrize("role", range(4), ids=ROLES)
def test_a_killed_process_ends_the_machine_with_its_name_and_partial_results(start, role, tmp_path):
    process = start(*LONG)
    crew = members(process)
    victim = sorted(crew, key=lambda child: child.pid)[role]
    killed_at = time.monotonic()
    victim.kill()
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - killed_at < 2
    assert process.returncode == 3
    assert ROLES[role] in err
    assert "SIGKILL" in err
    assert json.loads(out)["runs"][0]["ops"] > 0
    assert (tmp_path / "out" / "summary.json").exists()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in crew)
    assert not segments_of(process.pid)


def test_ctrl_c_keeps_what_was_measured(start, tmp_path):
    process = start(*LONG)
    crew = members(process)
    pressed_at = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - pressed_at < 2
    assert process.returncode == 130, err
    assert json.loads(out)["runs"][0]["conservation"]["holds"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]
    assert not any(child.is_running() for child in crew)
    assert not segments_of(process.pid)


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 1.0])
def test_ctrl_c_at_any_moment_leaves_nothing(start, delay_s):
    process = start("--cpus", 8, "--seconds", 30, machine=False)
    time.sleep(delay_s)
    crew = members(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    # Before Python itself is up, it is Python that says so.
    assert process.returncode in (130, -signal.SIGINT) or "Fatal Python error: init" in err, err
    time.sleep(0.1)
    assert not any(child.is_running() for child in crew)
    assert not segments_of(process.pid)


UNBOUND = (*LONG, "--switch", "0.05s:unbind")


def wait_until_unbound(out):
    until = time.monotonic() + 30
    while "sysfs_written" not in (out / "events.jsonl").read_text() and time.monotonic() < until:
        time.sleep(0.02)


def test_ctrl_c_ends_a_machine_whose_driver_is_unbound(start, tmp_path):
    process = start(*UNBOUND)
    wait_until_unbound(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    run_of_it = json.loads(out)["runs"][0]
    assert run_of_it["switches"][0]["driver"] == "unbind"
    assert run_of_it["conservation"]["holds"]
    assert not segments_of(process.pid)


def test_a_process_that_dies_while_the_driver_is_unbound_ends_the_machine(start, tmp_path):
    process = start(*UNBOUND)
    wait_until_unbound(tmp_path / "out")
    min(members(process), key=lambda child: child.pid).kill()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 3
    assert "cpu 0" in err
    assert not segments_of(process.pid)


def test_the_control_socket_lives_as_long_as_the_machine(start, tmp_path):
    process = start(*LONG)
    socket = tmp_path / "out" / "control.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert not socket.exists()


def test_a_killed_supervisor_takes_its_processes_along(start):
    process = start(*LONG)
    crew = members(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(crew, timeout=2)
    assert not alive
    until = time.monotonic() + 3
    while segments_of(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not segments_of(process.pid)


def test_a_segment_that_nobody_owns_is_swept_by_the_next_run():
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    orphan = SHARED_MEMORY / f"emu-{gone.stdout.strip()}-0badcafe"
    orphan.write_bytes(b"\0" * 4096)
    run("DMA", machine_cpus=1, machine_ops=10)
    assert not orphan.exists()


def test_a_segment_is_not_open_to_others(start):
    process = start(*LONG)
    modes = [path.stat().st_mode & 0o777 for path in segments_of(process.pid)]
    assert modes == [0o600]


def test_a_hypervisor_that_takes_ten_seconds_does_not_delay_ctrl_c(start):
    process = start("--cpus", 2, "--seconds", 30, "--domain", "DMA", "--set", "hypervisor.intercept_ns=1e10")
    process.send_signal(signal.SIGINT)
    pressed_at = time.monotonic()
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - pressed_at < 2
    assert process.returncode == 130, err


def test_a_stopped_process_is_killed_when_the_run_ends(start):
    process = start("--cpus", 2, "--seconds", 1, "--domain", "DMA-SQ")
    victim = min(members(process), key=lambda child: child.pid)
    victim.suspend()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "cpu 0 did not stop" in err


def test_too_little_shared_memory_is_one_line_and_nothing_is_left(start):
    free = os.statvfs(SHARED_MEMORY)
    too_many_mb = (free.f_bavail * free.f_frsize >> 20) // 8 + 100_000
    process = start(
        "--cpus", 2, "--domain", "DMA-SQ", "--set", f"domain.aperture_mb={min(too_many_mb * 512, 1 << 22)}",
        "--set", "domain.aperture_start=0", "--set", "domain.fq_memory_mb=1000000", "--fq-size", 1 << 24,
        "--set", "domain.iova_ranges=268435456", machine=False,
    )  # fmt: skip
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(err.strip().splitlines()) == 1
    assert "/dev/shm" in err  # noqa: S108 - the text of the message
    assert not segments_of(process.pid)
