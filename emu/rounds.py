"""Several machines in turn, round by round, so that what disturbs this computer disturbs all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emu.config import Config, DomainType
from emu.experiment import MachineError, Outcome, run_machine
from emu.workload.build import build_workload

_SEEDS = 1 << 63


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the machines that are compared.

    Attributes:
        name: what sets it apart from the others.
        config: its description.
        domain: which of the description's domains is run.
    """

    name: str
    config: Config
    domain: DomainType


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one candidate.

    Attributes:
        round: from 1; 0 is the warm-up.
        place: which of its round it was, from 0.
        candidate: its index.
        seed: of the load.
        outcome: what came of it.
    """

    round: int
    place: int
    candidate: int
    seed: int
    outcome: Outcome


def turns(
    candidates: Sequence[Candidate],
    *,
    on_compile: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Iterator[Turn]:
    """Run all candidates once, then all once more, without end: whoever has enough rounds stops asking.

    Every round has a seed of its own (a candidate's, plus the number of the round), so that loads differ from round to
    round on virtual clocks too, and are the same for all candidates of a round. Who goes first is drawn anew for each.
    Round 0 warms up this computer, and is left out on virtual clocks, which are never cold.

    Args:
        candidates: whose runs they are.
        on_compile: told how many functions are compiled, of how many.
        on_progress: told how many runs are complete, and what part of the present one.

    Raises:
        MachineError: a machine cannot be made; the message says whose.
    """
    draw = np.random.default_rng(candidates[0].config.machine.seed)
    is_cold = any(candidate.config.machine.engine != "sim" for candidate in candidates)
    number = 0 if is_cold else 1
    done = 0
    while True:
        for place, chosen in enumerate(draw.permutation(len(candidates)).tolist()):
            candidate = candidates[chosen]
            seed = (candidate.config.machine.seed + number) % _SEEDS
            outcome = _run(candidate, seed, done, on_compile, on_progress)
            done += 1
            yield Turn(number, place, chosen, seed, outcome)
        number += 1


def _run(
    candidate: Candidate,
    seed: int,
    done: int,
    on_compile: Callable[[int, int], None] | None,
    on_progress: Callable[[int, float], None] | None,
) -> Outcome:
    config = _with_seed(candidate.config, seed)
    try:
        return run_machine(
            config,
            candidate.domain,
            build_workload(config),
            on_compile=on_compile,
            on_progress=(lambda part: on_progress(done, part)) if on_progress else None,
        )
    except MachineError as error:
        raise MachineError(f"{candidate.name}: {error}") from None


def _with_seed(config: Config, seed: int) -> Config:
    return config.model_copy(update={"machine": config.machine.model_copy(update={"seed": seed})})
