"""When the host or the address space has no more to give: what each scheme does, counted, and nothing hangs."""

import pytest

from tests.machine.machines import run

QUEUES = ["DMA-FQ", "DMA-SQ"]
LAZY = [*QUEUES, "s390-lazy"]
STRICT = ["DMA", "s390-strict"]
SERVICES = ["process", "inline"]
LOAD = {"machine_cpus": 2, "machine_ops": 20_000, "workload_queue_depth": 16}
LARGE_BLOCKS = {"machine_cpus": 4, "machine_ops": 3000, "workload_block_kb": {512: 1.0}}
"""Live are at most 4 · 32 requests of 128 pages; full rings would hold 4 · 255, twice what the host does."""


def without_timer(domain):
    return {"domain_fq_timeout_ms": 10_000.0} if domain in QUEUES else {}


def assert_sound(outcome):
    result = outcome.run
    assert outcome.died is None
    assert result["violations"] == 0
    assert result["conservation"]["holds"], result["conservation"]


# The limit of the host.


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("domain", LAZY)
def test_every_lazy_scheme_exceeds_the_65535_mappings_of_kvm_and_every_map_succeeds(domain, service):
    outcome = run(domain, hypervisor_service=service, **without_timer(domain), **LARGE_BLOCKS)
    assert outcome.run["flushes"]["no_resources"] > 0
    assert outcome.run["map_failures"] == 0
    assert_sound(outcome)


@pytest.mark.parametrize("domain", STRICT)
def test_strict_schemes_never_do(domain):
    outcome = run(domain, **LARGE_BLOCKS)
    assert outcome.run["flushes"]["no_resources"] == 0
    assert outcome.run["map_failures"] == 0
    assert_sound(outcome)


def test_the_default_load_exceeds_them_with_the_single_queue():
    outcome = run("DMA-SQ", machine_cpus=2, machine_ops=30_000, **without_timer("DMA-SQ"))
    assert outcome.run["flushes"]["no_resources"] > 0
    assert outcome.run["map_failures"] == 0


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
@pytest.mark.parametrize("domain", LAZY)
def test_a_lower_limit_is_exceeded_more_often(domain, engine):
    # Live are at most 32 requests of 32 pages; the rest of what counts is unmapped and not yet flushed.
    outcome = run(domain, hypervisor_mapping_limit=1200, machine_engine=engine, **without_timer(domain), **LOAD)
    assert outcome.run["flushes"]["no_resources"] > 20
    assert outcome.run["map_failures"] == 0
    assert_sound(outcome)


def test_a_flush_for_resources_is_not_one_of_the_kernels_global_rpcits():
    result = run("DMA-SQ", hypervisor_mapping_limit=1200, **without_timer("DMA-SQ"), **LOAD).run
    assert result["counters"]["Global RPCITs"] == result["flushes"]["full"] + result["flushes"]["timeout"]
    assert (
        result["hypervisor"]["global_requests"]
        == result["counters"]["Global RPCITs"] + result["flushes"]["no_resources"]
    )


@pytest.mark.parametrize(
    ("service", "block_kb"),
    [("process", {4: 1.0}), ("inline", {4: 0.7, 16: 0.15, 64: 0.1, 128: 0.05})],
    ids=["process-4K", "inline-mixed"],
)
@pytest.mark.parametrize("domain", [*STRICT, *LAZY])
def test_a_limit_below_what_is_live_fails_maps_cleanly(domain, service, block_kb):
    outcome = run(
        domain,
        hypervisor_mapping_limit=64,
        hypervisor_service=service,
        machine_cpus=2,
        machine_ops=4000,
        workload_queue_depth=128,
        workload_block_kb=block_kb,
    )
    result = outcome.run
    assert result["map_failures"] > 0
    assert result["maps"] > 0
    assert result["ops"] + result["map_failures"] >= 4000
    assert_sound(outcome)


def test_without_a_limit_nothing_runs_out():
    result = run("DMA-SQ", hypervisor_mapping_limit=0, **LOAD).run
    assert result["flushes"]["no_resources"] == 0


# A hypervisor that answers busy.


@pytest.mark.parametrize("service", [{"servers": 1}, {"servers": 2}, {"service": "inline"}])
@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "s390-strict"])
def test_a_guest_that_is_answered_busy_loses_nothing(domain, service):
    hypervisor = {f"hypervisor_{key}": value for key, value in service.items()}
    outcome = run(
        domain,
        machine_cpus=8,
        machine_ops=2000,
        hypervisor_queue_limit=1,
        hypervisor_intercept_ns=20_000.0,
        **hypervisor,
    )
    result = outcome.run
    assert result["hypervisor"]["busy_retries"] > 0
    assert result["map_failures"] == 0
    assert result["ops"] >= 2000
    assert_sound(outcome)


def test_nobody_is_answered_busy_without_a_limit_to_the_queue():
    result = run("DMA", machine_cpus=8, machine_ops=2000, hypervisor_intercept_ns=20_000.0).run
    assert result["hypervisor"]["busy_retries"] == 0


def test_a_machine_whose_hypervisor_answers_busy_stops_in_time():
    outcome = run("DMA", machine_cpus=8, machine_seconds=0.2, hypervisor_queue_limit=1, hypervisor_intercept_ns=1e5)
    assert outcome.run["hypervisor"]["busy_retries"] > 0
    assert outcome.run["seconds"] < 5
    assert_sound(outcome)


# The address space.

SMALL = {
    "nvme": {"workload_queue_depth": 64},
    "map_benchmark": {"workload_granule": 200, "workload_hold_ns": 50_000.0},
}
"""What is wanted at a time does not fit into 256 pages."""


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
@pytest.mark.parametrize("workload", SMALL)
@pytest.mark.parametrize("domain", [*STRICT, *LAZY])
def test_a_small_aperture_fails_maps_and_the_load_survives(domain, workload, engine):
    outcome = run(
        domain,
        machine_cpus=4,
        machine_engine=engine,
        machine_ops=2000,
        domain_aperture_mb=1,
        workload_name=workload,
        **SMALL[workload],
    )
    result = outcome.run
    assert result["map_failures"] > 0
    assert result["maps"] > 0
    assert result["ops"] + result["map_failures"] >= 2000
    assert_sound(outcome)


@pytest.mark.parametrize("domain", ["DMA", *QUEUES])
def test_the_caches_are_emptied_before_a_map_fails(domain):
    result = run(domain, machine_cpus=4, machine_ops=2000, domain_aperture_mb=1, **SMALL["nvme"]).run
    assert result["rcache_flushes"] >= result["map_failures"] > 0


@pytest.mark.parametrize("domain", QUEUES)
def test_a_load_that_found_no_address_goes_on_when_a_flush_has_freed_some(domain):
    outcome = run(
        domain, machine_cpus=2, machine_seconds=0.5, domain_aperture_mb=1, domain_fq_timeout_ms=20.0, **SMALL["nvme"]
    )
    assert outcome.run["map_failures"] > 0
    assert outcome.run["flushes"]["timeout"] > 1
    # More than fits into the aperture at once.
    assert outcome.run["counters"]["Mapped pages"] > 256
    assert_sound(outcome)


def test_identity_needs_neither_host_nor_addresses():
    outcome = run("identity", hypervisor_mapping_limit=1, domain_aperture_mb=1, **LOAD)
    assert outcome.run["map_failures"] == 0
    assert_sound(outcome)
