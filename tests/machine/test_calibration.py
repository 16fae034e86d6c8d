"""A calibration explains what was measured by steps, and a description that has its costs moves clocks by them."""

import math

import numpy as np
import pytest
from numba.core import config as numba_config

from emu.config import load
from emu.experiment import run_machine
from emu.machine import calibration
from emu.machine.calibration import CalibrationError, Equations, calibrate, fit, typical
from emu.machine.probe import LOADS, PHASES, SERVED, Probe, count_steps, time_phases
from emu.native.cost import COSTS
from emu.workload.build import build_workload
from tests.machine.machines import config_of

compiled = pytest.mark.skipif(bool(numba_config.DISABLE_JIT), reason="what is compiled is measured")

QUEUE = next(probe for probe in PHASES if probe.name == "queue, 8 pages")


def counts_of(probe: Probe, *steps: str) -> dict[str, list[float]]:
    counts, _ = count_steps(probe, steps)
    return {step: list(counts[:, i] / probe.pairs) for i, step in enumerate(steps)}


def virtual_ns(domain: str, *, pairs: int = 512, cpus: int = 1, **costs: float) -> int:
    """How long a machine without timers takes on virtual clocks."""
    options = {f"costs_{name}_ns": 0.0 for name in (*COSTS, "slack")} | {f"costs_{k}_ns": v for k, v in costs.items()}
    options |= {"machine_engine": "sim", "machine_cpus": cpus, "machine_ops": pairs, "workload_name": "map_benchmark"}
    if domain in ("DMA-FQ", "DMA-SQ"):
        options |= {"domain_fq_timeout_ms": 3_600_000.0, "domain_fq_size": 256}
    config = config_of(domain, preset="lpar", **options)
    return round(run_machine(config, domain, build_workload(config)).run["seconds"] * 1e9)


def test_every_step_has_a_cost_in_the_description():
    assert {f"{name}_ns" for name in COSTS} == set(type(load().costs).model_fields) - {"slack_ns"}


def test_default_costs_are_positive_but_for_waking():
    costs = load().costs.model_dump()
    assert [name for name, ns in costs.items() if ns <= 0] == ["wake_ns"]


@pytest.mark.parametrize(("step", "each"), [("map", 1), ("unmap", 1), ("map_page", 1), ("unmap_page", 1), ("queue", 1)])
def test_a_step_that_costs_more_makes_a_run_longer_by_exactly_that(step, each):
    pairs = 600
    assert virtual_ns("DMA-FQ", pairs=pairs, **{step: 50.0}) - virtual_ns("DMA-FQ", pairs=pairs) == 50 * pairs * each


def test_doubled_costs_take_twice_as_long():
    costs = {"map": 24.0, "unmap": 16.0, "lock": 4.0, "map_page": 2.0, "unmap_page": 2.0}
    once = virtual_ns("identity", **costs)
    assert virtual_ns("identity", **{name: 2 * ns for name, ns in costs.items()}) == 2 * once


def test_a_cache_line_costs_its_transfer_only_when_another_cpu_had_it():
    alone = virtual_ns("DMA-SQ", map=10.0)
    assert virtual_ns("DMA-SQ", map=10.0, transfer=100.0) == alone
    together = virtual_ns("DMA-SQ", cpus=2, map=10.0)
    assert virtual_ns("DMA-SQ", cpus=2, map=10.0, transfer=100.0) > together


def test_cpus_that_share_no_line_pay_no_transfer():
    assert virtual_ns("identity", cpus=2, map=10.0, transfer=1e6) == virtual_ns("identity", cpus=2, map=10.0)


def test_phases_count_the_steps_of_their_operations():
    counted = counts_of(QUEUE, "map", "unmap_page", "queue", "reclaim")
    maps, unmaps = slice(0, None, 2), slice(1, None, 2)
    assert set(counted["map"][maps]) == {1}
    assert set(counted["map"][unmaps]) == {0}
    assert set(counted["unmap_page"][unmaps]) == {8}
    assert set(counted["queue"][unmaps]) == {1}
    # A ring of 255 is freed as a whole, in every fifth round of 51.
    assert sorted(counted["reclaim"][unmaps]) == [0] * 8 + [5] * 2


def test_what_a_request_takes_is_not_counted_as_a_step():
    _, emulated_ns = count_steps(SERVED, ("unmap",))
    assert set(emulated_ns) == {0, 2000}


def test_all_probes_have_names_of_their_own():
    names = [probe.name for probe in (*PHASES, *LOADS, SERVED)]
    assert len(set(names)) == len(names)


@compiled
def test_real_phases_are_as_many_as_counted_ones():
    calibration.compile_machine(calibration.MachineConfig(engine="processes"))
    measured = time_phases(QUEUE)
    assert measured.shape == (2 * QUEUE.rounds,)
    assert np.isfinite(measured).all()


def test_a_fit_finds_the_costs_that_equations_were_made_of():
    rng = np.random.default_rng(1)
    counts, costs = rng.integers(0, 9, (40, 5)).astype(float), np.array([3.0, 0.0, 7.5, 1.0, 20.0])
    assert fit(counts, counts @ costs) == pytest.approx(costs, abs=1e-6)


def test_a_fit_is_never_negative():
    counts = np.array([[1.0, 1.0], [1.0, 0.0]])
    assert list(fit(counts, np.array([1.0, 2.0]))) == pytest.approx([1.5, 0.0])


def test_a_load_is_judged_as_a_whole_and_a_phase_by_itself():
    counts, emulated_ns = np.eye(len(COSTS))[:2], np.array([0.0, 4.0])
    phase = Equations(PHASES[0], counts, emulated_ns)
    load_ = Equations(LOADS[0], counts, emulated_ns)
    measured_ns = np.array([2.0, 8.0])
    assert len(phase.weighted(measured_ns)[1]) == 2
    coefficients, values = load_.weighted(measured_ns)
    assert values / coefficients[0, 0] == pytest.approx([6.0])


def test_disturbed_values_do_not_count():
    values = np.array([5.0, 5.1, 4.9, 5.0, 900.0, 1700.0, 80.0, 2600.0])
    assert typical(values) == pytest.approx(5.0, abs=0.1)


@compiled
def test_a_calibration_tells_every_step_with_two_cores_or_says_why_not(monkeypatch):
    monkeypatch.setattr(calibration, "LOADS", LOADS[:1])
    monkeypatch.setattr(calibration, "_PASSES", 1)
    monkeypatch.setattr(calibration, "_TOGETHER_S", 0.5)
    monkeypatch.setattr(calibration, "_SERVED_S", 0.5)
    fractions = []
    found = calibrate(on_progress=fractions.append)
    assert {*found.costs_ns, *found.not_measured} == set(COSTS)
    assert all(0 <= ns < 1e6 for ns in found.costs_ns.values())
    assert all(low <= high for low, high in found.spread_ns.values())
    # In one short pass, on a busy machine, what is measured may be anything; what the costs add up to may not.
    assert found.operations
    assert all(math.isfinite(added) for _, _, added in found.operations)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_interpreted_nothing_is_calibrated(monkeypatch):
    monkeypatch.setattr(numba_config, "DISABLE_JIT", True)
    with pytest.raises(CalibrationError, match="NUMBA_DISABLE_JIT"):
        calibrate()
