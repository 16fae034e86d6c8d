"""Time as a CPU of the machine sees it.

The clock belongs to the CPU that asks: the machine's own, or a virtual one that moves when the CPU spends time and by
what its steps cost.
"""

from __future__ import annotations

from typing import Any

from emu.native.clock import clock_ns, cpu_relax, sched_yield, sleep_ns, ticks
from emu.native.compile import inline, slow
from emu.native.cost import COST_RELAX
from emu.native.engine import by_engine
from emu.native.record import deref
from emu.native.virtual import PS, cost_ps, fiber_of, give_way, let_others_run, pass_time_until, take_turn, world_t

_SPIN_NS = 60_000


@inline
def _clock_ns(_cpu: Any) -> int:
    return clock_ns()


@inline
def _virtual_ns(cpu: Any) -> int:
    return fiber_of(cpu).now_ps // PS


now_ns = by_engine(_clock_ns, _virtual_ns)
"""`now_ns(cpu)`: this CPU's clock in ns, for deadlines and timers."""


@inline
def _ticks(_cpu: Any) -> int:
    return ticks()


@inline
def _virtual_ticks(cpu: Any) -> int:
    return fiber_of(cpu).now_ps // PS


now_ticks = by_engine(_ticks, _virtual_ticks)
"""`now_ticks(cpu)`: this CPU's clock in ticks, for measuring; a virtual clock's tick is a ns."""


@slow
def _spend_until(cpu: Any, deadline_ns: int) -> None:
    remaining_ns = deadline_ns - clock_ns()
    if remaining_ns > 2 * _SPIN_NS:
        sleep_ns(remaining_ns - _SPIN_NS)
    while clock_ns() < deadline_ns:
        cpu_relax()


@slow
def _spend_virtually_until(cpu: Any, deadline_ns: int) -> None:
    pass_time_until(fiber_of(cpu), deadline_ns * PS)


spend_until = by_engine(_spend_until, _spend_virtually_until)
"""`spend_until(cpu, deadline_ns)`: let time pass: asleep while the deadline is far, awake when it is near."""


@inline
def _takes_its_time(_cpu: Any, _step: int, _times: int) -> None:
    pass


@inline
def _charge(cpu: Any, step: int, times: int) -> None:
    fiber = fiber_of(cpu)
    fiber.now_ps += times * cost_ps(deref(world_t, fiber.world), step)


charge = by_engine(_takes_its_time, _charge)
"""`charge(cpu, step, times)`: what a step of emu.native.cost costs; on real clocks it takes what it takes."""


@inline
def _always_in_time(_cpu: Any) -> None:
    pass


begin_operation = by_engine(_always_in_time, take_turn)
"""`begin_operation(cpu)`: on virtual clocks, let those CPUs go first whose clocks are behind."""


@inline
def _relax(_cpu: Any) -> None:
    cpu_relax()


@inline
def _relax_virtually(cpu: Any) -> None:
    fiber = fiber_of(cpu)
    fiber.now_ps += cost_ps(deref(world_t, fiber.world), COST_RELAX)
    give_way(fiber)


relax = by_engine(_relax, _relax_virtually)
"""`relax(cpu)`: one round of a loop that waits awake."""


@inline
def _yield(_cpu: Any) -> None:
    cpu_relax()
    sched_yield()


yield_core = by_engine(_yield, let_others_run)
"""`yield_core(cpu)`: one round of a loop that gives its core away while it waits."""
