"""One run from description to result: a machine, then what its recording says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.analysis.deaths import handovers
from emu.analysis.function_result import function_result
from emu.analysis.machine_log import Clock, Entry, log_entries
from emu.analysis.run_result import run_result
from emu.config import Config, DomainType
from emu.machine.event_writer import EventCollector
from emu.machine.policy import policy_of
from emu.machine.recording import Recording
from emu.machine.supervisor import MachineError, compile_machine
from emu.machine.supervisor import run_machine as _run_machine
from emu.workload.build import build_workload
from emu.workload.program import Workload

__all__ = [
    "DeathError",
    "EventCollector",
    "MachineError",
    "Outcome",
    "compile_machine",
    "policy_of",
    "run_machine",
    "run_whole",
]


class DeathError(Exception):
    """A process of a machine died, so that nothing was measured."""


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        run: one element of `runs` in summary.json.
        died: who died of what, when a process of the machine died, else None.
        interrupted: the user stopped it.
        warnings: sentences for the user.
    """

    run: dict[str, Any]
    died: str | None
    interrupted: bool
    warnings: list[str] = field(default_factory=list)


def run_machine(
    config: Config,
    domain: DomainType,
    workload: Workload,
    *,
    real_time: bool = False,
    record_to: Path | None = None,
    collect_in: EventCollector | None = None,
    control_in: Path | None = None,
    on_compile: Callable[[int, int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run one load on one domain; arguments and errors as in emu.machine.supervisor.run_machine."""
    machine = _run_machine(
        config,
        domain,
        workload,
        real_time=real_time,
        record_to=record_to,
        collect_in=collect_in,
        control_in=control_in,
        on_compile=on_compile,
        on_progress=on_progress,
        on_event=on_event,
    )
    functions = [function_result(part, machine.deaths) for part in machine.functions]
    run = run_result(config, domain, workload, machine.recording, machine.deaths, functions)
    if on_event:
        for event, values in _log_of(machine.recording, is_virtual=config.machine.engine == "sim"):
            on_event(event, values)
        for violation in run["first_violations"]:
            on_event("violation", violation)
    run["switches"] = machine.switches
    run["died"] = machine.died
    run["deaths"] = machine.deaths
    run["lock_handover_ns"] = handovers(machine.deaths, machine.recording.tick_ns)
    run["interrupted"] = machine.interrupted
    run["warnings"] = machine.warnings
    return Outcome(run, machine.died, machine.interrupted, machine.warnings)


def run_whole(
    config: Config,
    *,
    collect_in: EventCollector | None = None,
    on_compile: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Run a machine of one domain, on its own load, whose result counts only if it comes to its end.

    Raises:
        MachineError: the machine cannot be made.
        DeathError: a process of it died.
        KeyboardInterrupt: the user stopped it.
    """
    (domain,) = config.domain.types
    outcome = run_machine(config, domain, build_workload(config), collect_in=collect_in, on_compile=on_compile)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.died:
        raise DeathError(f"{domain}: {outcome.died}; nothing was measured")
    return outcome


def _log_of(recording: Recording, *, is_virtual: bool) -> Iterator[Entry]:
    clock = Clock(recording.tick_ns, recording.start_ticks, recording.start_ns, is_virtual)
    pids = [int(pid) for pid in recording.contexts["pid"]]
    return log_entries(recording.log, clock, recording.names, pids)
