"""The host's limit of concurrent mappings: what is unmapped lazily counts against it until a flush."""

import pytest

from tests.machine.machines import run

LOAD = {"machine_cpus": 2, "machine_ops": 20_000, "workload_queue_depth": 16}


@pytest.mark.parametrize("service", ["process", "inline"])
@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ", "s390-lazy"])
def test_lazy_schemes_run_out_of_the_hosts_resources_and_every_map_succeeds(domain, service):
    # Live are at most 32 requests of 32 pages; the rest of what counts is unmapped and not yet flushed.
    queue = {} if domain == "s390-lazy" else {"domain_fq_timeout_ms": 10_000.0}
    result = run(domain, hypervisor_mapping_limit=1200, hypervisor_service=service, **queue, **LOAD).run
    assert result["flushes"]["no_resources"] > 0
    assert result["map_failures"] == 0
    assert result["violations"] == 0
    assert result["conservation"]["holds"]


@pytest.mark.parametrize("domain", ["DMA", "s390-strict"])
def test_strict_schemes_never_do(domain):
    result = run(domain, hypervisor_mapping_limit=1200, **LOAD).run
    assert result["flushes"]["no_resources"] == 0
    assert result["map_failures"] == 0


def test_a_flush_for_resources_is_not_one_of_the_kernels_global_rpcits():
    result = run("DMA-SQ", hypervisor_mapping_limit=1200, domain_fq_timeout_ms=10_000.0, **LOAD).run
    assert result["counters"]["Global RPCITs"] == result["flushes"]["full"] + result["flushes"]["timeout"]
    assert (
        result["hypervisor"]["global_requests"]
        == result["counters"]["Global RPCITs"] + (result["flushes"]["no_resources"])
    )


@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict"])
def test_a_limit_below_what_is_live_fails_maps_cleanly(domain):
    result = run(
        domain,
        hypervisor_mapping_limit=64,
        machine_cpus=2,
        machine_ops=4000,
        workload_queue_depth=128,
        workload_block_kb={4: 1.0},
    ).run
    assert result["map_failures"] > 0
    assert result["ops"] + result["map_failures"] >= 4000
    assert result["violations"] == 0
    assert result["conservation"]["holds"]


def test_without_a_limit_nothing_runs_out():
    result = run("DMA-SQ", hypervisor_mapping_limit=0, **LOAD).run
    assert result["flushes"]["no_resources"] == 0
