"""Faults of hypervisor and timer do what they say, the same every time on virtual clocks, and checks find the harm."""

import pytest

from tests.machine.machines import run

MS = 1e-3
VIRTUAL = {"machine_engine": "sim", "machine_cpus": 2, "domain_aperture_mb": 64, "domain_iova_ranges": 8192}


def outcome_of(domain, *faults, seconds=0.02, **options):
    """A machine on virtual clocks with these faults."""
    options = {"machine_seconds": seconds, **VIRTUAL, **options}
    if domain in ("DMA-FQ", "DMA-SQ"):
        options = {"domain_fq_size": 64, "domain_fq_timeout_ms": 2.0, **options}
    return run(domain, machine_faults=list(faults), **options).run


def test_a_slow_hypervisor_takes_that_many_times_as_long():
    sound, slow = outcome_of("DMA"), outcome_of("DMA", "slow:hypervisor×10")
    cost = [result["hypervisor"]["emulated_ns"] / result["hypervisor"]["requests"] for result in (sound, slow)]
    assert 9.5 < cost[1] / cost[0] < 10.5


def test_it_is_slow_from_then_on_and_until_then():
    whole = outcome_of("DMA", "slow:hypervisor×10")["ops"]
    half = outcome_of("DMA", "slow:hypervisor×10@10ms+5ms")["ops"]
    assert whole < half < outcome_of("DMA")["ops"]


def test_jitter_makes_requests_longer_by_half_of_it_on_average():
    sound, jittery = outcome_of("DMA"), outcome_of("DMA", "jitter:hypervisor:100us")
    cost = [result["hypervisor"]["emulated_ns"] / result["hypervisor"]["requests"] for result in (sound, jittery)]
    assert 30_000 < cost[1] - cost[0] < 70_000


def test_a_dead_hypervisor_serves_nothing_until_it_is_back():
    dead = outcome_of("DMA", "dead:hypervisor@5ms+10ms")
    assert 0.3 < dead["ops"] / outcome_of("DMA")["ops"] < 0.7
    assert dead["latency_ns"]["unmap"]["max"] > 9e6
    assert dead["conservation"]["holds"]


@pytest.mark.parametrize("fault", ["dead:hypervisor@5ms", "drop:completion@5ms"])
def test_who_never_gets_an_answer_does_not_hang_the_machine(fault):
    result = outcome_of("DMA", fault, seconds=10.0, machine_cpus=1)
    assert result["died"] == "cpu 0 waits for ever for an answer of the hypervisor"
    assert result["ops"] > 0


def test_completions_in_another_order_harm_nothing():
    result = outcome_of("DMA-FQ", "reorder:completion:1/3", machine_cpus=4)
    assert result["hypervisor"]["completions"]["reordered"] > 10
    assert result["violations"] == 0
    assert result["conservation"]["holds"]


def test_a_completion_that_comes_twice_ends_a_flush_that_has_not_begun():
    result = outcome_of("DMA", "duplicate:completion:1/5", machine_cpus=3)
    assert result["hypervisor"]["completions"]["duplicated"] > 0
    assert result["violations_by_kind"]["flushes_not_done"] > 0


def test_a_late_timer_keeps_pages_reachable_for_longer():
    sound, late = outcome_of("DMA-SQ", domain_fq_size=32768), outcome_of(
        "DMA-SQ", "late:timer:8ms", domain_fq_size=32768
    )  # fmt: skip
    assert late["exposure"]["max_ns"] > sound["exposure"]["max_ns"] + 4e6


def test_an_early_timer_fires_more_often():
    sound, early = (outcome_of("DMA-SQ", *faults, domain_fq_size=32768) for faults in ((), ("early:timer:2ms",)))
    assert early["flushes"]["timeout"] > sound["flushes"]["timeout"]
    assert early["violations"] == 0


def test_the_same_faults_give_the_same_run():
    faults = ("jitter:hypervisor:20us", "reorder:completion:1/7", "dead:hypervisor@3ms+1ms")
    assert outcome_of("DMA-FQ", *faults) == outcome_of("DMA-FQ", *faults)


def test_another_seed_chooses_other_completions():
    runs = [outcome_of("DMA", "reorder:completion:1/5", machine_seed=seed, machine_cpus=3) for seed in (1, 2)]
    assert runs[0]["hypervisor"] != runs[1]["hypervisor"]


RECORDED = {"machine_record": True, "machine_engine": "processes", "machine_seconds": 0.1}


def test_an_event_ring_that_is_too_small_loses_and_counts_and_never_blocks(tmp_path):
    result = outcome_of("DMA", "small-event-ring:2", record_to=tmp_path, **RECORDED)
    assert result["events"]["lost"] > result["events"]["recorded"] > 0
    assert result["ops"] > 100


def test_a_full_disk_ends_recording_and_not_the_run(tmp_path):
    result = outcome_of("DMA", "disk-full:log@30ms", record_to=tmp_path, **RECORDED)
    assert any("No space left on device" in text for text in result["warnings"])
    assert result["events"]["lost"] > 0
    assert result["conservation"]["holds"]
