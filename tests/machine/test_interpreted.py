"""The same machine interpreted: every scheme runs as plain Python, on every engine, and its books balance."""

import pytest

from emu.native.atomics import interpreted
from tests.machine.machines import DOMAINS, run

pytestmark = pytest.mark.interpreted

PAIRS = 60 if interpreted else 2000


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_small_machine_runs_whether_compiled_or_not(domain, engine):
    queue = {"domain_fq_size": 8} if domain in ("DMA-FQ", "DMA-SQ") else {}
    result = run(
        domain,
        machine_cpus=2,
        machine_engine=engine,
        machine_ops=PAIRS,
        workload_queue_depth=2,
        domain_aperture_mb=64,
        domain_iova_ranges=4096,
        **queue,
    ).run
    assert result["ops"] >= PAIRS
    assert result["violations"] == 0
    assert result["conservation"]["holds"], result["conservation"]


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_a_machine_is_switched_and_its_driver_unbound_whether_compiled_or_not(engine):
    timeline = [
        {"at_s": 0.1, "type": "DMA-FQ"},
        {"at_s": 0.3, "driver": "unbind"},
        {"at_s": 0.3, "type": "DMA"},
        {"at_s": 0.3, "driver": "bind"},
        {"at_s": 0.4, "type": "DMA-SQ"},
    ]
    # As long as it takes: a busy machine comes late to each of them.
    result = run(
        "DMA",
        machine_cpus=2,
        machine_engine=engine,
        machine_seconds=3.0,
        machine_timeline=timeline,
        workload_queue_depth=2,
        domain_aperture_mb=64,
        domain_iova_ranges=4096,
    ).run
    assert [step["errno"] for step in result["switches"]] == [None] * 5
    assert result["type_at_end"] == "DMA-SQ"
    assert result["violations"] == 0
    assert result["conservation"]["holds"], result["conservation"]


@pytest.mark.parametrize("engine", ["processes", "sim"])
def test_the_machine_serves_itself_inline_whether_compiled_or_not(engine):
    options = {"machine_cpus": 2, "machine_engine": engine, "machine_ops": PAIRS, "domain_aperture_mb": 64}
    result = run("DMA", hypervisor_service="inline", **options).run
    assert result["conservation"]["holds"]
    assert result["hypervisor"]["requests"] == result["maps"] + result["unmaps"]
