"""Cache lines that CPUs take from each other.

On real clocks that takes the time it takes. On virtual ones a table remembers which CPU had a line last, and a line
of another CPU's costs its transfer. The table is as forgetful as a cache: what was long ago, or has lost its place to
another line, counts as being nobody's.

Where CPUs fight over a line it is at one place at a time, and on its way for as long as a transfer takes; of those who
want it then, any may be the next, as no fabric promises an order. Chance decides, from the machine's seed. Most lines
are not fought over, and those who write there need not wait for their turn.
"""

from __future__ import annotations

from typing import Any

from emu.native.compile import inline, slow
from emu.native.cost import COST_LOCK, COST_TRANSFER
from emu.native.engine import by_engine
from emu.native.record import deref, element, int64_t
from emu.native.virtual import LINES_REMEMBERED, cost_ps, fiber_of, take_turn, world_t

_LINE_SHIFT = 6
_SLOT_BITS = 13


@inline
def _line_of(fiber: Any, address: int) -> int:
    # Counted from the world's own place: where the segment was mapped must not matter.
    return (address - fiber.world) >> _LINE_SHIFT


@inline
def _place_of(line: int) -> int:
    return (line ^ line >> _SLOT_BITS) & (LINES_REMEMBERED - 1)


@inline
def _takes_its_time(_cpu: Any, _address: int, _size: int) -> None:
    pass


@slow
def _write_virtually(cpu: Any, address: int, size: int) -> None:
    fiber = fiber_of(cpu)
    world = deref(world_t, fiber.world)
    for line in range(_line_of(fiber, address), _line_of(fiber, address + size - 1) + 1):
        place = element(int64_t, world.last_writers, _place_of(line))
        mine = line << _SLOT_BITS | (fiber.slot + 1)
        if place.value != mine:
            if place.value >> _SLOT_BITS == line:
                fiber.now_ps += cost_ps(world, COST_TRANSFER)
            place.value = mine


write_lines = by_engine(_takes_its_time, _write_virtually)
"""`write_lines(cpu, address, size)`: this CPU writes there, atomically or under a lock, or reads what others write;
`size` in bytes."""


@inline
def _comes_as_it_comes(_cpu: Any, _address: int) -> None:
    pass


@inline
def _chance_ps(world: Any) -> int:
    """A moment, short beside any transfer, by which one of those that wait comes before the others."""
    world.chance = (world.chance * 1664525 + 1013904223) & 0xFFFFFFFF
    return world.chance >> 22


@slow
def _take_virtually(cpu: Any, address: int) -> None:
    fiber = fiber_of(cpu)
    world = deref(world_t, fiber.world)
    line = _line_of(fiber, address)
    place = element(int64_t, world.last_writers, _place_of(line))
    free_at = element(int64_t, world.lines_free_at, _place_of(line))
    mine = line << _SLOT_BITS | (fiber.slot + 1)
    # What comes between two accesses: time enough for the line to go where it is waited for.
    fiber.now_ps += cost_ps(world, COST_LOCK)
    take_turn(cpu)
    while place.value != mine and place.value >> _SLOT_BITS == line and free_at.value > fiber.now_ps:
        fiber.now_ps = free_at.value + _chance_ps(world)
        take_turn(cpu)
    if place.value != mine:
        if place.value >> _SLOT_BITS == line:
            fiber.now_ps += cost_ps(world, COST_TRANSFER)
        place.value = mine
        free_at.value = fiber.now_ps


take_line = by_engine(_comes_as_it_comes, _take_virtually)
"""`take_line(cpu, address)`: this CPU reads or writes a word of a line that CPUs fight over, one after the other. What
it does there before its next step is done in that order too."""
