"""Time as a CPU of the machine sees it.

The clock belongs to the CPU that asks, so that one source can run on real clocks and on virtual ones.
"""

from __future__ import annotations

from typing import Any

from emu.native.clock import clock_ns, cpu_relax, sleep_ns, ticks
from emu.native.compile import inline, slow

_SPIN_NS = 60_000


@inline
def now_ns(cpu: Any) -> int:
    """This CPU's clock in ns, for deadlines and timers."""
    return clock_ns()


@inline
def now_ticks(cpu: Any) -> int:
    """This CPU's clock in ticks, for measuring."""
    return ticks()


@slow
def spend_until(cpu: Any, deadline_ns: int) -> None:
    """Let time pass until the deadline: asleep while it is far, awake when it is near."""
    remaining_ns = deadline_ns - now_ns(cpu)
    if remaining_ns > 2 * _SPIN_NS:
        sleep_ns(remaining_ns - _SPIN_NS)
    while now_ns(cpu) < deadline_ns:
        cpu_relax()
