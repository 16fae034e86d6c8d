"""Measuring what the steps of emu.native.cost take on this machine, so that virtual clocks move as its own would.

No step is timed by itself. A probe is a load of maps and unmaps in phases; the real CPU runs it on a real layout, and
every phase is timed many times. The same probe on virtual clocks, where one step at a time costs something, says how
often each step occurs in each phase. So every phase is an equation: times of steps add up to the time measured. The
costs are those, none below 0, that meet all equations best by relative error; where code that costs something moves,
or a step is added, the equations follow.

What only happens between two processes is found in the same way: two CPUs that run the load `nvme` tell what a cache
line costs that another CPU had last, and a CPU with a hypervisor's process what it takes to wake each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba.core import config as numba_config

from emu.config import DomainType, MachineConfig, cores
from emu.machine.context import cpu_t
from emu.machine.probe import (
    LOADS,
    PHASES,
    SERVED,
    Numbers,
    Probe,
    count_steps,
    probe_config,
    run_phases,
    run_probe,
    time_phases,
)
from emu.machine.single_steps import look_often, take_often
from emu.machine.stretches import marked_load, uninterrupted_pairs_per_s
from emu.machine.supervisor import compile_machine
from emu.native.compile import compile_entries
from emu.native.cost import COSTS
from emu.native.lock import owner_word, spinlock_t

_PASSES = 5
_STRETCHES = 3
"""Machines of each probe in one pass. Each is a new one: where its memory lies can cost it a tenth."""
_LOAD_WEIGHT = 30.0
"""What a whole load counts, against a probe that is there to tell steps apart."""
_ROUNDS_OF_FIT = 2000
_BETWEEN_CPUS = ("transfer", "wake", "relax")


class CalibrationError(Exception):
    """This machine cannot be measured; the message is one line: what, where, what to do."""


@dataclass(slots=True)
class Calibration:
    """What was measured.

    Attributes:
        costs_ns: name of a step → ns, for every step that was measured.
        spread_ns: its lowest and highest value over the passes.
        operations: (probe's name, ns measured, ns that the costs add up to), each of one map+unmap pair.
        passes: how often everything was measured, in turns.
        not_measured: why the other steps were not.
    """

    costs_ns: dict[str, float]
    spread_ns: dict[str, tuple[float, float]]
    operations: list[tuple[str, float, float]]
    passes: int
    not_measured: dict[str, str] = field(default_factory=dict)


# --- from times to costs --------------------------------------------------------------------------------------------


class Equations(NamedTuple):
    """Of each phase of a probe: counts @ costs + emulated_ns = measured ns.

    Attributes:
        probe: which.
        counts: shape (phases, steps).
        emulated_ns: shape (phases,).
    """

    probe: Probe
    counts: Numbers
    emulated_ns: Numbers

    def weighted(self, measured_ns: Numbers) -> tuple[Numbers, Numbers]:
        """Coefficients and right side for relative errors: of every phase, or of a load, which is judged as a whole.

        All equations of one probe together are as heavy as the probe is to be.
        """
        counts, costly_ns = self.counts, measured_ns - self.emulated_ns
        if self.probe.is_load:
            sums = (counts, costly_ns, measured_ns)
            counts, costly_ns, measured_ns = (each.sum(axis=0, keepdims=True) for each in sums)
        weight = np.sqrt((_LOAD_WEIGHT if self.probe.is_load else 1.0) / len(measured_ns))
        scale = (weight / measured_ns)[:, None]
        return counts * scale, costly_ns * scale[:, 0]


def equations_of(probe: Probe) -> Equations:
    """Count the steps of a probe, but for those that nothing told from one CPU can be about."""
    steps = tuple(name for name in COSTS if name not in _BETWEEN_CPUS)
    counts, emulated_ns = count_steps(probe, steps)
    every = np.zeros((len(emulated_ns), len(COSTS)))
    every[:, [COSTS.index(name) for name in steps]] = counts
    return Equations(probe, every, emulated_ns)


def fit(coefficients: Numbers, values: Numbers) -> Numbers:
    """Least squares with no unknown below 0, by coordinates in turn; unknowns that do not occur become 0."""
    found = np.zeros(coefficients.shape[1])
    squares = (coefficients**2).sum(axis=0)
    occurring = np.flatnonzero(squares)
    error = values.copy()
    for _ in range(_ROUNDS_OF_FIT):
        for j in occurring:
            better = max(0.0, found[j] + coefficients[:, j] @ error / squares[j])
            error -= coefficients[:, j] * (better - found[j])
            found[j] = better
    return found


def typical(values: Numbers) -> Numbers:
    """Along the first axis, the median of the densest quarter: what most agree on, however far off the others are."""
    ordered = np.sort(values, axis=0)
    count = max(-(-len(ordered) // 4), 2)
    starts = np.argmin(ordered[count - 1 :] - ordered[: len(ordered) - count + 1], axis=0)
    densest = np.take_along_axis(ordered, starts + np.arange(count).reshape(-1, *[1] * starts.ndim), axis=0)
    return np.asarray(np.median(densest, axis=0))


# --- what has no load of its own ------------------------------------------------------------------------------------

_LOCKS_TAKEN = 2000
_LOOKS = 2000
_TIMES = 20


def time_looks() -> float:
    """The ns of one look at a word that does not change."""
    context = np.zeros(1, cpu_t)
    took = [look_often(context.ctypes.data, _LOOKS) / _LOOKS for _ in range(_TIMES)]
    return float(typical(np.array(took)))


def time_lock() -> float:
    """The ns of a lock taken and given back."""
    context, lock = np.zeros(1, cpu_t), np.zeros(1, spinlock_t)
    context["owner"] = owner_word(0, 1)
    took = [take_often(context.ctypes.data, lock.ctypes.data, _LOCKS_TAKEN) / _LOCKS_TAKEN for _ in range(_TIMES)]
    return float(typical(np.array(took)))


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


# --- between two processes ------------------------------------------------------------------------------------------

_TOGETHER: tuple[DomainType, ...] = ("DMA-FQ", "DMA-SQ", "s390-lazy")
_PAIRS_TOGETHER = {"processes": 200_000, "sim": 30_000}
"""On real clocks enough for some to be undisturbed."""
_TRANSFERS_NS = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_TOGETHER_S = 6.0
_SERVED_S = 4.0
_LONGEST_WAKE_NS = 200_000.0


def pairs_together(domain: DomainType, engine: str, costs_ns: dict[str, float]) -> float | None:
    """Pairs a second of two CPUs between flushes; None when they were interrupted all the time."""
    together = Probe(domain, domain, 0, 0, 0, 0, {("machine", "cpus"): 2, ("domain", "aperture_mb"): 1024})
    config = probe_config(together, engine, costs_ns)
    return uninterrupted_pairs_per_s(run_probe(config, domain, marked_load(config, _PAIRS_TOGETHER[engine])))


def _transfer(told: dict[DomainType, Numbers], measured: dict[DomainType, float]) -> float:
    """The cost with which virtual CPUs are as fast as real ones.

    Args:
        told: of each scheme, pairs a second with each of _TRANSFERS_NS.
        measured: of some of them, pairs a second on real clocks.
    """
    tried_ns = np.linspace(_TRANSFERS_NS[0], _TRANSFERS_NS[-1], 6401)
    errors = [np.log(np.interp(tried_ns, _TRANSFERS_NS, 1 / told[name]) * measured[name]) for name in measured]
    return float(tried_ns[np.argmin((np.array(errors) ** 2).sum(axis=0))])


def _add_transfer(found: Calibration) -> None:
    """Run two CPUs: what is slower than steps of one CPU explain is cache lines that go from one to the other."""
    if cores() < 2:
        found.not_measured["transfer"] = "it takes two cores"
        return
    told = {
        domain: np.array(
            [pairs_together(domain, "sim", {**found.costs_ns, "transfer": ns}) for ns in _TRANSFERS_NS], np.float64
        )
        for domain in _TOGETHER
    }
    passes: list[dict[DomainType, float]] = []
    every: dict[DomainType, list[float]] = {domain: [] for domain in _TOGETHER}
    until = time.monotonic() + _TOGETHER_S
    while any(len(pairs) < _PASSES for pairs in every.values()) and time.monotonic() < until:
        run = {domain: pairs_together(domain, "processes", {}) for domain in _TOGETHER}
        passes.append({domain: pairs for domain, pairs in run.items() if pairs})
        for domain, pairs in passes[-1].items():
            every[domain].append(pairs)
    # Whatever disturbs two CPUs makes them slower, also threads of one core and a host that moves them.
    usual = {domain: float(np.quantile(pairs, 0.75)) for domain, pairs in every.items() if pairs}
    measured = {domain: pairs for domain, pairs in usual.items() if np.isfinite(told[domain]).all()}
    if not measured:
        found.not_measured["transfer"] = "other programs never let two CPUs run at the same time; try when it is quiet"
        return
    found.costs_ns["transfer"] = _transfer(told, measured)
    of_each = [{d: pairs for d, pairs in one.items() if d in measured} for one in passes]
    found.spread_ns["transfer"] = _range([_transfer(told, one) for one in of_each if one])


def _add_wake(found: Calibration) -> None:
    """Time requests that a process serves: what neither steps nor emulation explain is waking, there and back."""
    if cores() < 2:
        found.not_measured["wake"] = "a CPU and a hypervisor need two cores"
        return
    counts, emulated_ns = count_steps(SERVED)
    known_ns = emulated_ns + counts @ np.array([found.costs_ns.get(name, 0.0) for name in COSTS])
    wakes = counts[:, COSTS.index("wake")]
    waits = wakes > 0
    runs: list[Numbers] = []
    until = time.monotonic() + _SERVED_S
    while len(runs) < _PASSES and time.monotonic() < until:
        took_ns = run_phases(SERVED, "processes", {})
        runs.append((took_ns - known_ns)[waits] / wakes[waits])
    wake_ns = max(float(typical(np.concatenate(runs))), 0.0)
    if wake_ns > _LONGEST_WAKE_NS:
        found.not_measured["wake"] = (
            f"other programs keep those who were woken from running for {wake_ns / 1e6:.1f} ms; try when it is quiet"
        )
        return
    found.costs_ns["wake"] = wake_ns
    found.spread_ns["wake"] = _range([max(float(typical(run)), 0.0) for run in runs])


# --- all of it ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pass:
    """What was measured in one pass, in ns.

    Attributes:
        phases: of each probe, shape (stretches, phases).
        lock, look: one of each.
    """

    phases: list[Numbers]
    lock: float
    look: float


def calibrate(
    *, on_compile: Callable[[int, int], None] | None = None, on_progress: Callable[[float], None] | None = None
) -> Calibration:
    """Measure every step that this machine can tell.

    Args:
        on_compile: told (functions compiled, functions known) while something is compiled.
        on_progress: told the fraction that is done.

    Raises:
        CalibrationError: when nothing can be measured here.
    """
    if numba_config.DISABLE_JIT:
        raise CalibrationError("NUMBA_DISABLE_JIT is set, so nothing is compiled; unset it to calibrate")
    progress = on_progress or (lambda _fraction: None)
    compile_machine(MachineConfig(engine="processes"), on_compile)
    compile_machine(MachineConfig(engine="sim"), on_compile)
    compile_entries((take_often, look_often), on_compile)
    probes = PHASES + LOADS
    equations, passes = [], []
    for done, probe in enumerate(probes):
        equations.append(equations_of(probe))
        progress((done + 1) / len(probes) / 2)
    for done in range(_PASSES):
        passes.append(_take_pass(equations))
        progress(0.5 + (done + 1) / _PASSES / 4)
    found = _result(equations, passes)
    _add_transfer(found)
    progress(0.95)
    _add_wake(found)
    found.costs_ns = {name: round(found.costs_ns[name], 2) for name in COSTS if name in found.costs_ns}
    progress(1.0)
    return found


def _take_pass(equations: list[Equations]) -> _Pass:
    with bound_to_one_core():
        phases = [np.stack([time_phases(each.probe) for _ in range(_STRETCHES)]) for each in equations]
        lock_ns, look_ns = time_lock(), time_looks()
    return _Pass(phases, lock_ns, look_ns)


@contextmanager
def bound_to_one_core() -> Iterator[None]:
    """Keep this process where it is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _solve(equations: list[Equations], passes: list[_Pass]) -> dict[str, float]:
    """The costs that meet all equations best; those of steps that nothing told are left out."""
    lock_ns = float(np.median([each.lock for each in passes]))
    systems = [
        each.weighted(typical(np.concatenate([one.phases[i] for one in passes]))) for i, each in enumerate(equations)
    ]
    systems.append((np.eye(len(COSTS))[[COSTS.index("lock")]] / lock_ns, np.ones(1)))
    coefficients, values = (np.concatenate(parts) for parts in zip(*systems, strict=True))
    told = dict(zip(COSTS, map(float, fit(coefficients, values)), strict=True))
    del told["wake"], told["transfer"]
    told["relax"] = float(np.median([each.look for each in passes]))
    return told


def _result(equations: list[Equations], passes: list[_Pass]) -> Calibration:
    costs_ns = _solve(equations, passes)
    each_ns = [_solve(equations, [one]) for one in passes]
    spread_ns = {name: _range([costs[name] for costs in each_ns if name in costs]) for name in costs_ns}
    found = Calibration(costs_ns, spread_ns, [], len(passes))
    of_steps = np.array([costs_ns.get(name, 0.0) for name in COSTS])
    for i, each in enumerate(equations):
        pairs = each.probe.pairs * each.probe.rounds
        measured_ns = typical(np.concatenate([one.phases[i] for one in passes])).sum() / pairs
        added_ns = (each.counts @ of_steps + each.emulated_ns).sum() / pairs
        found.operations.append((each.probe.name, float(measured_ns), float(added_ns)))
    return found
