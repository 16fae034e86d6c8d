"""Bayesian search: cells chosen by what earlier ones came to, by optuna's tree-structured Parzen estimator.

What is tried depends on the seed and on results alone, not on who ran them or when: points are chosen a batch at a
time, and a batch is told in its order when all of it is there. So a search that goes on asks for the same points again
and is told what it knows already.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import Trial, TrialState

from emu.sweep.cells import Values
from emu.sweep.experiment_file import Search
from emu.sweep.figures import OBJECTIVES


class Searcher:
    """Says what to try next."""

    def __init__(self, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        self._asked: list[Trial] = []
        self._left = search.points
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                sampler=optuna.samplers.TPESampler(seed=search.seed),
                directions=[OBJECTIVES[name] for name in search.objective],
            )

    def ask(self) -> list[Values]:
        """The next points; none when all have been tried."""
        count = min(self._search.batch, self._left)
        self._left -= count
        self._asked = [self._study.ask() for _ in range(count)]
        return [
            {key: choices.suggest(trial, key) for key, choices in self._search.ranges.items()} for trial in self._asked
        ]

    def tell(self, figures: Sequence[Sequence[float] | None]) -> None:
        """What came of the points asked last: the objectives of each in their order, None where there are none."""
        for trial, values in zip(self._asked, figures, strict=True):
            if values is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, list(values))
