"""Loads whose phases are timed, on the machine's own clocks and on virtual ones.

A probe runs on one CPU, with a mark before and after every phase. Its maps and unmaps are the same on both engines, so
what a phase takes on the one can be explained by what happens in it on the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emu.config import Config, DomainType, load
from emu.machine.cpu import cpu_main
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine
from emu.machine.recording import Recording
from emu.machine.supervisor import MachineError, run_machine
from emu.native.cost import COSTS
from emu.workload.build import build_workload
from emu.workload.program import OP_MAP, OP_MARK, OP_UNMAP, Program, Workload, op_t

Numbers = npt.NDArray[np.float64]

_UNIT_NS = 1.0
_NEVER_MS = 3_600_000.0


class Probe(NamedTuple):
    """One load, of which every phase is timed.

    Attributes:
        name: what it is about.
        domain: the scheme.
        pages: of each mapping; 0 for the load `nvme` as it comes.
        pairs: maps of a phase, and unmaps of the next; of the load `nvme`, pairs of a phase.
        warm_up: rounds until all repeats; not timed.
        rounds: rounds that are timed.
        options: of the description.
    """

    name: str
    domain: DomainType
    pages: int
    pairs: int
    warm_up: int
    rounds: int
    options: dict[tuple[str, str], Any] = {}  # noqa: RUF012 - never written

    @property
    def is_load(self) -> bool:
        """Whether it is the load `nvme` as it comes."""
        return self.pages == 0


_SMALL = {("domain", "aperture_mb"): 16}
_RING = {**_SMALL, ("domain", "fq_size"): 256, ("domain", "fq_timeout_ms"): _NEVER_MS}
_NEVER = {("domain", "fq_timeout_ms"): _NEVER_MS}
_ROOM = {("domain", "aperture_mb"): 256}
_UNCHECKED = {("machine", "check"): False}
_SERVED = {
    **_SMALL,
    **{("hypervisor", key): value for key, value in (("service", "process"), ("intercept_ns", 2000.0))},
}

PHASES = (
    Probe("no translation", "identity", 1, 64, 1, 4),
    # Rounds of 51 fill a ring of 255 in whole rounds: phases with a flush and phases without come in turn.
    Probe("queue, 1 page", "DMA-FQ", 1, 51, 15, 10, _RING),
    Probe("queue, 8 pages", "DMA-FQ", 8, 51, 15, 10, _RING),
    Probe("queue, 8 pages, unchecked", "DMA-FQ", 8, 51, 15, 10, _RING | _UNCHECKED),
    Probe("strict, 1 page", "DMA", 1, 32, 4, 4, _SMALL),
    Probe("queue, 32 pages, unchecked", "DMA-FQ", 32, 51, 15, 10, _RING | _UNCHECKED | _ROOM),
    Probe("queue, 33 pages, from the tree", "DMA-FQ", 33, 51, 15, 10, _RING | _UNCHECKED | _ROOM),
    Probe("old s390, 1 page", "s390-lazy", 1, 64, 128, 64, _SMALL),
)
# Working sets as large as they are by default: tables and rings that do not fit into the caches are dearer.
LOADS = (
    Probe("nvme, identity", "identity", 0, 255, 1, 20),
    Probe("nvme, DMA", "DMA", 0, 64, 4, 10, _ROOM),
    Probe("nvme, DMA-FQ", "DMA-FQ", 0, 255, 10, 20, _ROOM | _NEVER),
    Probe("nvme, DMA-SQ", "DMA-SQ", 0, 1057, 62, 31, {("domain", "aperture_mb"): 1024, **_NEVER}),
    # Once through all addresses before it is timed, and about once while it is.
    Probe("nvme, s390-lazy", "s390-lazy", 0, 512, 128, 128, {("domain", "aperture_mb"): 1024}),
)
SERVED = Probe("strict, served by a process", "DMA", 1, 1, 20, 60, _SERVED)


def probe_config(probe: Probe, engine: str, costs_ns: dict[str, float]) -> Config:
    """The description of a probe's machine; steps without a cost take no time."""
    given = {
        ("machine", "cpus"): 1,
        ("machine", "engine"): engine,
        ("domain", "types"): [probe.domain],
        **probe.options,
        **{("costs", f"{name}_ns"): costs_ns.get(name, 0.0) for name in COSTS},
    }
    return load(preset="lpar", overrides=[(*place, value) for place, value in given.items()])


def probe_workload(probe: Probe, config: Config) -> Workload:
    """The load: a mark before and after every timed phase, two in a row at the start to time a mark itself."""
    workload = build_workload(config)
    ops = _as_load(probe, workload) if probe.is_load else _in_phases(probe)
    slots = max(probe.pairs, workload.slots)
    return Workload("probe", [Program(ops, len(ops))], slots, workload.segments, ["probe"], workload.max_pages)


def _mark() -> npt.NDArray[Any]:
    mark = np.zeros(1, op_t)
    mark["code"] = OP_MARK
    return mark


def _in_phases(probe: Probe) -> npt.NDArray[Any]:
    maps = np.zeros(probe.pairs, op_t)
    maps["code"] = OP_MAP
    maps["pages"] = probe.pages
    maps["nents"] = 1
    maps["slot"] = np.arange(probe.pairs)
    unmaps = maps.copy()
    unmaps["code"] = OP_UNMAP
    return np.concatenate(
        [*[maps, unmaps] * probe.warm_up, _mark(), _mark(), *[maps, _mark(), unmaps, _mark()] * probe.rounds]
    )


def _as_load(probe: Probe, workload: Workload) -> npt.NDArray[Any]:
    """The load as it comes, with marks."""
    program = workload.programs[0]
    prologue, loop = program.ops[: program.loop_start], program.ops[program.loop_start :]
    phases = probe.warm_up + probe.rounds
    body = np.resize(loop, 2 * probe.pairs * phases).reshape(phases, -1)
    timed = [part for phase in body[probe.warm_up :] for part in (phase, _mark())]
    return np.concatenate([prologue, *body[: probe.warm_up], _mark(), _mark(), *timed])


def time_phases(probe: Probe) -> Numbers:
    """Run a probe once, on a machine of one CPU that is never started: its life is called here.

    The hypervisor serves inline and no timer fires.

    Returns:
        ns of every phase.
    """
    config = probe_config(probe, "processes", {})
    layout = Layout(config, probe.domain, probe_workload(probe, config), real_time=False)
    segment = layout.segment
    try:
        init_machine(segment.address("contexts", layout.supervisor))
        segment["control"][0].go = 1
        cpu_main(segment.address("contexts"))
        return _phases_ns(segment.copy_of("marks"))
    finally:
        segment.unlink()


def run_probe(config: Config, domain: DomainType, workload: Workload) -> Recording:
    """Run a load on a whole machine.

    Raises:
        MachineError: when it cannot be started, or a process died.
        KeyboardInterrupt: the user stopped it.
    """
    run = run_machine(config, domain, workload)
    if run.interrupted:
        raise KeyboardInterrupt
    if run.died:
        raise MachineError(run.died)
    return run.recording


def run_phases(probe: Probe, engine: str, costs_ns: dict[str, float]) -> Numbers:
    """Run a probe on a whole machine; returns ns of every phase. Errors as of run_probe()."""
    config = probe_config(probe, engine, costs_ns)
    return _phases_ns(run_probe(config, probe.domain, probe_workload(probe, config)).marks[0])


def _phases_ns(marks: npt.NDArray[Any]) -> Numbers:
    """Time of each phase, without the time of a mark, from the marks of one run."""
    # The last of the array is there for programs that have none.
    took = np.diff(marks["at_ns"][:-1].astype(np.float64))
    return took[1:] - took[0]


def count_steps(probe: Probe, steps: tuple[str, ...] = COSTS) -> tuple[Numbers, Numbers]:
    """How often each step occurs in each phase of a probe.

    Returns:
        counts, shape (phases, len(steps)); and ns of each phase that no step costs, but the emulated hypervisor.
    """
    emulated_ns = run_phases(probe, "sim", {})
    columns = [run_phases(probe, "sim", {name: _UNIT_NS}) - emulated_ns for name in steps]
    return np.stack(columns, axis=1) / _UNIT_NS, emulated_ns
