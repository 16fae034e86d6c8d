"""Virtual time: every emulated CPU, timer and server is a fiber with a clock of its own, in one thread.

The fiber whose clock is furthest behind runs; it goes on until its clock has passed the next one's, or until it waits.
A fiber that waits for a word sleeps in a queue, first come first served, until it is woken at the waker's time or its
own time-out comes. So everything shared is used in the order of virtual time, and a run is a function of its
description alone: the same on every machine.

Clocks are in ps, as some steps cost less than a ns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.native.clock import clock_ns
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_WAKE, COSTS
from emu.native.record import address_of, deref, element, int64_t, struct
from emu.native.stack import switch_stack

NEVER_PS = 1 << 62
PS = 1000
"""ps in a ns."""
_ASK_NS = 50_000_000
START_PS = 10**12
"""Where clocks begin: a second after a time that means "never"."""

fiber_t = struct(
    lines=("now_ps",),
    now_ps="i8",
    stack="i8",
    world="i8",
    slot="i8",
    waits_for="i8",
    next_waiter="i8",
)
"""`stack`: where it goes on; `waits_for`: address of the word it sleeps on, or 0; `next_waiter`: slot + 1, or 0."""

turn_t = struct(at_ps="i8", slot="i8")

LINES_REMEMBERED = 1 << 17
"""Of how many cache lines the last owner is known, and from when on another CPU can have them."""

_WAITER_BITS = 10
_QUEUES = 1 << _WAITER_BITS

world_t = struct(
    lines=("horizon_ps",),
    horizon_ps="i8",
    turns_left="i8",
    ask_at_ns="i8",
    slack_ps="i8",
    until_ps="i8",
    fibers="i8",
    turns="i8",
    turn_of="i8",
    count="i8",
    main_stack="i8",
    ended="i8",
    last_writers="i8",
    lines_free_at="i8",
    chance="i8",
    costs=("i8", (len(COSTS),)),
    first_waiter=("i8", (_QUEUES,)),
    last_waiter=("i8", (_QUEUES,)),
)
"""`turns`: a binary heap of turn_t, the next one first, with every fiber in it; `turn_of`: where in the heap each slot
is. `horizon_ps`: until where the running fiber may go on; `until_ps`: where the world stops; `turns_left`: how many
steps it may still take before Python is asked again, or fewer when the machine's own clock has reached `ask_at_ns`.
`ended`: how many fibers have done so. `last_writers`, `lines_free_at`: of cache lines, see emu.native.lines, and
`chance`, which decides who gets one next."""


# --- the order of turns ---------------------------------------------------------------------------------------------


@inline
def _is_before(at_ps: int, slot: int, turn: Any) -> bool:
    return at_ps < turn.at_ps or (at_ps == turn.at_ps and slot < turn.slot)


@inline
def _set_turn(world: Any, i: int, at_ps: int, slot: int) -> None:
    turn = element(turn_t, world.turns, i)
    turn.at_ps = at_ps
    turn.slot = slot
    element(int64_t, world.turn_of, slot).value = i


@jit
def _later(world: Any, i: int, at_ps: int, slot: int) -> None:
    """Place a turn at `i` or further down the heap."""
    while True:
        child = 2 * i + 1
        if child >= world.count:
            break
        turn = element(turn_t, world.turns, child)
        if child + 1 < world.count:
            other = element(turn_t, world.turns, child + 1)
            if _is_before(other.at_ps, other.slot, turn):
                child += 1
                turn = other
        if _is_before(at_ps, slot, turn):
            break
        _set_turn(world, i, turn.at_ps, turn.slot)
        i = child
    _set_turn(world, i, at_ps, slot)


@jit
def _sooner(world: Any, i: int, at_ps: int, slot: int) -> None:
    """Place a turn at `i` or further up the heap."""
    while i > 0:
        parent = (i - 1) >> 1
        turn = element(turn_t, world.turns, parent)
        if not _is_before(at_ps, slot, turn):
            break
        _set_turn(world, i, turn.at_ps, turn.slot)
        i = parent
    _set_turn(world, i, at_ps, slot)


@inline
def _second_turn_ps(world: Any) -> int:
    """When the first fiber after the running one has its turn."""
    second_ps = NEVER_PS
    if world.count > 1:
        second_ps = element(turn_t, world.turns, 1).at_ps
    if world.count > 2:
        second_ps = min(second_ps, element(turn_t, world.turns, 2).at_ps)
    return second_ps


@inline
def _set_horizon(world: Any) -> None:
    world.horizon_ps = min(_second_turn_ps(world) + world.slack_ps, world.until_ps)


# --- running --------------------------------------------------------------------------------------------------------


@slow
def _give_way_until(world: Any, fiber: Any, at_ps: int) -> None:
    """Let the others run until it is this fiber's turn at `at_ps`."""
    world.turns_left -= 1
    _later(world, element(int64_t, world.turn_of, fiber.slot).value, at_ps, fiber.slot)
    first = element(turn_t, world.turns, 0)
    if first.at_ps >= world.until_ps or world.turns_left <= 0:
        switch_stack(address_of(fiber, "stack"), world.main_stack)
        return
    _set_horizon(world)
    if first.slot != fiber.slot:
        switch_stack(address_of(fiber, "stack"), element(fiber_t, world.fibers, first.slot).stack)


@slow
def run_world(world: Any, until_ps: int, turns: int) -> bool:
    """Run fibers until all have passed `until_ps`, or for some turns. True when there is time left.

    Args:
        world: its world_t.
        until_ps: where on their clocks.
        turns: not many more than these; fewer where much is to do, so that Python can look after its signals.
    """
    world.until_ps = until_ps
    world.turns_left = turns
    world.ask_at_ns = clock_ns() + _ASK_NS
    first = element(turn_t, world.turns, 0)
    if first.at_ps < until_ps:
        _set_horizon(world)
        switch_stack(address_of(world, "main_stack"), element(fiber_t, world.fibers, first.slot).stack)
    return bool(element(turn_t, world.turns, 0).at_ps < until_ps)


@slow
def give_turn(world: Any, slot: int, at_ps: int) -> None:
    """Have a fiber run at a time, earlier than it would."""
    _sooner(world, element(int64_t, world.turn_of, slot).value, at_ps, slot)


@inline
def fiber_of(cpu: Any) -> Any:
    """The fiber of a context."""
    return deref(fiber_t, cpu.virtual)


@inline
def give_way(fiber: Any) -> None:
    """Let those run whose clocks are behind by more than the slack."""
    world = deref(world_t, fiber.world)
    if fiber.now_ps > world.horizon_ps:
        _give_way_until(world, fiber, fiber.now_ps)


@inline
def _wait_for_turn(world: Any, fiber: Any) -> None:
    # Of equal clocks the heap decides: whether Python was asked in between must make no difference.
    if fiber.now_ps >= world.horizon_ps - world.slack_ps or world.turns_left <= 0:
        _give_way_until(world, fiber, fiber.now_ps)


@inline
def take_turn(cpu: Any) -> None:
    """Begin an operation: everything before it in virtual time has been done."""
    fiber = fiber_of(cpu)
    world = deref(world_t, fiber.world)
    world.turns_left -= 1
    _wait_for_turn(world, fiber)


@slow
def pass_time_until(fiber: Any, at_ps: int) -> None:
    """Move this fiber's clock forward; when it goes on, everything before that has been done."""
    world = deref(world_t, fiber.world)
    fiber.now_ps = max(fiber.now_ps, at_ps)
    # Whoever has much to do spends the time that it takes: a flush, most of all.
    if clock_ns() > world.ask_at_ns:
        world.turns_left = 0
    _wait_for_turn(world, fiber)


@slow
def let_others_run(cpu: Any) -> None:
    """Let time pass until somebody else has done something."""
    fiber = fiber_of(cpu)
    world = deref(world_t, fiber.world)
    next_ps = _second_turn_ps(world)
    if next_ps < NEVER_PS:
        fiber.now_ps = max(fiber.now_ps, next_ps)
    fiber.now_ps += PS
    _give_way_until(world, fiber, fiber.now_ps)


@slow
def end_fiber(cpu: Any) -> None:
    """The last thing a fiber does; it does not return. Python is asked what to do next."""
    fiber = fiber_of(cpu)
    world = deref(world_t, fiber.world)
    world.ended += 1
    _later(world, element(int64_t, world.turn_of, fiber.slot).value, NEVER_PS, fiber.slot)
    switch_stack(address_of(fiber, "stack"), world.main_stack)


# --- waiting --------------------------------------------------------------------------------------------------------


@inline
def _queue_of(address: int) -> int:
    return (((address >> 2) & 0xFFFFFFF) * 0x9E3779B1 >> 16) & (_QUEUES - 1)


@inline
def _first(world: Any, queue: int) -> Any:
    return element(int64_t, address_of(world, "first_waiter"), queue)


@inline
def _last(world: Any, queue: int) -> Any:
    return element(int64_t, address_of(world, "last_waiter"), queue)


@jit
def _enqueue(world: Any, fiber: Any, address: int) -> None:
    fiber.waits_for = address
    fiber.next_waiter = 0
    queue = _queue_of(address)
    last = _last(world, queue)
    if last.value:
        element(fiber_t, world.fibers, last.value - 1).next_waiter = fiber.slot + 1
    else:
        _first(world, queue).value = fiber.slot + 1
    last.value = fiber.slot + 1


@jit
def _unlink(world: Any, queue: int, before: int, name: int) -> None:
    """Take a waiter out of its queue; names are slot + 1, and `before` is 0 for the first."""
    fiber = element(fiber_t, world.fibers, name - 1)
    if before:
        element(fiber_t, world.fibers, before - 1).next_waiter = fiber.next_waiter
    else:
        _first(world, queue).value = fiber.next_waiter
    if _last(world, queue).value == name:
        _last(world, queue).value = before
    fiber.waits_for = 0


@slow
def wake_first(world: Any, address: int, at_ps: int) -> int:
    """Wake the one that has waited longest for this word, at the waker's time. Returns its slot + 1, or 0.

    Whoever's time-out comes before that has stopped waiting, even where its turn to notice has not come yet.
    """
    queue = _queue_of(address)
    before = 0
    name = _first(world, queue).value
    while name:
        fiber = element(fiber_t, world.fibers, name - 1)
        turn = element(int64_t, world.turn_of, fiber.slot).value
        if fiber.waits_for == address and at_ps <= element(turn_t, world.turns, turn).at_ps:
            _unlink(world, queue, before, name)
            fiber.now_ps = max(fiber.now_ps, at_ps)
            _sooner(world, turn, fiber.now_ps, fiber.slot)
            world.horizon_ps = min(world.horizon_ps, fiber.now_ps + world.slack_ps)
            return name
        before = name
        name = fiber.next_waiter
    return 0


@slow
def _stop_waiting(world: Any, fiber: Any) -> None:
    queue = _queue_of(fiber.waits_for)
    before = 0
    name = _first(world, queue).value
    while name != fiber.slot + 1:
        before = name
        name = element(fiber_t, world.fibers, name - 1).next_waiter
    _unlink(world, queue, before, name)


@slow
def sleep_on(fiber: Any, address: int, until_ps: int) -> bool:
    """Sleep until woken at this address; False when `until_ps` came first, and then it takes what waking costs too."""
    world = deref(world_t, fiber.world)
    _enqueue(world, fiber, address)
    _give_way_until(world, fiber, until_ps)
    if fiber.waits_for == 0:
        return True
    _stop_waiting(world, fiber)
    fiber.now_ps = until_ps + cost_ps(world, COST_WAKE)
    return False


@slow
def wake(fiber: Any, address: int, waiters: int) -> int:
    """Wake up to `waiters` sleepers; they run after what it costs to wake them. Returns how many."""
    world = deref(world_t, fiber.world)
    at_ps = fiber.now_ps + cost_ps(world, COST_WAKE)
    woken = 0
    while woken < waiters and wake_first(world, address, at_ps):
        woken += 1
    return woken


@inline
def cost_ps(world: Any, step: int) -> int:
    """What a step costs, in ps."""
    return element(int64_t, address_of(world, "costs"), step).value


def init_world(
    world: Any,
    fibers: Any,
    turns: Any,
    turn_of: Any,
    lines: Any,
    *,
    slack_ns: float,
    costs_ns: list[float],
    seed: int = 1,
) -> None:
    """Make a world of fibers whose clocks all stand at START_PS; their stacks are set by the caller.

    Args:
        world: its world_t.
        fibers: array of fiber_t.
        turns: array of as many turn_t.
        turn_of: as many int64.
        lines: of cache lines, twice LINES_REMEMBERED int64, all 0.
        slack_ns: how far a fiber may run ahead of the others in the midst of an operation.
        costs_ns: what each step of COSTS costs.
        seed: of what chance decides.
    """
    count = np.arange(len(fibers))
    world.fibers = fibers.ctypes.data
    world.turns = turns.ctypes.data
    world.turn_of = turn_of.ctypes.data
    world.last_writers = lines.ctypes.data
    world.lines_free_at = lines.ctypes.data + LINES_REMEMBERED * int64_t.itemsize
    world.count = len(fibers)
    world.chance = seed & 0xFFFFFFFF
    world.slack_ps = round(slack_ns * PS)
    world.costs = [round(cost_ns * PS) for cost_ns in costs_ns]
    fibers["world"] = int(world.__array_interface__["data"][0])
    fibers["now_ps"] = turns["at_ps"] = START_PS
    fibers["slot"] = turns["slot"] = turn_of[:] = count
