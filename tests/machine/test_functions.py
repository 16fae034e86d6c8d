"""Functions that share a hypervisor: each has a domain, books and a timer of its own, and waits for the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.config import Config, load
from emu.experiment import run_machine
from emu.native.atomics import interpreted
from emu.native.segment import sweep
from emu.workload.build import build_workload
from tests.machine.machines import CHEAP

REPOSITORY = Path(__file__).parents[2]
LAZY = {"type": "DMA-FQ", "fq_size": 64}
STRICT = {"type": "DMA"}
SMALL = {"aperture_mb": 256, "iova_ranges": 1 << 15}
COUNTED = ("ops", "maps", "unmaps", "map_failures", "overruns", "overrun_iovas")


def config_of(*functions, machine=(), domain=(), hypervisor=(), workload=()):
    """A Config with these tables [[function]]."""
    return Config.model_validate(
        {
            "machine": {key: value for key, value in dict(machine).items() if value is not None},
            "domain": {**SMALL, **dict(domain)},
            "hypervisor": {**load().hypervisor.model_dump(), **CHEAP, **dict(hypervisor)},
            "workload": {"queue_depth": 8, **dict(workload)},
            "function": list(functions),
        }
    )


def run(*functions, types=(), domain=(), hypervisor=(), workload=(), **machine):
    """What is said of a run of these functions; other options are the machine's."""
    domain = {**({"types": list(types)} if types else {}), **dict(domain)}
    config = config_of(*functions, machine=machine, domain=domain, hypervisor=hypervisor, workload=workload)
    result = run_machine(config, config.domain.types[0], build_workload(config)).run
    assert not sweep()
    return result


def assert_sound(result):
    """Nothing is violated, every function's books balance, and together they are the whole machine's."""
    assert result["died"] is None
    functions = result["functions"]
    for own in (result, *functions):
        assert own["violations"] == 0, own["violations_by_kind"]
        assert own["conservation"]["holds"], own["conservation"]
    assert all(result[name] == sum(own[name] for own in functions) for name in COUNTED)
    for part in ("counters", "flushes"):
        for name, count in result[part].items():
            assert count == sum(own[part][name] for own in functions), name
    for name in ("windows", "still_open"):
        assert result["exposure"][name] == sum(own["exposure"][name] for own in functions)
    assert result["exposure"]["max_ns"] == max(own["exposure"]["max_ns"] for own in functions)


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
@pytest.mark.parametrize("neighbour", [LAZY, STRICT, {"type": "DMA-SQ"}, {"type": "identity"}])
def test_what_each_function_maps_is_unmapped_reclaimed_or_still_there(engine, neighbour):
    result = run({**LAZY, "cpus": 2}, neighbour, engine=engine, ops=3000, devices=2)
    assert_sound(result)
    assert [own["ops"] for own in result["functions"]] == [2000, 1000]
    assert result["functions"][0]["flushes"]["full"] > 0
    assert result["hypervisor"]["requests"] == sum(own["requests"]["count"] for own in result["functions"])


@pytest.mark.parametrize("types", [["s390-lazy"], ["s390-strict"], ["DMA-SQ"]])
def test_alike_functions_share_out_the_cpus(types):
    config = load(overrides=[("machine", "functions", 3), ("machine", "cpus", 4), ("machine", "ops", 4000)])
    small = [("domain", "types", types), ("domain", "aperture_mb", 64), ("machine", "engine", "sim")]
    config = load(config, overrides=small)
    result = run_machine(config, types[0], build_workload(config)).run
    assert_sound(result)
    assert [(own["cpus"], own["domain"]) for own in result["functions"]] == [(2, *types), (1, *types), (1, *types)]


@pytest.mark.parametrize(
    "hypervisor",
    [{"service": "inline"}, {"servers": 3}, {"shadows": False}, {"queue_limit": 1, "intercept_ns": 3000.0}],
)
def test_functions_are_served_however_the_hypervisor_serves(hypervisor):
    assert_sound(run(STRICT, LAZY, {**LAZY, "workload": {"name": "nic", "ring": 16}}, ops=4500, hypervisor=hypervisor))


def test_each_lazy_function_has_a_timer_of_its_own():
    slow = {"type": "DMA-FQ", "fq_timeout_ms": 100.0, "fq_size": 32768}
    quick = {**slow, "fq_timeout_ms": 10.0}
    result = run(quick, slow, engine="sim", seconds=0.5, workload={"think_ns": 50_000.0})
    assert_sound(result)
    often, seldom = (own["flushes"]["timeout"] for own in result["functions"])
    assert 4 * seldom < often
    assert 0 < seldom <= 5
    for own in result["functions"]:
        assert own["queue"]["timeout_ms"] * 1e6 <= own["exposure"]["max_ns"] <= 2.5 * own["queue"]["timeout_ms"] * 1e6


def test_an_idle_function_costs_its_neighbour_nothing_and_a_strict_one_much():
    mine, options = {"type": "DMA-FQ", "cpus": 2}, {"engine": "sim", "seconds": 0.02, "hypervisor": load().hypervisor}
    alone, idle, strict = (
        run(mine, *others, **options) for others in ((), ({"type": "DMA", "cpus": 0},), ({"type": "DMA", "cpus": 2},))
    )
    assert idle["functions"][1]["ops"] == 0
    assert idle["functions"][0]["pairs_per_s"] == pytest.approx(alone["pairs_per_s"], rel=0.01)
    assert strict["functions"][0]["pairs_per_s"] < 0.75 * alone["pairs_per_s"]
    assert strict["functions"][0]["flush_ns"]["p50"] > alone["flush_ns"]["p50"]


def test_the_host_holds_so_many_pages_of_all_functions_together():
    result = run(LAZY, LAZY, engine="sim", ops=4000, hypervisor={"mapping_limit": 300})
    assert_sound(result)
    assert all(own["flushes"]["no_resources"] > 0 for own in result["functions"])
    held = [own["host_pages"] for own in result["functions"]]
    assert min(held) > 0
    assert sum(held) <= 300


def test_a_device_in_error_leaves_the_other_functions_alone():
    ism = {"type": "DMA", "device": "ism", "workload": {"name": "ism", "dmbs": 16}}
    result = run(ism, {"type": "DMA"}, engine="sim", ops=4000, hypervisor={"mapping_limit": 330})
    broken, other = result["functions"]
    assert broken["device_error"]
    assert not other["device_error"]
    assert other["maps"] > 1900
    assert result["violations"] == 0


def test_a_type_is_switched_for_one_function_alone():
    timeline = [{"at_s": 0.01, "type": "DMA-FQ", "function": 1}]
    for engine, seconds in (("sim", 0.05), ("processes", 0.3)):
        result = run(types=["DMA"], engine=engine, functions=2, cpus=2, seconds=seconds, timeline=timeline)
        assert_sound(result)
        assert [own["type_at_end"] for own in result["functions"]] == ["DMA", "DMA-FQ"]
        assert [switch["function"] for switch in result["switches"]] == [1]
        strict, lazy = result["functions"]
        assert strict["flushes"] == dict.fromkeys(("full", "timeout", "no_resources", "wrap", "early"), 0)
        assert lazy["flushes"]["full"] + lazy["flushes"]["timeout"] > 0


# Deaths.

RECOVERED = {"on_death": "continue", "restart": ["hypervisor", "timer"], "seconds": 0.4}


def test_the_death_of_a_functions_only_cpu_leaves_the_others_working():
    result = run(LAZY, LAZY, STRICT, **{**RECOVERED, "seconds": None, "ops": 60_000}, faults=["kill:cpu0@0.05s"])
    (death,) = result["deaths"]
    assert death["recovered"], death["then"]
    dead, *alive = result["functions"]
    assert dead["ops"] < 20_000
    assert [own["ops"] for own in alive] == [20_000, 20_000]
    for own in result["functions"]:
        assert own["violations"] == 0
        assert own["conservation"]["holds"], own["conservation"]
    # What a dead CPU may have had in hand is its own function's.
    assert [own["conservation"]["in_hand_of_the_dead"] for own in result["functions"]] == [3, 0, 0]


@pytest.mark.parametrize("role", ["timer", "hypervisor"])
def test_whoever_works_for_all_functions_is_started_anew_for_all(role):
    quick = {**LAZY, "fq_timeout_ms": 5.0}
    result = run(quick, quick, STRICT, **RECOVERED, faults=[f"kill:{role}@{ms}ms" for ms in (60, 120, 180)])
    assert result["deaths"]
    assert all(death["recovered"] for death in result["deaths"])
    for own in result["functions"]:
        assert own["violations"] == 0, own["violations_by_kind"]
        assert own["conservation"]["holds"], own["conservation"]
    assert all(own["flushes"]["full"] > 0 for own in result["functions"][:2])


@pytest.mark.parametrize("lock", ["iova_fq.lock", "iova_cpu_rcache.lock"])
def test_a_dead_cpus_lock_is_repaired_in_the_domain_of_its_function(lock):
    result = run(STRICT, {**LAZY, "cpus": 2}, **RECOVERED, faults=[f"kill:cpu2@holding:{lock}"])
    # Where nobody came for the lock in time, the run says so.
    assert result["deaths"] or any("the load ended before" in text for text in result["warnings"])
    for own in result["functions"]:
        assert own["violations"] == 0, own["violations_by_kind"]
        assert own["conservation"]["holds"], own["conservation"]


# The oracle.


def test_a_request_served_on_another_functions_tables_is_found(tmp_path):
    options = ["--engine", "sim", "--cpus", "2", "--ops", "16", "--set", "machine.functions=2", "--domain", "DMA"]
    small = ["--set", "domain.aperture_mb=16", "--set", "domain.iova_ranges=4096", "--set", "workload.queue_depth=2"]
    command = [sys.executable, "-m", "emu", "run", *options, *small, "--json", "--out", str(tmp_path / "out")]
    # Interpreted, which for so little is quicker than to compile it once more.
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "EMU_MUTANT": "request-on-wrong-function"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (result,) = json.loads(done.stdout)["runs"]
    for own in result["functions"]:
        kinds = own["violations_by_kind"]
        # Mappings that the own shadow never saw, and addresses given back that no flush of the own table had covered.
        assert kinds["shadow_differs"] > 0
        assert kinds["given_back_unflushed"] == own["counters"]["Unmapped pages"] > 0


@pytest.mark.interpreted
@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_functions_run_whether_compiled_or_not(engine):
    lazy = {"type": "DMA-FQ", "fq_size": 8, "fq_timeout_ms": 1.0}
    small = {"domain": {"aperture_mb": 16, "iova_ranges": 4096}, "workload": {"queue_depth": 2}}
    result = run(lazy, STRICT, engine=engine, ops=60 if interpreted else 2000, **small)
    assert_sound(result)
    assert sum(result["functions"][0]["flushes"].values()) > 0
