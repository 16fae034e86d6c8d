"""Small worlds on virtual clocks: each fiber follows a list of steps, and notes when and in which order it did them."""

from dataclasses import dataclass, field

import numpy as np

from emu.native.atomics import fetch_add
from emu.native.compile import compile_entries
from emu.native.cost import COST_MAP, COSTS
from emu.native.lines import take_line
from emu.native.lock import owner_word, spin_lock, spin_unlock, spinlock_t
from emu.native.record import deref, element, int64_t, struct
from emu.native.stack import Stacks
from emu.native.time import begin_operation, charge, now_ns, spend_until, yield_core
from emu.native.virtual import (
    LINES_REMEMBERED,
    NEVER_PS,
    PS,
    START_PS,
    end_fiber,
    fiber_t,
    init_world,
    run_world,
    turn_t,
    wake_first,
)
from emu.native.virtual import world_t as engine_world_t
from emu.native.wait import poll, wait_on, wake_pollers, wake_up

from .harness import at, harness, shared

word_t = struct(value="i4")
step_t = struct(code="i8", a="i8", b="i8", c="i8", order="i8", at_ns="i8")
actor_t = struct(
    virtual="i8",
    owner="i4",
    id="i8",
    slot="i8",
    events="i8",
    records="i8",
    steps="i8",
    count="i8",
    locks="i8",
    words="i8",
    order="i8",
)

SPEND, CHARGE, TURN, LOCK, UNLOCK, SLEEP, WAKE, SET, YIELD, TAKE_LINE, POLL, WAKE_POLLERS = range(12)


def spend(ns):
    """Let time pass."""
    return SPEND, ns, 0, 0


def work(ns):
    """Cost time in the midst of an operation: the clock moves on, and nobody else need run."""
    return CHARGE, ns, 0, 0


def turn():
    """Begin an operation."""
    return TURN, 0, 0, 0


def lock(which=0):
    return LOCK, which, 0, 0


def unlock(which=0):
    return UNLOCK, which, 0, 0


def sleep(timeout_ns=0, *, word=0, expected=0):
    """Sleep on a word while it has this value; 0 for as long as it takes."""
    return SLEEP, word, expected, timeout_ns


def wake(sleepers=1, *, word=0):
    return WAKE, word, sleepers, 0


def set_word(value, *, word=0):
    return SET, word, value, 0


def give_core_away():
    return YIELD, 0, 0, 0


def line():
    """Take the line of the words, which all want."""
    return TAKE_LINE, 0, 0, 0


def wait_awake(*, word=0):
    return POLL, word, 0, 0


def wake_awake(*, word=0):
    return WAKE_POLLERS, word, 0, 0


@harness
def take_rare_step(cpu, step):
    if step.code == TAKE_LINE:
        take_line(cpu, cpu.words)
    elif step.code == POLL:
        poll(cpu, cpu.words + 4 * step.a, 1)
    elif step.code == WAKE_POLLERS:
        wake_pollers(cpu, cpu.words + 4 * step.a)
    else:
        yield_core(cpu)


@harness
def take_step(cpu, step):
    if step.code == SPEND:
        spend_until(cpu, now_ns(cpu) + step.a)
    elif step.code == CHARGE:
        charge(cpu, COST_MAP, step.a)
    elif step.code == TURN:
        begin_operation(cpu)
    elif step.code == LOCK:
        spin_lock(cpu, element(spinlock_t, cpu.locks, step.a))
    elif step.code == UNLOCK:
        spin_unlock(cpu, element(spinlock_t, cpu.locks, step.a))
    elif step.code == SLEEP:
        wait_on(cpu, cpu.words + 4 * step.a, step.b, step.c)
    elif step.code == WAKE:
        wake_up(cpu, cpu.words + 4 * step.a, step.b)
    elif step.code == SET:
        element(word_t, cpu.words, step.a).value = step.b
    else:
        take_rare_step(cpu, step)


@harness
def follow_steps(actor):
    """Fiber: take the steps, then end."""
    cpu = deref(actor_t, actor)
    order = deref(int64_t, cpu.order)
    for i in range(cpu.count):
        step = element(step_t, cpu.steps, i)
        take_step(cpu, step)
        step.order = fetch_add(order, "value", 1) + 1
        step.at_ns = now_ns(cpu)
    end_fiber(cpu)
    return 0


@harness
def advance_world(world, until_ps, turns):
    return int(run_world(deref(engine_world_t, world), until_ps, turns))


@harness
def wake_one(world, address, at_ps):
    return wake_first(deref(engine_world_t, world), address, at_ps)


@dataclass
class World:
    """Fibers that follow `scripts`, from 0 ns on their clocks.

    Every cost is 0 unless given, by its name in emu.native.cost.
    """

    scripts: list
    slack_ns: float = 0
    costs_ns: dict = field(default_factory=dict)
    words: int = 4
    seed: int = 1

    def __post_init__(self):
        count = len(self.scripts)
        compile_entries([follow_steps, advance_world, wake_one])
        self._world = shared(engine_world_t)
        self._fibers, self._turns, self._turn_of = shared(fiber_t, count), shared(turn_t, count), np.zeros(count, "i8")
        self._actors, self._order = shared(actor_t, count), shared(int64_t)
        self.locks, self._words = shared(spinlock_t, 4), shared(word_t, self.words)
        costs = dict.fromkeys(COSTS, 0.0) | {"map": 1.0} | self.costs_ns
        self._lines = shared(int64_t, 2 * LINES_REMEMBERED)
        init_world(
            self._world[0], self._fibers, self._turns, self._turn_of, self._lines,
            slack_ns=self.slack_ns, costs_ns=[costs[name] for name in COSTS], seed=self.seed,
        )  # fmt: skip
        self.steps = [np.zeros(len(script), step_t).view(np.recarray) for script in self.scripts]
        self._stacks = Stacks(count)
        self._world[0].main_stack = self._stacks.main()
        for slot, script in enumerate(self.scripts):
            for name, values in zip(("code", "a", "b", "c"), zip(*script, strict=True), strict=False):
                self.steps[slot][name] = values
            self._actors[slot] = (
                at(self._fibers, slot), owner_word(slot, 1), slot, slot, 0, 0, at(self.steps[slot]), len(script),
                at(self.locks), at(self._words), at(self._order),
            )  # fmt: skip
            self._fibers.stack[slot] = self._stacks.begin(follow_steps, at(self._actors, slot))

    def run(self, until_ns=None, turns=1 << 30):
        """Let it run to the end, or until a time, looking in every so many turns; whether there is time left."""
        until_ps = NEVER_PS if until_ns is None else START_PS + until_ns * PS
        while advance_world(at(self._world), until_ps, turns):
            pass
        return bool(self._turns.at_ps.min() < NEVER_PS)

    def wake_from_outside(self, at_ns, *, word=0):
        return wake_one(at(self._world), at(self._words, word), START_PS + at_ns * PS)

    def times(self, slot):
        """When each step was done, in ns; None for those that were not."""
        steps = self.steps[slot]
        return [int(step.at_ns) - START_PS // PS if step.order else None for step in steps]

    def ended(self, slot):
        """When the last step was done."""
        return self.times(slot)[-1]

    def history(self):
        """(ns, slot, number of the step), in the order in which they were done."""
        done = [
            (int(step.order), time, slot, number)
            for slot in range(len(self.scripts))
            for number, (step, time) in enumerate(zip(self.steps[slot], self.times(slot), strict=True))
            if step.order
        ]
        return [entry[1:] for entry in sorted(done)]
