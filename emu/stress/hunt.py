"""Machines drawn at random until the time is over or one comes out wrong, which is then made as small as can be.

hypothesis draws and shrinks. With real processes a failure may need luck, so what fails is tried more than once while
it is made smaller, and the smallest description that ever failed counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky

from emu.config import Config
from emu.stress.draw import Overrides, descriptions
from emu.stress.trial import attempt, resolve

_ROUND = 50
"""Machines drawn from one seed; the next round has the next."""
_TRIES = 3
"""How often a smaller description may run before it counts as sound."""
_SHRINK_S = 60.0


@dataclass(slots=True)
class Hunt:
    """What a stress run has come to.

    Attributes:
        machines: how many ran, by engine and domain.
        deaths: processes that died in them.
        ops: map+unmap pairs that they did.
        complaint: what is wrong with the smallest that failed, None when none did.
        failing: that description.
        interrupted: the user has stopped it.
    """

    machines: Counter[tuple[str, str]] = field(default_factory=Counter)
    deaths: int = 0
    ops: int = 0
    complaint: str | None = None
    failing: Config | None = None
    interrupted: bool = False
    _smallest: int = 1 << 30


class _WrongError(AssertionError):
    """A machine came out wrong."""


def hunt(
    seed: int,
    seconds: float,
    on_progress: Callable[[Hunt, float], None] = lambda _hunt, _part: None,
    policy: str | None = None,
) -> Hunt:
    """Run random machines.

    Args:
        seed: of everything random.
        seconds: how long; making a failing one smaller takes a minute more at most.
        on_progress: told the state and the part of the time that has passed, 0 to 1.
        policy: of all machines, as `domain.policy`; then only such run as have a queue, at first or later.
    """
    found, began = Hunt(), time.monotonic()
    number = seed
    while time.monotonic() - began < seconds and not found.complaint and not found.interrupted:
        _round(found, number, began + seconds, lambda: on_progress(found, (time.monotonic() - began) / seconds), policy)
        number += 1
    return found


def _round(found: Hunt, number: int, until: float, on_trial: Callable[[], None], policy: str | None) -> None:
    limit = until

    @seeded(number)
    @settings(
        max_examples=_ROUND,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(descriptions())
    def try_one(overrides: Overrides) -> None:
        nonlocal limit
        config = resolve(overrides, policy)
        if config is None or found.interrupted or time.monotonic() >= limit:
            return
        for _ in range(_TRIES if found.complaint else 1):
            trial = attempt(config)
            found.interrupted = found.interrupted or trial.interrupted
            found.machines[config.machine.engine, config.domain.types[0]] += 1
            found.deaths += trial.deaths
            found.ops += trial.ops
            on_trial()
            if trial.complaint and not trial.interrupted:
                if not found.complaint:
                    limit = time.monotonic() + _SHRINK_S
                if len(repr(overrides)) <= found._smallest:
                    found.complaint, found.failing, found._smallest = trial.complaint, config, len(repr(overrides))
                raise _WrongError(trial.complaint)

    try:
        try_one()
    except (_WrongError, Flaky, ExceptionGroup):
        if not found.complaint:
            raise
