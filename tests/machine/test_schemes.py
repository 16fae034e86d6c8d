"""Every scheme, engine and number of CPUs: what went in comes out, and nothing is handed out twice."""

import gc

import numpy as np
import psutil
import pytest

from emu.iommu.tracepoints import EVENT_MAP, EVENT_UNMAP
from emu.native.events import read_events
from tests.machine.machines import DOMAINS, run

QUEUED = {"DMA-FQ", "DMA-SQ"}
PAIRS = 3000


def small_queue(domain):
    return {"domain_fq_size": 64} if domain in QUEUED else {}


def assert_sound(outcome, domain):
    result = outcome.run
    assert outcome.died is None
    assert result["violations"] == 0
    assert result["checked"]
    sums = result["conservation"]
    assert sums["holds"], sums
    assert sums["mapped_pages"] - sums["unmapped_pages"] == sums["live_pages"]
    assert sums["queued"] + sums["reclaimed"] + sums["overrun"] == sums["unmapped"]
    assert sums["table_pages_left"] == 0
    if domain == "identity":
        assert set(result["counters"].values()) == {0}


@pytest.mark.parametrize(
    ("engine", "cpus"),
    [("processes", 1), ("processes", 3), ("processes", 16), ("threads", 2), ("sim", 1), ("sim", 4), ("sim", 64)],
)
@pytest.mark.parametrize("domain", DOMAINS)
def test_what_is_mapped_is_unmapped_reclaimed_or_still_there(domain, engine, cpus):
    outcome = run(
        domain,
        machine_cpus=cpus,
        machine_engine=engine,
        machine_ops=PAIRS,
        workload_queue_depth=4,
        **small_queue(domain),
    )
    assert_sound(outcome, domain)
    assert outcome.run["ops"] >= PAIRS
    assert outcome.run["map_failures"] == 0


@pytest.mark.parametrize("workload", ["map_benchmark", "nic", "nvme", "ism"])
@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy"])
def test_every_load_is_sound_on_every_scheme(domain, workload):
    options = {"machine_cpus": 3, "machine_ops": PAIRS, "workload_name": workload, **small_queue(domain)}
    assert_sound(run(domain, **options), domain)


@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ"])
def test_requests_may_complete_on_another_cpu(domain):
    outcome = run(domain, machine_cpus=4, machine_ops=PAIRS, workload_completion="other", domain_fq_size=64)
    assert_sound(outcome, domain)


def test_strict_flushes_once_for_every_unmap():
    result = run("DMA", machine_cpus=2, machine_ops=PAIRS).run
    assert result["counters"]["Sync RPCITs"] == result["unmaps"]
    assert result["counters"]["Global RPCITs"] == 0
    assert result["counters"]["Sync Map RPCITs"] == result["maps"]


def test_without_a_shadowing_hypervisor_a_map_needs_no_flush():
    result = run("DMA-SQ", preset="lpar", machine_cpus=2, machine_ops=PAIRS, hypervisor_shadows=False).run
    assert result["counters"]["Sync Map RPCITs"] == 0
    assert result["conservation"]["holds"]


def test_a_single_queue_flushes_far_more_rarely_than_queues_of_each_cpu():
    options = {"machine_cpus": 2, "machine_ops": 100_000}
    single = run("DMA-SQ", **options).run
    percpu = run("DMA-FQ", **options).run
    rate = {r["domain"]: r["counters"]["Global RPCITs"] / r["unmaps"] for r in (single, percpu)}
    assert 0 < rate["DMA-SQ"] <= rate["DMA-FQ"] / 20


def test_the_old_scheme_flushes_only_when_its_pointer_wraps():
    result = run("s390-lazy", machine_cpus=2, machine_ops=20_000, domain_aperture_mb=16).run
    assert result["flushes"]["wrap"] == result["counters"]["Global RPCITs"] > 0
    assert result["conservation"]["holds"]
    assert result["exposure"]["windows"] > 0


def test_a_queue_that_finds_no_memory_falls_back_to_strict_with_the_kernels_warning():
    outcome = run("DMA-FQ", machine_cpus=2, machine_ops=1000, domain_fq_memory_mb=0)
    assert outcome.run["fell_back_to_strict"]
    assert outcome.run["counters"]["Sync RPCITs"] == outcome.run["unmaps"]
    assert any("iova flush queue initialization failed" in warning for warning in outcome.warnings)


def test_overruns_lose_whole_rings_and_waiting_loses_nothing():
    options = {
        "machine_cpus": 4,
        "machine_ops": 40_000,
        "domain_fq_size": 4,
        "hypervisor_intercept_ns": 20_000.0,
        "preset": "lpar",
        "hypervisor_shadows": False,
        "hypervisor_service": "process",
    }
    kernel = run("DMA-FQ", **options).run
    assert kernel["overrun_iovas"] == 4 * kernel["overruns"]
    assert kernel["conservation"]["holds"]
    waiting = run("DMA-FQ", domain_on_overrun="wait", **options).run
    assert waiting["overruns"] == waiting["overrun_iovas"] == 0
    assert waiting["conservation"]["holds"]


def test_several_servers_serve_the_same_load():
    result = run("DMA", machine_cpus=4, machine_ops=PAIRS, hypervisor_servers=3).run
    assert result["conservation"]["holds"]
    assert [row["role"] for row in result["processes"]].count("hypervisor 2") == 1
    assert result["hypervisor"]["requests"] == result["maps"] + result["unmaps"]


def test_a_cpu_may_serve_itself_under_the_hypervisors_lock():
    result = run("DMA", machine_cpus=2, machine_ops=PAIRS, hypervisor_service="inline").run
    assert result["hypervisor"]["requests"] == result["maps"] + result["unmaps"]
    assert any(lock["name"] == "hypervisor lock" for lock in result["locks"])
    assert not any("hypervisor" in row["role"] for row in result["processes"])


def test_recorded_events_are_written_or_counted_as_lost(tmp_path):
    result = run("DMA", machine_cpus=2, machine_ops=PAIRS, machine_record=True, record_to=tmp_path).run
    written = np.concatenate([read_events(path) for path in tmp_path.glob("events-*.bin")])
    assert len(written) == result["events"]["recorded"]
    operations = np.isin(written["code"], (EVENT_MAP, EVENT_UNMAP)).sum()
    assert operations <= result["maps"] + result["unmaps"] <= operations + result["events"]["lost"]


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_a_machine_that_has_run_keeps_no_memory_even_if_nobody_collects_garbage(engine):
    def mapped():
        return psutil.Process().memory_info().vms

    def run_one():
        run("DMA-FQ", machine_engine=engine, machine_ops=200, domain_aperture_mb=4096)

    run_one()
    gc.disable()
    try:
        before = mapped()
        for _ in range(3):
            run_one()
        assert mapped() - before < 4096 << 10
    finally:
        gc.enable()
