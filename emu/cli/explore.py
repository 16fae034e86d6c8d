"""`emu explore`: all interleavings of a small machine, and the shortest that breaks a promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from emu.cli.failure import FINE, INTERRUPTED, VIOLATION, Failure
from emu.cli.options import QuietOption, checked_policy, whole_number
from emu.config import QUEUED, DomainType
from emu.policy import PolicyError, read_policy

if TYPE_CHECKING:
    from emu.explore.bounds import Bounds
    from emu.explore.search import Limits

_ANY = "any"
_OPERATIONS = ("map", "unmap", "queue")


def explore(
    *,
    domain: Annotated[str, Parameter(help="Domain type: DMA, DMA-FQ or DMA-SQ; default DMA-FQ.")] = "DMA-FQ",
    cpus: Annotated[int, Parameter(converter=whole_number, help="Emulated CPUs, 1 to 6; default 2.")] = 2,
    ops: Annotated[int, Parameter(converter=whole_number, help="Unmaps of each CPU; default 3.")] = 3,
    program: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            metavar="OPERATIONS",
            help="What a CPU does, instead of unmaps: map, unmap and queue (the append to the queue alone), as in "
            '"map unmap"; repeat it for each CPU, or all do the same.',
        ),
    ] = None,
    fq_size: Annotated[
        int, Parameter(converter=whole_number, help="Entries of a ring, one of which stays empty; default 2.")
    ] = 2,
    on_overrun: Annotated[str, Parameter(help="An append to a full ring: kernel or wait; default kernel.")] = "kernel",
    with_timer: Annotated[
        int, Parameter(converter=whole_number, metavar="TIMES", help="The flush timer may fire so often; default 0.")
    ] = 0,
    timer_sleeps: Annotated[
        bool,
        Parameter(negative=(), help="A timer's process sleeps until a timer is armed; nobody may forget to wake it."),
    ] = False,
    switch: Annotated[str | None, Parameter(metavar="TYPE", help="This type is written to sysfs meanwhile.")] = None,
    granule: Annotated[int, Parameter(converter=whole_number, help="Pages of each mapping; default 1.")] = 1,
    magazine: Annotated[
        int, Parameter(converter=whole_number, help="IOVAs in a magazine of the allocator; default 4.")
    ] = 4,
    preset: Annotated[
        str, Parameter(help="Hypervisor: kvm shadows the tables, bare-metal does not; default kvm.")
    ] = "kvm",
    bug: Annotated[list[str] | None, Parameter(negative=(), help="As in emu run.")] = None,
    policy: Annotated[
        str | None, Parameter(metavar="FILE", help="A policy's Python file, or a name, as in emu run.")
    ] = None,
    memory: Annotated[
        str,
        Parameter(
            help="Order in which stores become visible: sc, at once; tso, through a store buffer; pso, in any order "
            "that barriers allow; default sc."
        ),
    ] = "sc",
    preemptions: Annotated[str, Parameter(help="Most in a schedule, or any; default 3.")] = "3",
    seconds: Annotated[float | None, Parameter(help="End the search after that time, in s.")] = None,
    schedules: Annotated[
        int | None, Parameter(converter=whole_number, help="End the search after that many schedules.")
    ] = None,
    shorten: Annotated[
        float,
        Parameter(metavar="SECONDS", help="How long to look for a shorter schedule once one violates; default 5."),
    ] = 5.0,
    schedule: Annotated[Path | None, Parameter(metavar="FILE", help="Run the schedule in this file again.")] = None,
    save: Annotated[Path | None, Parameter(metavar="FILE", help="Write the schedule that was found.")] = None,
    every_line: Annotated[
        bool, Parameter(negative=(), help="Show every line that touches shared memory, not those that matter.")
    ] = False,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Run every interleaving of a small machine and show the shortest that breaks a promise.

    The functions of the emulated kernel run unchanged, interpreted, each CPU a coroutine. Exit code 1 when one
    interleaving loses an IOVA, hands one out too early, deadlocks or the like; 0 when none within the bounds does.
    """
    if domain not in ("DMA", "DMA-FQ", "DMA-SQ"):
        raise Failure(f"--domain {domain}: DMA, DMA-FQ or DMA-SQ can be explored")
    if switch is not None and switch not in get_args(DomainType):
        raise Failure(f"--switch {switch}: must be {', '.join(get_args(DomainType))}")
    if memory not in ("sc", "tso", "pso"):
        raise Failure(f"--memory {memory}: must be sc, tso or pso")
    if fq_size < 2 or fq_size & (fq_size - 1):
        raise Failure(f"--fq-size {fq_size}: must be a power of two from 2 up")
    options = {
        "programs": _programs(program, cpus, ops),
        "domain": domain,
        "fq_size": fq_size,
        "on_overrun": on_overrun,
        "timer": with_timer,
        "sleeper": timer_sleeps,
        "switch": switch,
        "granule": granule,
        "magazine": magazine,
        "preset": preset,
        "bugs": tuple(bug or ()),
        "ordering": memory,
        "policy": None if policy is None else checked_policy(policy),
    }
    most = _most_preemptions(preemptions)
    if schedule and not schedule.is_file():
        raise Failure(f"--schedule {schedule}: no such file; --save writes one")
    if policy is not None and not QUEUED & {domain, switch}:
        raise Failure(f"--policy: a domain of type {domain} has no flush queue; explore DMA-FQ or DMA-SQ")
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        return _interpreted()
    if schedule:
        return _again(schedule, every_line=every_line)

    from emu.explore.search import Limits

    limits = Limits(preemptions=most, seconds=seconds, schedules=schedules, refine_s=shorten)
    return _search(_bounds(options), limits, save, every_line=every_line, as_json=json, quiet=quiet)


def _programs(program: list[str] | None, cpus: int, ops: int) -> tuple[tuple[str, ...], ...]:
    if not 1 <= cpus <= 6:
        raise Failure(f"--cpus {cpus}: 1 to 6 can be explored")
    if not 1 <= ops <= 64:
        raise Failure(f"--ops {ops}: must be 1 to 64")
    if not program:
        return (("unmap",) * ops,) * cpus
    split = tuple(tuple(text.replace(",", " ").split()) for text in program)
    for operations in split:
        for operation in operations:
            if operation not in _OPERATIONS:
                raise Failure(f"--program: {operation} is none of {', '.join(_OPERATIONS)}")
        if not operations:
            raise Failure('--program: needs at least one operation, as in --program "map unmap"')
        if "queue" in operations and set(operations) != {"queue"}:
            raise Failure("--program: queue stands alone: what it queues has been unmapped before")
    return split * cpus if len(split) == 1 else split


def _most_preemptions(text: str) -> int | None:
    if text == _ANY:
        return None
    if not text.isdigit():
        raise Failure(f"--preemptions {text}: must be a number, or {_ANY}")
    return int(text)


def _interpreted() -> int:
    """Do the same in a Python in which nothing is compiled, which numba decides when it is imported."""
    command = [sys.executable, "-m", "emu", *sys.argv[1:]]
    process = subprocess.Popen(command, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})  # noqa: S603 - ourselves
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It has been interrupted as well, and says how far it has come.
            continue


def _bounds(options: dict[str, Any]) -> Bounds:
    from emu.explore.bounds import Bounds, BoundsError
    from emu.explore.world import Ordering

    try:
        return Bounds(**{**options, "ordering": Ordering(options["ordering"])})
    except BoundsError as error:
        raise Failure(str(error)) from None


def _machine(bounds: Bounds) -> Any:
    from emu.config import ConfigError
    from emu.explore.machine import Machine

    try:
        return Machine(bounds)
    except ConfigError as error:
        raise Failure(str(error)) from None


def _search(bounds: Bounds, limits: Limits, save: Path | None, *, every_line: bool, as_json: bool, quiet: bool) -> int:
    from emu.explore.schedule import Schedule
    from emu.explore.search import Search
    from emu.report.exploration import as_data, print_result
    from emu.report.progress import ProgressBars

    machine = _machine(bounds)
    with ProgressBars(quiet=quiet) as bars, machine.ready():
        search = Search(machine.world, limits, bars.explored)
        try:
            result = search.run()
        except KeyboardInterrupt:
            result = search.interrupted()
    if as_json:
        import json

        print(json.dumps(as_data(bounds, limits, result), indent=2))
    else:
        print_result(bounds, limits, result, wrap_at=_width())
    if result.found:
        schedule = Schedule.of(
            bounds, result.found, machine.layout.segment.base, os.environ.get("EMU_MUTANT"), _key(machine)
        )
        page = _told(schedule, every_line=every_line)
        if not as_json:
            print()
            print("\n".join(page))
        if save:
            try:
                schedule.write(save, page)
            except OSError as error:
                raise Failure(f"cannot write {save}: {error.strerror}") from None
            print(f"\nSchedule: {save}", file=sys.stderr if as_json else sys.stdout)
        return VIOLATION
    return INTERRUPTED if result.stopped_by == "Ctrl-C" else FINE


def _key(machine: Any) -> str | None:
    return machine.policy.source.key if machine.policy else None


def _width() -> int:
    import shutil

    return shutil.get_terminal_size((110, 24)).columns


def _told(schedule: Any, *, every_line: bool) -> list[str]:
    """Run a schedule and lay it out; last what it came to."""
    from emu.report.interleaving import interleaving
    from emu.report.telling import Telling

    machine = _machine(schedule.bounds)
    machine.show(schedule)
    telling = Telling(machine, every_line=every_line)
    names = [cpu.name for cpu in machine.world.cpus]
    page = interleaving(telling.lines(), names, telling.titles, _width())
    violation = machine.world.violation
    return [*page, "", f"{violation.kind}: {violation.text}" if violation else "Nothing was violated."]


def _policy_key(named: str) -> str:
    try:
        return read_policy(named).key
    except PolicyError as error:
        raise Failure(str(error)) from None


def _again(path: Path, *, every_line: bool) -> int:
    from emu.explore.schedule import ScheduleError, read_schedule
    from emu.native.compile import source_key

    try:
        schedule = read_schedule(path)
    except ScheduleError as error:
        raise Failure(str(error)) from None
    mutant = os.environ.get("EMU_MUTANT")
    if schedule.mutant != mutant:
        needed = f"with EMU_MUTANT={schedule.mutant}" if schedule.mutant else "without EMU_MUTANT"
        raise Failure(f"{path} was found {needed}; run it so")
    if schedule.source != source_key():
        print(f"emu explore: {path} is of another version of the source; it may lead elsewhere", file=sys.stderr)
    if schedule.bounds.policy and schedule.policy != _policy_key(schedule.bounds.policy):
        print(f"emu explore: {schedule.bounds.policy} has been edited since; it may lead elsewhere", file=sys.stderr)
    page = _told(schedule, every_line=every_line)
    print("\n".join(page))
    return FINE if page[-1] == "Nothing was violated." else VIOLATION
