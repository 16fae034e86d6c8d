"""`emu compare`: machines in turn, round by round, and how sure the differences between them are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from emu.cli.failure import DEATH, FINE, INTERRUPTED, VIOLATION, WRONG_CALL, Failure
from emu.cli.options import JsonOption, MachineOptions, QuietOption, overrides_of, whole_number

if TYPE_CHECKING:
    from emu.comparison import Compared, Question
    from emu.rounds import Candidate

_MACHINE = MachineOptions()
_ROUNDS = 12
_MOST_ROUNDS = 96
_LARGEST = 1000
_UNTIL = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%?", re.ASCII)


def compare(
    *machine_files: Annotated[
        Path, Parameter(name="MACHINE.toml", help="Descriptions of machines, each a candidate; options override them.")
    ],
    machine: MachineOptions = _MACHINE,
    workload: Annotated[str | None, Parameter(help="Load: map_benchmark, nvme, nic or ism; default nvme.")] = None,
    seconds: Annotated[float | None, Parameter(help="Run time of each run, in s; default 1.5.")] = None,
    ops: Annotated[
        int | None, Parameter(converter=whole_number, help="Map+unmap pairs over all CPUs, instead of --seconds.")
    ] = None,
    seed: Annotated[
        int | None, Parameter(converter=whole_number, help="Seed of everything random; each round adds 1; default 1.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            metavar="SECTION.KEY=V1,V2",
            help="Candidates that differ in a value, as in --vary domain.fq_size=256,1024; repeatable, then every "
            "combination.",
        ),
    ] = None,
    baseline: Annotated[
        str | None, Parameter(metavar="NAME", help="The candidate that others are compared with; default the first.")
    ] = None,
    repeat: Annotated[
        int | None,
        Parameter(converter=whole_number, help="Rounds; default 12. With --until rounds at most; default 96."),
    ] = None,
    until: Annotated[
        str | None,
        Parameter(
            metavar="PERCENT",
            help="Go on until every ratio is known to this, as in --until 2%; looked at after 12, 24, 48, … rounds.",
        ),
    ] = None,
    metric: Annotated[
        str,
        Parameter(help="What is compared: pairs, map-p50, map-p99, unmap-p50, unmap-p99 or exposure; default pairs."),
    ] = "pairs",
    out: Annotated[
        Path | None, Parameter(metavar="FOLDER", help="New or empty folder for every run and what they say.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Run several schemes or machines in turn, many times, and say how they differ, and how sure that is.

    Ratios are of the same round, whose order is drawn; equals are called different in 1 of 100 comparisons.
    """
    from emu.cli.candidates import candidates_of, parse_vary

    if machine.record:
        raise Failure("--record: a comparison keeps no events; record a run of one candidate with emu run")
    typed = overrides_of(machine, workload=workload, seconds=seconds, ops=ops, seed=seed)
    candidates = candidates_of(machine_files or (None,), typed, parse_vary(vary or ()), machine.costs)
    asked = question_of(candidates, baseline, repeat, until, metric)
    make_empty(out)
    found = answered(asked, out, quiet=quiet)
    for line in complaints(found):
        print(f"emu compare: {line}", file=sys.stderr)
    if json and found.summary:
        from emu.analysis.summary import as_json

        sys.stdout.write(as_json(found.summary))
    elif found.summary:
        from rich.console import Console

        from emu.report.comparison import print_comparison
        from emu.report.plain import plain

        console = Console(highlight=False)
        print_comparison(console, found.summary)
        if out and not found.problem:
            console.print(f"Results: {plain(str(out))}", soft_wrap=True)
    return exit_code(found, is_kept=out is not None)


def question_of(
    candidates: list[Candidate], baseline: str | None, repeat: int | None, until: str | float | None, metric: str
) -> Question:
    """What is to be found out, checked.

    Raises:
        Failure: an option is wrong.
    """
    from emu.analysis.comparison import METRICS
    from emu.analysis.paired import level_of, plan_of
    from emu.cli.candidates import index_of
    from emu.comparison import Question

    if metric not in METRICS:
        raise Failure(f"--metric {metric}: must be {', '.join(METRICS)}")
    part = _part(until)
    most = (_MOST_ROUNDS if part else _ROUNDS) if repeat is None else repeat
    if most > _LARGEST:
        raise Failure(f"--repeat: must be at most {_LARGEST}, not {most}")
    try:
        plan = plan_of(most, level_of(len(candidates) - 1), looks_on_the_way=part is not None)
    except ValueError as error:
        raise Failure(f"--repeat {most}: {error}") from None
    return Question(candidates, index_of(candidates, baseline), metric, plan, part)


def _part(until: str | float | None) -> float | None:
    """Of "2%" 0.02, as of 2."""
    if until is None:
        return None
    found = _UNTIL.fullmatch(str(until).strip())
    if not found or not 0 < float(found[1]) <= 100:
        raise Failure(f"--until {until}: needs percent, more than 0 and at most 100, as in --until 2%")
    return float(found[1]) / 100


def make_empty(out: Path | None) -> None:
    """Make the folder that the user named, if any.

    Raises:
        Failure: it cannot be used.
    """
    from emu.machine import run_folder

    if out is None:
        return
    try:
        run_folder.make_empty(out)
    except run_folder.RunFolderError as error:
        raise Failure(f"--out {error}") from None


def answered(asked: Question, out: Path | None, *, quiet: bool) -> Compared:
    """Run the rounds, with progress."""
    from emu.comparison import compare_candidates
    from emu.report.progress import ProgressBars

    with ProgressBars(quiet=quiet) as bars:
        return compare_candidates(
            asked,
            folder=out,
            on_compile=bars.compiled,
            on_progress=lambda part, rounds: bars.ran(f"{rounds} rounds", part),
        )


def complaints(found: Compared) -> list[str]:
    """Why the result is not what was asked for, a line each."""
    said = [f"{name}: violations were found; emu run tells which" for name in found.violated]
    if found.died:
        said.append(f"{found.died}; results are partial")
    if found.is_interrupted:
        said.append("interrupted; complete rounds are kept" if found.summary else "interrupted; no round is complete")
    return [*said, *(str(reason) for reason in (found.error, found.problem) if reason)]


def exit_code(found: Compared, *, is_kept: bool) -> int:
    """What the command ends with.

    Args:
        found: what came of it.
        is_kept: a folder was asked for.
    """
    if found.is_interrupted:
        return INTERRUPTED
    if found.error:
        return WRONG_CALL
    if found.died:
        return DEATH
    if found.violated:
        return VIOLATION
    return WRONG_CALL if is_kept and found.problem else FINE
