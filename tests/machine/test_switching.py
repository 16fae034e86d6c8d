"""Switching types on a running machine: nothing is lost, nothing goes stale, and the two bugs are found."""

import pytest

from emu.experiment import run_machine
from emu.workload.build import build_workload
from tests.machine.machines import config_of, run
from tests.machine.test_schemes import assert_sound

ENGINES = pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
LAZY = ("DMA-FQ", "DMA-SQ")


def switch(at_s, domain_type):
    return {"at_s": at_s, "type": domain_type}


def way_back(at_s):
    """From any type to strict: without the driver, as sysfs needs it."""
    return [{"at_s": at_s, "driver": "unbind"}, switch(at_s, "DMA"), {"at_s": at_s, "driver": "bind"}]


def to_and_fro(times, step_s):
    """So many switches to a lazy type under load, and the way back after each."""
    actions = []
    for i in range(times):
        at_s = (2 * i + 1) * step_s
        actions += [switch(at_s, LAZY[i % 2]), *way_back(at_s + step_s)]
    return actions


def errors(outcome):
    return [step["errno"] for step in outcome.run["switches"] if step["errno"]]


def assert_consistent(outcome):
    """The books balance, and every window that an unmap opened was closed by the flush that made the IOVA reusable."""
    assert_sound(outcome, "DMA")
    result = outcome.run
    sums = result["conservation"]
    assert result["exposure"]["windows"] == sums["reclaimed"]
    assert result["map_failures"] == 0
    assert not errors(outcome)
    assert result["counters"]["Sync RPCITs"] <= result["unmaps"]
    assert result["counters"]["Sync Map RPCITs"] == result["maps"]


def test_a_hundred_switches_under_the_load_of_four_cpus_lose_nothing_and_leave_nothing_stale():
    switches = 0
    # A machine whose cores are busy does not come as far as the timeline goes.
    while switches < 100:
        outcome = run("DMA", machine_cpus=4, machine_seconds=3.0, machine_timeline=to_and_fro(60, 0.02))
        assert_consistent(outcome)
        assert outcome.run["ops"] > 0
        switches += sum(1 for step in outcome.run["switches"] if step["type"] in LAZY)


@ENGINES
@pytest.mark.parametrize("wanted", LAZY)
def test_a_domain_switched_under_load_queues_from_then_on(wanted, engine):
    outcome = run(
        "DMA", machine_cpus=4, machine_engine=engine, machine_seconds=0.6, machine_timeline=[switch(0.1, wanted)]
    )
    assert_consistent(outcome)
    result = outcome.run
    assert result["type_at_end"] == wanted
    assert 0 < result["counters"]["Sync RPCITs"] < result["unmaps"]
    assert result["queue"]["size"] == {"DMA-FQ": 256, "DMA-SQ": 32768}[wanted]
    assert result["queue"]["rings"] == {"DMA-FQ": 4, "DMA-SQ": 1}[wanted]
    assert result["bugs"] == []


@ENGINES
def test_back_to_strict_needs_the_driver_unbound_and_requests_under_way_fail(engine):
    outcome = run("DMA-FQ", machine_cpus=3, machine_engine=engine, machine_seconds=0.5, machine_timeline=way_back(0.1))
    assert_consistent(outcome)
    result = outcome.run
    assert result["type_at_end"] == "DMA"
    assert result["queue"] is None
    assert result["exposure"]["still_open"] == 0
    assert result["counters"]["Sync RPCITs"] > 0


@ENGINES
@pytest.mark.parametrize(
    ("bug", "kind"),
    [("init-fq-before-type", "queues_of_another_type"), ("queue-before-type", "queued_while_strict")],
)
def test_each_bug_is_found(bug, kind, engine):
    # Two writes apart: where the CPUs get no core just then, as on a busy machine, nobody comes in between.
    for seed in range(5):
        result = run(
            "DMA",
            machine_cpus=4,
            machine_engine=engine,
            machine_seconds=0.6,
            machine_seed=seed,
            machine_timeline=[switch(0.2, "DMA-FQ")],
            domain_bugs=[bug],
        ).run
        assert result["bugs"] == [bug]
        assert result["type_at_end"] == "DMA-FQ"
        if result["violations"]:
            break
    assert result["violations"] == result["violations_by_kind"][kind] > 0


def test_what_is_refused_is_noted_and_changes_nothing():
    timeline = [switch(0.05, "identity"), switch(0.05, "DMA"), {"at_s": 0.1, "driver": "bind"}]
    outcome = run("DMA", machine_cpus=2, machine_seconds=0.3, machine_timeline=timeline)
    assert_sound(outcome, "DMA")
    assert errors(outcome) == ["EPERM", "EPERM", "EBUSY"]
    assert outcome.run["type_at_end"] == "DMA"
    assert outcome.run["counters"]["Sync RPCITs"] == outcome.run["unmaps"]
    assert len([warning for warning in outcome.warnings if "refused" in warning]) == 3


def test_a_switch_without_memory_for_the_queue_leaves_the_domain_strict():
    timeline = [switch(0.05, "DMA-SQ")]
    outcome = run("DMA", machine_cpus=2, machine_seconds=0.3, machine_timeline=timeline, machine_faults=["fq-alloc"])
    assert_sound(outcome, "DMA")
    assert errors(outcome) == ["ENOMEM"]
    assert outcome.run["type_at_end"] == "DMA"
    assert outcome.run["fell_back_to_strict"]
    assert outcome.run["faults"] == ["fq-alloc"]
    assert outcome.run["counters"]["Sync RPCITs"] == outcome.run["unmaps"]
    assert any("iova flush queue initialization failed" in warning for warning in outcome.warnings)


def test_what_the_timeline_had_still_to_come_is_said():
    outcome = run("DMA", machine_cpus=2, machine_ops=100, machine_timeline=[switch(1000.0, "DMA-FQ")])
    assert outcome.run["switches"] == []
    assert any("1000 s" in warning and "ended before" in warning for warning in outcome.warnings)


def test_a_load_that_is_counted_goes_on_where_it_was_when_the_driver_is_bound_again():
    outcome = run(
        "DMA-SQ",
        machine_cpus=3,
        machine_ops=6000,
        workload_completion="other",
        machine_timeline=[{"at_s": 0.01, "driver": "unbind"}, {"at_s": 0.05, "driver": "bind"}],
    )
    assert_sound(outcome, "DMA-SQ")
    # Requests under way when the driver went have failed, and are not done again.
    assert 6000 - 3 * 2 * 32 <= outcome.run["ops"] <= 6000
    assert outcome.run["type_at_end"] == "DMA-SQ"


@pytest.mark.parametrize("domain", ["s390-lazy", "s390-strict", "identity"])
def test_the_driver_of_any_scheme_can_be_unbound_and_bound(domain):
    timeline = [{"at_s": 0.05, "driver": "unbind"}, {"at_s": 0.1, "driver": "bind"}]
    outcome = run(domain, machine_cpus=2, machine_seconds=0.3, machine_timeline=timeline)
    assert_sound(outcome, domain)
    assert not errors(outcome)


def test_a_load_may_end_while_its_driver_is_unbound():
    outcome = run("DMA", machine_cpus=2, machine_seconds=0.3, machine_timeline=[{"at_s": 0.05, "driver": "unbind"}])
    assert_sound(outcome, "DMA")


def test_the_machine_tells_of_each_write_as_it_happens():
    told = []
    config = config_of("DMA", machine_cpus=2, machine_seconds=0.2, machine_timeline=[switch(0.05, "DMA-SQ")])
    run_machine(config, "DMA", build_workload(config), on_event=lambda event, values: told.append((event, values)))
    (values,) = (values for event, values in told if event == "sysfs_written")
    assert (values["type"], values["errno"], values["by"]) == ("DMA-SQ", None, "timeline")
