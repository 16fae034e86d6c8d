"""Processes die, on purpose: their locks find other owners, their work is done by others, and the books balance."""

import pytest

from emu.native.segment import sweep
from tests.machine.machines import run

SMALL = {"domain_aperture_mb": 256, "domain_iova_ranges": 1 << 16, "domain_fq_size": 64}
RECOVERED = {"machine_on_death": "continue", "machine_restart": ["hypervisor", "timer"]}


def outcome_of(domain, *faults, **options):
    """A machine of three CPUs whose processes die by these faults."""
    small = SMALL if domain in ("DMA-FQ", "DMA-SQ") else {k: v for k, v in SMALL.items() if k != "domain_fq_size"}
    options = {"machine_cpus": 3, "machine_seconds": 0.4, **small, **RECOVERED, **options}
    result = run(domain, machine_faults=list(faults), **options).run
    assert not sweep()
    return result


def is_whole(result):
    """Nothing handed out twice, and nothing lost but what the dead can have had in hand."""
    return result["violations"] == 0 and result["conservation"]["holds"]


def test_the_others_go_on_without_a_dead_cpu():
    result = outcome_of("DMA-FQ", "kill:cpu1@0.1s", machine_ops=300_000, machine_seconds=None)
    (death,) = result["deaths"]
    assert (death["role"], death["cause"], death["recovered"]) == ("cpu 1", "was killed by SIGKILL", True)
    assert death["fault"] == "kill:cpu1@0.1s"
    assert result["died"] is None
    # Those who live do all of their work, the dead do not.
    alive, dead, also_alive = result["pairs_by_cpu"]
    assert alive == also_alive == 100_000 > dead > 0
    assert is_whole(result), result["conservation"]


def test_a_dead_cpus_magazines_go_back_to_the_tree_and_its_ring_is_drained():
    result = outcome_of("DMA-FQ", "kill:cpu1@0.1s", domain_fq_timeout_ms=5.0)
    # At most what the last timer had not come to.
    assert result["conservation"]["queued"] < 3 * 64
    assert result["conservation"]["ranges_left"] <= result["conservation"]["overrun"] + 3


@pytest.mark.parametrize(
    ("lock", "domain", "options"),
    [
        ("iova_fq.lock", "DMA-SQ", {}),
        ("iova_cpu_rcache.lock", "DMA-FQ", {}),
        ("iova_rcache.lock", "DMA-FQ", {}),
        ("iova_rbtree_lock", "DMA-FQ", {"workload_name": "map_benchmark", "workload_granule": 64}),
        ("hypervisor.lock", "DMA", {"hypervisor_service": "inline"}),
    ],
)
def test_a_lock_whose_owner_dies_is_repaired_and_taken_over(lock, domain, options):
    result = outcome_of(domain, f"kill:cpu*@holding:{lock}", **options)
    for death in result["deaths"]:
        assert lock.replace("hypervisor.lock", "hypervisor lock") in death["held"]
        assert death["recovered"], death["then"]
    # Where nobody came for the lock in time, the run says so.
    assert result["deaths"] or any("the load ended before" in text for text in result["warnings"])
    assert is_whole(result), result["conservation"]
    assert all(handover["ns"] < 2e9 for death in result["deaths"] for handover in death["handovers"])


def test_a_hypervisor_started_anew_serves_what_its_predecessor_had_in_hand():
    result = outcome_of("DMA", *(f"kill:hypervisor@{ms}ms" for ms in range(50, 300, 50)))
    # Of two kills that come to the same process, as they do where a start takes long, it dies once.
    assert 2 <= len(result["deaths"]) <= 5
    assert all(death["recovered"] for death in result["deaths"])
    assert is_whole(result), result["conservation"]
    # Every map and every unmap of a strict domain is a request, and each was served, or is one of the few served twice.
    requests = sum(result["counters"][name] for name in ("Sync Map RPCITs", "Sync RPCITs", "Global RPCITs"))
    assert 0 <= requests - result["hypervisor"]["requests"] <= 3
    assert result["ops"] > 1000


def test_a_timer_started_anew_fires_again():
    result = outcome_of("DMA-SQ", "kill:timer@0.1s", domain_fq_timeout_ms=5.0, domain_fq_size=32768)
    assert result["deaths"][0]["recovered"]
    assert result["flushes"]["timeout"] > 5
    assert is_whole(result), result["conservation"]


def test_without_leave_to_go_on_the_machine_stops_and_says_so():
    result = outcome_of("DMA", "kill:cpu1@0.1s", machine_on_death="stop")
    assert result["deaths"][0]["then"] == "the machine stopped: on_death is stop"
    assert "cpu 1" in result["died"]
    assert is_whole(result), result["conservation"]


def test_a_machine_whose_cpus_wait_for_each_other_stops_with_one():
    result = outcome_of("DMA", "kill:cpu1@0.1s", workload_completion="other")
    assert "other CPUs wait for its mappings" in result["died"]


def test_a_machine_stops_where_the_dead_held_what_is_not_repaired():
    result = outcome_of("s390-lazy", "kill:cpu*@holding:iommu_bitmap_lock")
    if result["deaths"]:
        assert "iommu_bitmap_lock" in result["died"]
        assert result["violations"] == 0
        assert result["conservation"] is None


def test_a_stopped_process_goes_on_and_nothing_is_lost():
    result = outcome_of("DMA-FQ", "stop:cpu0@50ms+0.1s", "stop:timer@0.1s+0.1s", "stop:hypervisor@0.2s+50ms")
    assert result["deaths"] == []
    assert is_whole(result), result["conservation"]


def test_a_cpu_that_is_stopped_in_a_locks_section_keeps_those_waiting_who_come_for_it():
    result = outcome_of("DMA-SQ", "stop:cpu*@holding:iova_fq.lock+0.1s", machine_seconds=0.6)
    assert result["deaths"] == []
    assert is_whole(result), result["conservation"]
    (lock,) = [lock for lock in result["locks"] if lock["name"] == "iova_fq.lock"]
    # Where nobody came for the lock in time, the run says so.
    assert lock["max_wait_ns"] > 0.09e9 or any("the load ended before" in text for text in result["warnings"])


def test_the_driver_can_be_unbound_after_a_death():
    timeline = [{"at_s": 0.2, "driver": "unbind"}, {"at_s": 0.25, "type": "DMA-SQ"}, {"at_s": 0.3, "driver": "bind"}]
    result = outcome_of("DMA", "kill:cpu1@0.1s", machine_timeline=timeline, machine_seconds=0.6)
    assert [switch["errno"] for switch in result["switches"]] == [None] * 3
    assert is_whole(result), result["conservation"]
