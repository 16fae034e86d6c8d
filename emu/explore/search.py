"""The search over schedules: all of them within the bounds, those with the fewest preemptions first.

A schedule is a sequence of choices, one before every visible step at which more than one CPU could go on. A run replays
a prefix of choices, then lets every CPU go on for as long as it can; each other choice on the way becomes a prefix to
be looked at later, with a preemption more where the running CPU could have gone on. A run that meets a state met
before ends there: what follows has been, or will be, looked at with no more preemptions than now, as prefixes are taken
in the order of their preemptions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emu.explore.world import Cpu, Segment, Violation, World, flush_of

Prefix = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a search ends.

    Attributes:
        preemptions: most in a schedule; None for any number.
        seconds, schedules: of the whole search; None for no limit.
        refine_s: how long to look on for a shorter schedule of as many preemptions, once one violates.
    """

    preemptions: int | None = 3
    seconds: float | None = None
    schedules: int | None = None
    refine_s: float = 5.0


@dataclass(slots=True)
class Level:
    """What the search did with so many preemptions: runs to the end, runs cut short, states met first."""

    schedules: int = 0
    cut_short: int = 0
    states: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule that violates.

    Attributes:
        violation: what it comes to.
        segments: of its run.
        preemptions, switches, steps: how long it is.
        visible: the places that were.
    """

    violation: Violation
    segments: tuple[Segment, ...]
    preemptions: int
    switches: int
    steps: int
    visible: tuple[int, ...]

    @property
    def length(self) -> tuple[int, int, int]:
        """For comparison: the shortest is the least."""
        return self.preemptions, self.switches, self.steps


@dataclass(slots=True)
class Result:
    """What a search has come to.

    Attributes:
        levels: by preemptions. found: the shortest schedule that violates, if any. stopped_by: the limit that ended
        the search too early, or "". is_whole: no schedule was left out because of its preemptions. passes: how often
        the search began, because another place turned out to be visible. steps: taken in all runs. elapsed_s: in all.
        first_s, first_schedules: until the first violation, in this pass as to schedules.
    """

    levels: list[Level]
    found: Found | None = None
    stopped_by: str = ""
    is_whole: bool = True
    passes: int = 0
    steps: int = 0
    elapsed_s: float = 0.0
    first_s: float = 0.0
    first_schedules: int = 0

    def keep(self, before: Result) -> None:
        """Take over what an earlier pass had found first, and its schedule if that is the shorter."""
        self.first_s, self.first_schedules = before.first_s, before.first_schedules
        if self.found is None or (before.found and before.found.length < self.found.length):
            self.found = before.found

    @property
    def schedules(self) -> int:
        """Runs to the end of the last pass."""
        return sum(level.schedules for level in self.levels)

    @property
    def cut_short(self) -> int:
        """Runs of the last pass that met a known state."""
        return sum(level.cut_short for level in self.levels)

    @property
    def states(self) -> int:
        """States of the last pass."""
        return sum(level.states for level in self.levels)


class Search:
    """A depth-first search over a world's schedules.

    Args:
        world: what runs.
        limits: where to end.
        progress: told (preemptions, runs so far, part of the limits that is used up) now and then.
    """

    def __init__(
        self, world: World, limits: Limits, progress: Callable[[int, int, float], None] = lambda *_: None
    ) -> None:
        self.world = world
        self.limits = limits
        self.progress = progress
        self._prefix: Prefix = ()
        self._taken: list[int] = []
        self._met: set[int] = set()
        self._pending: list[list[Prefix]] = []
        self._preemptions = 0
        self._switches = 0
        self._is_known = False
        self._result = Result([])

    # --- what the world asks ----------------------------------------------------------------------------------------

    def choose(self, world: World, cpu: Cpu | None, choices: list[int]) -> int:
        """Replay the prefix, then let the running CPU go on, and note what else could be."""
        position = len(self._taken)
        if position >= len(self._prefix):
            state = world.state(cpu)
            if state in self._met:
                self._is_known = True
                return -1
            self._met.add(state)
            self._result.levels[-1].states += 1
        if len(choices) == 1:
            return choices[0]
        default = self._default(cpu, choices)
        if position < len(self._prefix):
            choice = self._prefix[position]
        else:
            choice = default
            for other in choices:
                if other != default:
                    self._put_off(other, cpu)
        self._taken.append(choice)
        if flush_of(choice) is None:
            self._preemptions += self._costs(choice, cpu)
            self._switches += cpu is None or choice != cpu.number
        return choice

    def _default(self, cpu: Cpu | None, choices: list[int]) -> int:
        if cpu is None:
            return choices[0]
        if cpu.number in choices:
            return cpu.number
        return next(choice for choice in choices if (flush_of(choice) or (-1, 0))[0] == cpu.number)

    def _costs(self, choice: int, cpu: Cpu | None) -> int:
        return int(cpu is not None and choice != cpu.number and flush_of(choice) is None)

    def _put_off(self, choice: int, cpu: Cpu | None) -> None:
        preemptions = self._preemptions + self._costs(choice, cpu)
        if self.limits.preemptions is not None and preemptions > self.limits.preemptions:
            self._result.is_whole = False
            return
        while len(self._pending) <= preemptions:
            self._pending.append([])
        self._pending[preemptions].append((*self._taken, choice))

    def interrupted(self) -> Result:
        """What there is when the search was broken off from outside."""
        self._result.stopped_by = "Ctrl-C"
        return self._result

    # --- the search -------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Look at all schedules within the limits, again and again until no further place turns out to be visible."""
        began = time.monotonic()
        passes = steps = 0
        result = self._result
        while True:
            self.world.places.found = False
            passes += 1
            before, result = result, self._pass(began)
            steps += result.steps
            if before.found:
                result.keep(before)
            if not self.world.places.found or result.stopped_by or self._is_refined(result, began):
                break
        result.passes, result.steps = passes, steps
        result.elapsed_s = time.monotonic() - began
        return result

    def _pass(self, began: float) -> Result:
        self._met = set()
        self._pending = [[()]]
        self._result = result = Result([])
        while len(result.levels) < len(self._pending):
            result.levels.append(Level())
            pending = self._pending[len(result.levels) - 1]
            while pending:
                if self.world.places.found and self._met:
                    return result
                result.stopped_by = self._limit(began)
                if result.stopped_by:
                    return result
                self._run_one(pending.pop(), began)
                if self._is_refined(result, began):
                    return result
            if result.found:
                return result
        return result

    def _is_refined(self, result: Result, began: float) -> bool:
        """Whether there is a violation, and time enough has been spent on a shorter one."""
        return result.found is not None and time.monotonic() - began > result.first_s + self.limits.refine_s

    def _limit(self, began: float) -> str:
        limits, result = self.limits, self._result
        runs = result.schedules + result.cut_short
        elapsed_s = time.monotonic() - began
        if runs % 256 == 0:
            parts = (
                elapsed_s / limits.seconds if limits.seconds else 0,
                runs / limits.schedules if limits.schedules else 0,
            )
            self.progress(len(result.levels) - 1, runs, min(max(parts), 1.0))
        if result.found is None and limits.seconds is not None and elapsed_s > limits.seconds:
            return f"--seconds {limits.seconds:g}"
        if result.found is None and limits.schedules is not None and runs >= limits.schedules:
            return f"--schedules {limits.schedules}"
        return ""

    def _run_one(self, prefix: Prefix, began: float) -> None:
        self._prefix = prefix
        self._taken = []
        self._preemptions = self._switches = 0
        self._is_known = False
        self.world.run(self)
        result = self._result
        result.steps += self.world.steps
        if self._is_known:
            result.levels[-1].cut_short += 1
        else:
            result.levels[-1].schedules += 1
        # Where a place became visible in this very run, the next pass comes to the same, and can be replayed.
        if self.world.violation and not self.world.places.found:
            found = Found(
                self.world.violation,
                tuple(self.world.segments),
                self._preemptions,
                self._switches,
                self.world.steps,
                tuple(self.world.places.visible),
            )
            if result.found is None:
                result.first_s = time.monotonic() - began
                result.first_schedules = result.schedules + result.cut_short
            if result.found is None or found.length < result.found.length:
                result.found = found


class Script:
    """Makes a world do what a run did: its segments, step by step; the world must ask before every step."""

    def __init__(self, segments: Iterable[Segment]) -> None:
        self._left = deque(segments)

    def choose(self, world: World, cpu: Cpu | None, choices: list[int]) -> int:  # noqa: ARG002 - as any chooser
        """Who has steps left in the present segment; -1 when there is no further one."""
        while self._left:
            number, until = self._left[0]
            if flush_of(number) is not None:
                self._left.popleft()
                return number
            if world.cpus[number].accesses < until:
                # Who cannot go on yet is in another state than in that run.
                return number if world.can_go_on(world.cpus[number]) else -1
            self._left.popleft()
        return -1 if len(choices) != 1 else choices[0]
