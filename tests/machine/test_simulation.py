"""The machine on virtual clocks: the same to the byte every time, as large as one likes, and exact."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emu.capture.ftrace import read_capture
from emu.capture.shipped import find_capture
from emu.machine import simulation
from emu.machine.event_writer import EventWriter
from emu.machine.layout import Layout
from emu.machine.simulation import Simulation
from emu.machine.supervisor import compile_machine
from emu.native.cost import COSTS
from emu.native.virtual import PS, START_PS
from emu.workload.build import build_workload
from emu.workload.from_capture import capture_workload
from tests.machine.machines import DOMAINS, config_of, run

ROOT = Path(__file__).resolve().parents[2]
FREE = {f"costs_{name}_ns": 0.0 for name in COSTS}
STRICT_LOAD = {"machine_ops": 4000, "workload_name": "map_benchmark", "hypervisor_walk_ns": 0.0}
OUT_OF_ORDER = {
    "machine_cpus": 8,
    "machine_ops": 4000,
    "domain_fq_size": 4,
    "hypervisor_servers": 4,
    "hypervisor_change_ns": 1000.0,
}
"""A flush that finds many entries to change is overtaken, on another server, by a later one that finds few."""
SMALL = {"workload_queue_depth": 4, "machine_check": True}


def simulated(domain, **options):
    return run(domain, machine_engine="sim", **options).run


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "emu", "run", "--engine", "sim", "--json", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# --- the same every time --------------------------------------------------------------------------------------------


def test_two_runs_write_the_same_to_the_byte(tmp_path):
    domains = ("--domain", "DMA", "--domain", "DMA-FQ", "--domain", "DMA-SQ", "--domain", "s390-lazy")
    arguments = ("--cpus", 5, "--ops", 3000, "--set", "machine.record=true", *domains)
    runs = [command(*arguments, "--out", tmp_path / name) for name in ("one", "other")]
    printed = [process.communicate()[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0]
    assert printed[0] == printed[1] == (tmp_path / "one" / "summary.json").read_bytes()
    for name in ("summary.json", "config.toml", *[f"{d}/events-cpu{n}.bin" for d in domains[1::2] for n in range(5)]):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_interpreted_code_writes_the_same_as_compiled_code(tmp_path):
    arguments = ("--cpus", 3, "--ops", 60, "--domain", "DMA-FQ", "--fq-size", 8, "--set", "domain.aperture_mb=64",
                 "--set", "domain.iova_ranges=4096")  # fmt: skip
    compiled = command(*arguments, "--out", tmp_path / "compiled")
    interpreted = command(*arguments, "--out", tmp_path / "interpreted", NUMBA_DISABLE_JIT="1")
    assert compiled.communicate()[0] == interpreted.communicate()[0] != b""


def test_how_often_python_looks_changes_nothing(monkeypatch):
    whole = simulated("DMA-FQ", machine_cpus=7, machine_ops=2000, domain_fq_size=16)
    monkeypatch.setattr(simulation, "_TURNS", 13)
    assert simulated("DMA-FQ", machine_cpus=7, machine_ops=2000, domain_fq_size=16) == whole


def test_recording_changes_nothing_but_that_it_was_recorded(tmp_path):
    options = {"machine_cpus": 3, "machine_ops": 2000}
    plain = simulated("DMA-SQ", **options)
    recorded = simulated("DMA-SQ", machine_record=True, record_to=tmp_path, **options)
    assert recorded["events"]["lost"] == 0
    assert recorded["events"]["recorded"] > plain["maps"] + plain["unmaps"]
    left_out = ("events", "segment_bytes")
    assert {k: v for k, v in recorded.items() if k not in left_out} == {
        k: v for k, v in plain.items() if k not in left_out
    }


def test_another_seed_is_another_run():
    one, other = (simulated("DMA-FQ", machine_cpus=2, machine_ops=2000, machine_seed=seed) for seed in (1, 2))
    assert one["pairs_per_s"] != other["pairs_per_s"]


# --- as large as one likes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_thousand_cpus_are_sound(domain):
    queue = {"domain_fq_size": 16} if domain in ("DMA-FQ", "DMA-SQ") else {}
    result = simulated(domain, machine_cpus=1024, machine_ops=8192, **queue, **SMALL)
    assert result["conservation"]["holds"], result["conservation"]
    assert result["violations"] == result["map_failures"] == 0
    assert result["pairs_by_cpu"] == [8] * 1024


PEAK_KB = """
import sys
from emu.cli.app import dispatch
code = dispatch(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""
"""Told by the process itself: what a parent is told of its children includes what they were before they became emu."""


def test_four_thousand_cpus_fit_into_a_gigabyte(tmp_path):
    arguments = ["run", "--engine", "sim", "--json", "--cpus", "4096", "--ops", "8192", "--domain", "DMA-FQ"]
    arguments += ["--set", "workload.queue_depth=2", "--set", "hypervisor.mapping_limit=0", "--out", tmp_path / "out"]
    run_emu = [sys.executable, "-c", PEAK_KB, *arguments]
    done = subprocess.run(run_emu, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count('"role": "cpu ') == 4096
    assert int(done.stderr.split()[-1]) < 1 << 20


def test_more_cpus_record_than_files_may_be_open_at_first(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        result = simulated("DMA", machine_cpus=300, machine_ops=300, machine_record=True, record_to=tmp_path, **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert result["events"]["recorded"] > result["maps"] + result["unmaps"]
    assert result["events"]["lost"] == 0


def test_an_hour_in_which_little_happens_is_no_hour():
    result = simulated(
        "DMA-FQ", machine_cpus=2, machine_seconds=3601.0, workload_name="map_benchmark", workload_hold_ns=6e10
    )
    assert result["ops"] == 2 * 60
    assert result["seconds"] == pytest.approx(3601, abs=0.1)


# --- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["process", "inline"])
def test_strict_under_one_server_is_bound_by_it_exactly(service):
    # A pair is two flushes, one of the map and one of the unmap.
    result = simulated(
        "DMA", machine_cpus=8, hypervisor_intercept_ns=4000.0, hypervisor_service=service, **FREE, **STRICT_LOAD
    )
    assert result["hypervisor"]["busy_ns"] == 2 * result["ops"] * 4000
    assert result["pairs_per_s"] == pytest.approx(1e9 / (2 * 4000))
    assert result["hypervisor"]["utilisation"] == 1


def test_the_only_cpu_waits_for_nobody():
    result = simulated("DMA", machine_cpus=1, hypervisor_intercept_ns=4000.0, **FREE, **STRICT_LOAD)
    assert result["pairs_per_s"] == 1e9 / (2 * 4000)
    assert result["hypervisor"]["queue_wait_ns"]["total"] == result["hypervisor"]["schedule_ns"]["total"] == 0


def test_servers_share_the_load_evenly():
    one, four = (
        simulated("DMA", machine_cpus=32, hypervisor_intercept_ns=4000.0, hypervisor_servers=servers, **STRICT_LOAD)
        for servers in (1, 4)
    )
    assert four["pairs_per_s"] == pytest.approx(4 * one["pairs_per_s"], rel=0.01)


def test_requests_wait_in_the_order_of_coming():
    # Eight CPUs ask at the same time, over and over: each waits for the seven before it.
    result = simulated("DMA", machine_cpus=8, hypervisor_intercept_ns=4000.0, **FREE, **STRICT_LOAD)
    waits = result["hypervisor"]["queue_wait_ns"]
    assert waits["max"] == 7 * 4000
    assert waits["total"] == sum(range(8)) * 4000 + (2 * result["ops"] - 8) * 7 * 4000
    assert result["hypervisor"]["queue_length"]["max"] == 7


def test_a_flush_of_a_full_queue_makes_all_others_wait_for_the_rings_lock():
    flush_ns = 1_000_000
    result = simulated(
        "DMA-SQ", preset="lpar", hypervisor_shadows=False, machine_cpus=4, machine_ops=2000, domain_fq_size=64,
        hypervisor_intercept_ns=flush_ns, hypervisor_walk_ns=0.0,
    )  # fmt: skip
    (lock,) = [lock for lock in result["locks"] if lock["name"] == "iova_fq.lock"]
    flushes = result["flushes"]["full"]
    assert flushes > 20
    assert flush_ns < lock["max_wait_ns"] < 1.01 * flush_ns
    # Three wait for each, nearly all of the time.
    assert 0.9 * 3 * flushes * flush_ns < lock["total_wait_ns"] < 1.1 * 3 * flushes * flush_ns


@pytest.mark.parametrize(
    ("hz", "timeout_ms", "fires_after_ms"),
    # Unmapped at 1.05 s; rounded up to whole ticks and one more; from 63 ticks on to 8 of them, and one more.
    [(250, 10.0, 14), (1000, 10.0, 11), (100, 10.0, 20), (1000, 100.0, 1152 - 1050)],
)
def test_the_timer_fires_at_the_wheels_expiry(hz, timeout_ms, fires_after_ms):
    flush_ns, held_ns = 5000, 50_000_000
    result = simulated(
        "DMA-FQ", preset="lpar", hypervisor_shadows=False, hypervisor_intercept_ns=flush_ns, hypervisor_walk_ns=0.0,
        workload_name="map_benchmark", workload_hold_ns=held_ns, domain_fq_timeout_ms=timeout_ms,
        machine_cpus=1, machine_hz=hz, machine_seconds=0.06 + fires_after_ms / 1000, **FREE,
    )  # fmt: skip
    assert START_PS // PS + held_ns == 1_050_000_000
    assert result["flushes"]["timeout"] == 1
    assert result["exposure"]["max_ns"] == fires_after_ms * 1e6 + flush_ns


def test_overlapping_flushes_overrun_a_ring_as_in_the_kernel():
    result = simulated("DMA-FQ", **OUT_OF_ORDER)
    assert result["overruns"] > 0
    assert result["overrun_iovas"] == 4 * result["overruns"]
    assert result["conservation"]["holds"]


def test_a_cpu_that_waits_instead_never_overruns():
    result = simulated("DMA-FQ", domain_on_overrun="wait", **OUT_OF_ORDER)
    assert result["overruns"] == result["overrun_iovas"] == 0
    assert result["conservation"]["holds"]
    assert result["ops"] == OUT_OF_ORDER["machine_ops"]


def test_flushes_that_finish_in_order_overrun_nothing():
    result = simulated("DMA-FQ", **OUT_OF_ORDER | {"hypervisor_servers": 1})
    assert result["flushes"]["full"] > 1000
    assert result["overruns"] == 0


def test_a_replay_as_recorded_takes_the_recorded_time_on_its_clocks_only():
    capture = read_capture(find_capture(Path("s390x-strict-nvme")))
    load = capture_workload(capture)
    result = simulated("DMA", workload=load, real_time=True, machine_cpus=capture.cpus)
    recorded_s = max(int(program.ops["at_ns"].max()) for program in load.programs) / 1e9
    assert result["seconds"] == pytest.approx(recorded_s, rel=1e-5)


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience_s", [60.0, 0.0], ids=["served to the end", "aborted"])
@pytest.mark.parametrize("service", ["process", "inline"])
@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ"])
def test_an_interrupted_run_keeps_what_was_measured(monkeypatch, domain, service, patience_s):
    monkeypatch.setattr(simulation, "_PATIENCE_S", patience_s)
    looks = []

    def interrupt_the_third_time(_fraction):
        looks.append(1)
        if len(looks) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(simulation, "_TURNS", 1000)
    outcome = run(
        domain, machine_engine="sim", machine_cpus=16, machine_seconds=3600.0, hypervisor_service=service,
        on_progress=interrupt_the_third_time,
    )  # fmt: skip
    assert outcome.interrupted
    assert outcome.died is None
    assert outcome.run["ops"] > 0
    assert outcome.run["conservation"]["holds"], outcome.run["conservation"]


def test_a_machine_whose_cpus_wait_for_ever_ends_and_says_who_does():
    config = config_of("DMA", machine_engine="sim", machine_cpus=2, machine_ops=100)
    compile_machine(config.machine)
    layout = Layout(config, "DMA", build_workload(config), real_time=False)
    layout.segment["domain"][0].cookie.iovad.iova_rbtree_lock.val = 1
    machine = Simulation(layout, EventWriter(layout, None), lambda _: None)
    machine.run()
    assert machine.died == "cpu 0 waits for ever"
    assert [member.exit for member in machine.members] == [None, None, 0, 0]
