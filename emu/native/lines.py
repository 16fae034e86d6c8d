"""Cache lines that CPUs take from each other.

On real clocks that takes the time it takes. On virtual ones a table remembers which CPU wrote a line last, and a line
of another CPU's costs its transfer. The table is as forgetful as a cache: what was long ago, or has lost its place to
another line, counts as being nobody's.
"""

from __future__ import annotations

from typing import Any

from emu.native.compile import inline, slow
from emu.native.cost import COST_TRANSFER
from emu.native.engine import by_engine
from emu.native.record import deref, element, int64_t
from emu.native.virtual import LINES_REMEMBERED, cost_ps, fiber_of, world_t

_LINE_SHIFT = 6
_SLOT_BITS = 13


@inline
def _takes_its_time(_cpu: Any, _address: int, _size: int) -> None:
    pass


@slow
def _write_virtually(cpu: Any, address: int, size: int) -> None:
    fiber = fiber_of(cpu)
    world = deref(world_t, fiber.world)
    # Counted from the world's own place: where the segment was mapped must not matter.
    first = (address - fiber.world) >> _LINE_SHIFT
    last = (address + size - 1 - fiber.world) >> _LINE_SHIFT
    for line in range(first, last + 1):
        place = element(int64_t, world.last_writers, (line ^ line >> _SLOT_BITS) & (LINES_REMEMBERED - 1))
        mine = line << _SLOT_BITS | (fiber.slot + 1)
        if place.value != mine:
            if place.value >> _SLOT_BITS == line:
                fiber.now_ps += cost_ps(world, COST_TRANSFER)
            place.value = mine


write_lines = by_engine(_takes_its_time, _write_virtually)
"""`write_lines(cpu, address, size)`: this CPU writes there, atomically or under a lock; `size` in bytes."""
