"""What a process of the machine notes when it happens, in the manner of the kernel's tracepoints.

Flushes, their timer and what goes wrong are noted always; every operation and every request only where the context says
so (`records`).
"""

from __future__ import annotations

from typing import Any

from emu.native.compile import slow
from emu.native.events import emit
from emu.native.time import now_ticks

EVENT_MAP, EVENT_UNMAP = 1, 2
"""A call of the DMA API has ended; `a` is the first pfn (0: the map failed), `b` the number of pages, and above
PAGES_BITS the ticks that it took."""
PAGES_BITS = 24

EVENT_FLUSH_TIMEOUT = 3
"""fq_flush_timeout() begins, and its flush follows; `b` is when it was due, in ns."""

EVENT_FLUSH, EVENT_FLUSHED = 4, 5
"""A domain-wide flush begins, and has ended. `a` is the number of unmaps that this CPU had finished before; during an
unmap that finds its queue full, that one not counted. `b` of its beginning is the cause, and below CAUSE_SHIFT the
number of IOVAs that wait for it, as far as this CPU sees; of its end the number of those that still wait."""

EVENT_OVERRUN = 6
"""An append wrapped onto the head of its full ring; `a` as for a flush, `b` is the number of IOVAs lost."""

EVENT_TIMER_ARMED = 7
"""The flush timer was armed; `b` is when it is due, in ns."""

EVENT_RPCIT, EVENT_RPCIT_DONE = 8, 9
"""A request to the hypervisor is posted: `a` is its first pfn, `b` the number of pages, negative where it is for
everything. It has been answered: `a` is walked << 32 | changed, `b` is wait << 32 | service, both in ns. Those for
everything are always noted."""

CAUSE_SHIFT = 48
CAUSE_FULL, CAUSE_TIMEOUT, CAUSE_NO_RESOURCES, CAUSE_WRAP, CAUSE_EARLY = range(5)
"""Why everything is flushed; the last: a policy asked for it before the ring was full."""


@slow
def trace(cpu: Any, code: int, b: int) -> None:
    """Note that something happened, where this process has a ring for it."""
    if cpu.events:
        emit(cpu, code, cpu.ctrs.unmaps, b, now_ticks(cpu))
