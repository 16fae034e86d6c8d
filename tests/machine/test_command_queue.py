"""Machines whose flushes go through an SMMUv3's command queue: on every engine, whoever dies, of any size."""

import pytest

from emu.native.segment import sweep
from tests.machine.machines import run

COMMANDS = {"hypervisor_service": "cmdq", "domain_aperture_mb": 256, "domain_iova_ranges": 1 << 16}
STRICT = {**COMMANDS, "workload_name": "map_benchmark"}


SECONDS = {False: 5.7293e-05, True: 5.0831e-05}
"""What a machine of three CPUs takes on virtual clocks, wherever it runs."""


def is_whole(result):
    return result["violations"] == 0 and result["conservation"]["holds"]


@pytest.mark.interpreted
@pytest.mark.parametrize("patched", [False, True], ids=["cmpxchg", "patched"])
def test_it_does_the_same_whether_compiled_or_not(patched):
    options = {"machine_engine": "sim", "machine_cpus": 3, "machine_ops": 60, "machine_seed": 5}
    queue = {"hypervisor_cmdq_entries": 8, "hypervisor_cmdq_patched": patched}
    result = run("DMA", **STRICT, **options, **queue, hypervisor_shadows=False, costs_transfer_ns=100.0).run
    assert is_whole(result), result["conservation"]
    assert result["hypervisor"]["requests"] == 60
    assert result["seconds"] == pytest.approx(SECONDS[patched], rel=1e-9)


@pytest.mark.parametrize("patched", [False, True], ids=["cmpxchg", "patched"])
@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ"])
def test_the_oracle_finds_nothing_and_the_books_balance(domain, engine, patched):
    result = run(
        domain,
        **COMMANDS,
        machine_engine=engine,
        machine_cpus=3,
        machine_ops=300,
        machine_devices=1,
        hypervisor_cmdq_entries=8,
        hypervisor_cmdq_patched=patched,
        **({"domain_fq_size": 16} if domain == "DMA-FQ" else {}),
    ).run
    assert result["ops"] >= 300
    assert is_whole(result), result["conservation"]
    counters = result["counters"]
    assert result["hypervisor"]["requests"] == sum(
        counters[name] for name in ("Global RPCITs", "Sync Map RPCITs", "Sync RPCITs")
    )
    assert result["hypervisor"]["command_queue"]["attempts"] >= result["hypervisor"]["requests"]
    assert not sweep()


@pytest.mark.parametrize("domain", ["DMA-SQ", "s390-lazy", "s390-strict"])
def test_every_scheme_can_flush_by_commands(domain):
    result = run(domain, **COMMANDS, machine_engine="sim", machine_cpus=4, machine_ops=4000).run
    assert is_whole(result), result["conservation"]
    assert result["hypervisor"]["requests"] > 0


def test_a_machine_without_a_command_queue_has_none_in_its_result():
    assert run("DMA", machine_engine="sim", machine_ops=100).run["hypervisor"]["command_queue"] is None


# The contention.


def total(cpus, **options):
    shadowless = {"hypervisor_shadows": False, "hypervisor_walk_ns": 0.0, "hypervisor_intercept_ns": 300.0}
    options = {**STRICT, **shadowless, "costs_transfer_ns": 100.0, "machine_check": False, **options}
    return run("DMA", machine_engine="sim", machine_cpus=cpus, machine_seconds=0.002, **options).run


def test_all_cpus_together_do_less_the_more_they_are_as_they_fight_over_one_word():
    few, many = total(8), total(64)
    assert many["pairs_per_s"] < 0.5 * few["pairs_per_s"]
    queue, requests = many["hypervisor"]["command_queue"], many["hypervisor"]["requests"]
    # The mail says: about 1 in 12 succeeds.
    assert 7 < queue["attempts"] / requests < 17


def test_where_places_are_reserved_by_an_addition_they_do_not():
    few, many = total(8, hypervisor_cmdq_patched=True), total(64, hypervisor_cmdq_patched=True)
    assert many["pairs_per_s"] > 0.9 * few["pairs_per_s"]
    assert many["hypervisor"]["command_queue"]["attempts"] <= many["hypervisor"]["requests"] + 64


@pytest.mark.parametrize("patched", [False, True], ids=["cmpxchg", "patched"])
def test_a_queue_that_is_full_most_of_the_time_loses_nothing(patched):
    # Patched there must be room for a flush of everybody.
    entries = 32 if patched else 4
    options = {"hypervisor_cmdq_entries": entries, "hypervisor_cmdq_patched": patched, "machine_check": True}
    result = total(12, **options)
    assert is_whole(result), result["conservation"]
    assert result["hypervisor"]["command_queue"]["full"] > 0


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_another():
    one, same, other = total(16), total(16), total(16, machine_seed=2)
    assert one["pairs_by_cpu"] == same["pairs_by_cpu"] != other["pairs_by_cpu"]


# Deaths.

DEATHS = {**STRICT, "machine_cpus": 2, "machine_seconds": 0.4, "machine_on_death": "continue"}


def test_a_cpu_that_dies_in_the_queue_stops_the_machine_in_order():
    # Slow hardware: a CPU of a strict domain is in the queue nearly all of the time.
    result = run("DMA", machine_faults=["kill:cpu1@0.1s"], **DEATHS, hypervisor_intercept_ns=2e6).run
    (death,) = result["deaths"]
    assert "in the command queue" in death["then"]
    assert "in the command queue" in result["died"]
    assert is_whole(result), result["conservation"]
    assert not sweep()


def test_the_others_go_on_without_a_cpu_that_dies_outside_of_it():
    lazy = {"domain_fq_size": 4096, "domain_fq_timeout_ms": 1000.0}
    result = run("DMA-SQ", machine_faults=["kill:cpu1@0.1s"], **DEATHS, **lazy, hypervisor_shadows=False).run
    (death,) = result["deaths"]
    if "in the command queue" not in death["then"]:
        assert death["recovered"]
        assert result["died"] is None
    assert is_whole(result), result["conservation"]


def test_hardware_that_another_process_takes_the_place_of_goes_on_where_it_was():
    faults = [f"kill:hypervisor@{ms}ms" for ms in range(50, 300, 50)]
    result = run("DMA", machine_faults=faults, **DEATHS, machine_restart=["hypervisor"]).run
    assert 2 <= len(result["deaths"]) <= 5
    assert all(death["recovered"] for death in result["deaths"])
    assert is_whole(result), result["conservation"]
    assert result["ops"] > 100
    assert not sweep()
