"""A capture replayed at its recorded times on virtual clocks, and put beside what the kernel did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from emu.addresses.aperture import aperture_of
from emu.addresses.compare import KINDS as COMPARED_KINDS
from emu.addresses.compare import AddressComparison, compare_addresses
from emu.analysis.attempts import compare_attempts, median_of
from emu.analysis.kernel_comparison import compare
from emu.analysis.verification import GLOBAL, Flushes, Verification, match_firings, settle_edges
from emu.capture.attempts import find_attempts
from emu.capture.counted import counted_from_trace
from emu.capture.counters import KernelCounters
from emu.capture.events import FQ_INIT_END
from emu.capture.flushes import (
    BY_FULL_RING,
    BY_TIMER,
    cost_of_freeing_ns,
    flushes_in,
    jiffies_granule_ns,
    jiffies_start_ns,
)
from emu.capture.ftrace import Capture
from emu.capture.queue_probes import recorded_overruns
from emu.config import Action, Config, CostsConfig, DomainType
from emu.experiment import Outcome
from emu.iommu.domain import DOMAIN_TYPES, FQ_DEFAULTS
from emu.iommu.tracepoints import EVENT_FLUSH, EVENT_FLUSH_TIMEOUT, EVENT_OVERRUN
from emu.machine.event_writer import EventCollector
from emu.native.virtual import PS, START_PS
from emu.workload.from_attempts import attempts_workload, possible_times
from emu.workload.from_capture import capture_workload, recorded_times
from emu.workload.program import Workload

_START_NS = START_PS // PS
_NS = 1_000_000_000


class Runner(Protocol):
    """Runs one domain and tells the user how far it is."""

    def __call__(
        self, config: Config, domain: DomainType, workload: Workload, *, collect_in: EventCollector
    ) -> Outcome:
        """As emu.experiment.run_machine, at recorded times."""


def verify_capture(
    capture: Capture,
    kernel: KernelCounters | None,
    config: Config,
    run: Runner,
    on_addresses: Callable[[float], None] | None = None,
    run_again: Runner | None = None,
) -> tuple[Verification, Outcome]:
    """Replay a capture at its recorded times and compare.

    Nothing costs time of its own: operations happen when they were recorded, flushes last as long, and a pending timer
    fires when and where it did. What is flushed, when a timer is pending, which ring is full and what is lost is left
    to the emulated kernel.

    Args:
        capture: with every map and unmap of every CPU.
        kernel: its description, or None.
        config: the machine; its first domain type is the one that is run.
        run: runs it.
        on_addresses: told the part of the addresses compared, 0 to 1; that comes after the run.
        run_again: runs what further runs there are to be; None for the same.
    """
    domain = config.domain.types[0]
    flushes = flushes_in(capture.events)
    config = _at_recorded_times(capture, config, domain, flushes)
    workload = capture_workload(capture, config.machine.cpus, as_probed=True)
    workload.recorded = recorded_times(capture)
    collector = EventCollector()
    outcome = run(config, domain, workload, collect_in=collector)
    found = _compare(capture, kernel, config, outcome, collector.events(), flushes)
    if domain in COMPARED_KINDS and not (outcome.interrupted or outcome.died):
        _add_addresses(found, capture, domain, _NS // config.machine.hz, on_addresses)
        _add_attempts(found, capture, domain, config, run_again or run)
    return found, outcome


def _default_timeout_ms(domain: DomainType, timeline: list[Action]) -> float:
    """Of the queue that the machine has, or comes to have; 0 when it never has one."""
    types = [domain, *(action.type for action in timeline if action.type)]
    return next((FQ_DEFAULTS[kind][1] for kind in map(DOMAIN_TYPES.get, types) if kind in FQ_DEFAULTS), 0)


def _at_recorded_times(capture: Capture, config: Config, domain: DomainType, flushes: npt.NDArray[np.void]) -> Config:
    """The description of a machine on which only what was recorded takes time."""
    start_ns = int(capture.events["time_ns"][0])
    timeline = _type_changes(capture, domain)
    tick_ns = _NS // config.machine.hz
    timeout_ms = config.domain.fq_timeout_ms or _default_timeout_ms(domain, timeline)
    granule_ns = jiffies_granule_ns(round(timeout_ms * 1e6), tick_ns)
    fired = flushes["timer_ns"][flushes["cause"] == BY_TIMER]
    jiffies_ns = (jiffies_start_ns(fired, granule_ns) - start_ns) % granule_ns - granule_ns
    free = dict.fromkeys(CostsConfig.model_fields, 0.0)
    free["reclaim_ns"] = cost_of_freeing_ns(flushes, capture.events)
    machine = {"engine": "sim", "record": True, "jiffies_start_ms": jiffies_ns / 1e6, "timeline": timeline}
    hypervisor = {"intercept_ns": 0.0, "walk_ns": 0.0, "change_ns": 0.0, "mapping_limit": 0, "queue_limit": 0}
    return config.model_copy(
        update={
            "machine": config.machine.model_copy(update=machine),
            "hypervisor": config.hypervisor.model_copy(update=hypervisor),
            "costs": CostsConfig(**free),
        }
    )


def _type_changes(capture: Capture, domain: DomainType) -> list[Action]:
    """What was done to the domain's type: on a live domain, or with the driver unbound, to a new one."""
    start_ns = int(capture.events["time_ns"][0])
    inits = capture.events["time_ns"][capture.events["kind"] == FQ_INIT_END]
    actions: list[Action] = []
    before = capture.domain_types[0][1] if capture.domain_types else ""
    lazy: DomainType = "DMA-SQ" if domain in ("DMA", "DMA-SQ") else domain
    for time_ns, name in capture.domain_types[1:]:
        wanted = lazy if name == "DMA-FQ" else "DMA"
        at_ns = time_ns
        earlier = inits[inits <= time_ns]
        if name == "DMA-FQ" and len(earlier):
            at_ns = int(earlier[-1])
        at_s = (at_ns - start_ns) / _NS
        if _is_live(capture, time_ns) and (before, name) == ("DMA", "DMA-FQ"):
            actions.append(Action(at_s=at_s, type=wanted))
        else:
            steps = ({"driver": "unbind"}, {"type": wanted}, {"driver": "bind"})
            actions += [Action.model_validate({"at_s": at_s, **step}) for step in steps]
        before = name
    return actions


def _is_live(capture: Capture, time_ns: int) -> bool:
    """Whether anything is mapped at a time."""
    event = int(np.searchsorted(capture.events["time_ns"], time_ns))
    mappings = capture.mappings
    unmapped = (mappings["unmap_event"] >= 0) & (mappings["unmap_event"] < event)
    return bool(((mappings["map_event"] < event) & ~unmapped).any())


def _compare(
    capture: Capture,
    kernel: KernelCounters | None,
    config: Config,
    outcome: Outcome,
    events: npt.NDArray[np.void],
    flushes: npt.NDArray[np.void],
) -> Verification:
    to_trace_ns = int(capture.events["time_ns"][0]) - _START_NS
    run = outcome.run
    notes = list(run["notes"])
    happened_ns = events["ticks"][events["code"] == EVENT_FLUSH] + to_trace_ns
    edges_ns = np.array([capture.events["time_ns"][change.event] for change in capture.phase_changes], np.int64)
    _note_flushes_by_phase(run, capture, happened_ns, edges_ns)
    comparison, moved = None, 0
    if kernel is not None:
        if not kernel.comparable:
            kernel = counted_from_trace(capture, kernel)
            notes.append("This kernel keeps no counters of a domain; those beside ours are counted from its trace.")
        types_seen = [name for _, name in capture.domain_types] if not config.machine.timeline else []
        comparison = compare(
            run, kernel, shadows=config.hypervisor.shadows, types_seen=types_seen, at_recorded_times=True
        )
        if comparison:
            comparison, moved = settle_edges(comparison, happened_ns, edges_ns)
    return Verification(
        capture=capture.name,
        kernel=kernel.kernel if kernel else None,
        domain=run["domain"],
        comparison=comparison,
        moved=moved,
        flushes=_flushes(capture, events, flushes, to_trace_ns, run),
        notes=notes,
    )


def _add_addresses(
    found: Verification,
    capture: Capture,
    domain: DomainType,
    tick_ns: int,
    on_progress: Callable[[float], None] | None,
) -> None:
    """Put the addresses in; those of the run itself are not the kernel's, as its CPUs' order within a µs is not."""
    compared = compare_addresses(capture, domain, tick_ns, on_progress=on_progress)
    if isinstance(compared, AddressComparison):
        found.iova = compared.as_dict()
    else:
        found.notes.append(compared)


def _add_attempts(found: Verification, capture: Capture, domain: DomainType, config: Config, run: Runner) -> None:
    """Where the kernel ran out of addresses: try what it tried again, in a space as small, and see what fails."""
    attempts = find_attempts(capture) if capture.paddrs is not None else None
    aperture = aperture_of(capture)
    if attempts is None or not attempts.failed or aperture is None:
        return
    if attempts.unclaimed_roll_backs:
        found.notes.append(
            f"{attempts.unclaimed_roll_backs} unmaps in process context belong to no request of a known pattern, so "
            "failed allocations were not tried again."
        )
        return
    space = {"aperture_start": aperture.start, "aperture_mb": aperture.mib, "reserved": list(aperture.reserved)}
    config = config.model_copy(update={"domain": config.domain.model_copy(update=space)})
    workload = attempts_workload(capture, attempts)
    compared = []
    for workload.recorded in possible_times(recorded_times(capture)):
        collector = EventCollector()
        if run(config, domain, workload, collect_in=collector).interrupted:
            return
        compared.append(compare_attempts(capture, attempts, collector.events()))
    found.attempts = {**median_of(compared), "replays": len(compared)}


def _note_flushes_by_phase(
    run: dict[str, Any], capture: Capture, happened_ns: npt.NDArray[np.int64], edges_ns: npt.NDArray[np.int64]
) -> None:
    """Count domain-wide flushes, which the timer does too, in the phases in which they happened."""
    names = ["(before)", *(change.name for change in capture.phase_changes)]
    counts = dict.fromkeys(names, 0)
    for place in np.searchsorted(edges_ns, happened_ns, side="right").tolist():
        counts[names[place]] += 1
    for phase in run["phases"]:
        phase["counters"][GLOBAL] = counts.get(phase["name"], 0)


def _flushes(
    capture: Capture,
    events: npt.NDArray[np.void],
    recorded: npt.NDArray[np.void],
    to_trace_ns: int,
    run: dict[str, Any],
) -> Flushes:
    timeouts = events[events["code"] == EVENT_FLUSH_TIMEOUT]
    kernel_ns = np.sort(recorded["timer_ns"][recorded["cause"] == BY_TIMER])
    firings, due, unmatched = match_firings(kernel_ns, timeouts["ticks"] + to_trace_ns, timeouts["b"] + to_trace_ns)
    full = recorded[recorded["cause"] == BY_FULL_RING]
    return Flushes(
        firings_ms=firings,
        due_ms=due,
        unmatched=unmatched,
        full_kernel=sorted(zip(full["cpu"].tolist(), full["unmaps"].tolist(), strict=True)),
        full_emu=sorted(_full_flushes(events)),
        overruns_kernel=recorded_overruns(capture),
        overruns_emu=[(int(e["cpu"]), int(e["a"]) + 1) for e in events[events["code"] == EVENT_OVERRUN]],
        overrun_iovas=run["overrun_iovas"],
    )


def _full_flushes(events: npt.NDArray[np.void]) -> list[tuple[int, int]]:
    """(CPU, number of its unmap) of each flush that no timer caused."""
    found, timed = [], set()
    for event in events[np.isin(events["code"], (EVENT_FLUSH_TIMEOUT, EVENT_FLUSH))].tolist():
        fields = dict(zip(events.dtype.names or (), event, strict=True))
        if fields["code"] == EVENT_FLUSH_TIMEOUT:
            timed.add(fields["cpu"])
        elif fields["cpu"] in timed:
            timed.discard(fields["cpu"])
        else:
            found.append((fields["cpu"], fields["a"] + 1))
    return found
