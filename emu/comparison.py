"""From candidates to a comparison: rounds until there are enough, and what they say; partial results are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from emu.analysis.comparison import METRICS, Judged, comparison, judge
from emu.analysis.environment import environment, scheduling_warnings
from emu.analysis.paired import Floats, Plan
from emu.analysis.summary import as_json
from emu.config import Config
from emu.experiment import MachineError
from emu.rounds import Candidate, Turn, turns

RUNS = "runs.jsonl"
SUMMARY = "comparison.json"


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be found out.

    Attributes:
        candidates: at least two.
        baseline: which of them the others are compared with.
        metric: a name of METRICS.
        plan: after how many rounds there may be enough.
        until: the half-width of every interval, as a part of the ratio, that is enough; None to go on to the end.
    """

    candidates: Sequence[Candidate]
    baseline: int
    metric: str
    plan: Plan
    until: float | None = None


@dataclass(slots=True)
class Compared:
    """What was found out.

    Attributes:
        summary: the object of comparison.json; None where not even one round is complete.
        rows: a dict for each run of a complete round: `round`, `place`, `candidate`, `seed`, and every metric.
        violated: names of candidates whose runs broke a rule.
        died: who died of what, or None.
        error: why a machine could not be made, or None.
        is_interrupted: the user stopped it.
        problem: why the folder does not have everything, or None.
    """

    summary: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    violated: list[str] = field(default_factory=list)
    died: str | None = None
    error: MachineError | None = None
    is_interrupted: bool = False
    problem: str | None = None


def compare_candidates(
    question: Question,
    *,
    folder: Path | None = None,
    on_compile: Callable[[int, int], None] | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> Compared:
    """Run rounds until there are enough, or until something goes wrong; what complete rounds say is kept.

    Args:
        question: what is to be found out.
        folder: an empty folder for every run (runs.jsonl) and what they say (comparison.json); None keeps nothing.
        on_compile: told how many functions are compiled, of how many.
        on_progress: told what part of the rounds to the next look is done, 0 to 1, and how many rounds those are.
    """
    said = environment()
    found = Compared()
    with _Log(folder) as log:
        try:
            _measure(question, found, log, on_compile, on_progress)
        except KeyboardInterrupt:
            found.is_interrupted = True
        except MachineError as error:
            found.error = error
    found.problem = log.problem
    _keep_complete_rounds(found, len(question.candidates))
    if found.rows:
        found.summary = {**_summary(question, found), "environment": said}
        found.summary["warnings"] += _of_this_computer(question.candidates, said)
    if folder and not found.problem:
        try:
            _write(folder, question.candidates, found.summary)
        except OSError as error:
            found.problem = _unwritable(folder, error)
    return found


def _measure(
    question: Question,
    found: Compared,
    log: _Log,
    on_compile: Callable[[int, int], None] | None,
    on_progress: Callable[[float, int], None] | None,
) -> None:
    names = [candidate.name for candidate in question.candidates]
    count, looks = len(names), list(question.plan.looks)
    warm_ups = 0

    def advance(done: int, part: float) -> None:
        if on_progress:
            on_progress((done + part) / (looks[0] * count + warm_ups), looks[0])

    for turn in turns(question.candidates, on_compile=on_compile, on_progress=advance):
        row = _row(turn, names[turn.candidate])
        log.append({**row, "run": turn.outcome.run})
        if turn.outcome.run["violations"] and names[turn.candidate] not in found.violated:
            found.violated.append(names[turn.candidate])
        if turn.outcome.interrupted:
            raise KeyboardInterrupt
        if turn.outcome.died:
            found.died = f"{names[turn.candidate]}: {turn.outcome.died}"
            return
        if not turn.round:
            warm_ups += 1
            continue
        found.rows.append(row)
        if len(found.rows) < looks[0] * count:
            continue
        del looks[0]
        if not looks or _is_enough(question, found.rows):
            return


def _row(turn: Turn, name: str) -> dict[str, Any]:
    run = turn.outcome.run
    return {
        "round": turn.round,
        "place": turn.place,
        "candidate": name,
        "seed": turn.seed,
        **{metric: what.read(run) for metric, what in METRICS.items()},
    }


def _is_enough(question: Question, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether every ratio is known well enough; whether any differs from 1 is not asked."""
    if question.until is None:
        return False
    return all(
        one.difference.half_width <= question.until for one in _judged(question, rows) if one.difference is not None
    )


def _values(question: Question, rows: Sequence[dict[str, Any]]) -> Floats:
    """Shape (rounds, candidates); the rows are those of complete rounds."""
    by_place = {(row["round"], row["candidate"]): row[question.metric] for row in rows}
    rounds = sorted({row["round"] for row in rows})
    return np.array([[by_place[number, one.name] for one in question.candidates] for number in rounds], dtype=float)


def _judged(question: Question, rows: Sequence[dict[str, Any]]) -> list[Judged]:
    names = [candidate.name for candidate in question.candidates]
    return judge(names, _values(question, rows), question.baseline, question.plan.level)


def _summary(question: Question, found: Compared) -> dict[str, Any]:
    is_virtual = all(candidate.config.machine.engine == "sim" for candidate in question.candidates)
    return comparison(
        _judged(question, found.rows),
        question.baseline,
        question.metric,
        question.plan,
        until=question.until,
        virtual=is_virtual,
    )


def _keep_complete_rounds(found: Compared, candidates: int) -> None:
    del found.rows[len(found.rows) // candidates * candidates :]


def _of_this_computer(candidates: Sequence[Candidate], said: dict[str, Any]) -> list[str]:
    warnings = []
    for candidate in candidates:
        if candidate.config.machine.engine != "sim":
            warnings += scheduling_warnings(said, candidate.config.machine.cpus, candidate.config.servers)
    return list(dict.fromkeys(warnings))


class _Log:
    """Every run, a line each as soon as it is over, so that a crash costs none.

    Attributes:
        problem: why lines are missing, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._folder:
            with self._noting():
                self._file = (self._folder / RUNS).open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file:
            with self._noting():
                self._file.close()

    def append(self, row: dict[str, Any]) -> None:
        if self._file and not self.problem:
            with self._noting():
                self._file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = self.problem or _unwritable(self._folder, error)


def _write(folder: Path, candidates: Sequence[Candidate], summary: dict[str, Any] | None) -> None:
    for number, candidate in enumerate(candidates, 1):
        with _renamed(folder / f"candidate-{number}.toml") as path:
            path.write_text(f"# {json.dumps(candidate.name)}\n{_alone(candidate).to_toml()}", encoding="utf-8")
    if summary is not None:
        with _renamed(folder / SUMMARY) as path:
            path.write_text(as_json(summary), encoding="utf-8")


def _alone(candidate: Candidate) -> Config:
    """A candidate's description, without the other domains that it came with."""
    domain = candidate.config.domain.model_copy(update={"types": [candidate.domain]})
    return candidate.config.model_copy(update={"domain": domain})


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(folder: Path | None, error: OSError) -> str:
    return f"{folder} cannot be written: {error.strerror or error}; the results are only shown here"
