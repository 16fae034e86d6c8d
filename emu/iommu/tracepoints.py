"""What a CPU can note when it happens, in the manner of the kernel's tracepoints and of the probes beside them."""

from __future__ import annotations

from typing import Any

from emu.native.compile import slow
from emu.native.events import emit, event_ring_t
from emu.native.record import deref
from emu.native.time import now_ticks

EVENT_MAP, EVENT_UNMAP = 1, 2
"""A call of the DMA API has ended; `a` is the first pfn (0: the map failed) and `b` the number of pages."""

EVENT_FLUSH_TIMEOUT = 3
"""fq_flush_timeout() begins, and its flush follows; `b` is when it was due, in ns."""

EVENT_FLUSH, EVENT_FLUSHED = 4, 5
"""A domain-wide flush begins, and has ended. `a` is the number of unmaps that this CPU had finished before; during an
unmap that finds its queue full, that one not counted."""

EVENT_OVERRUN = 6
"""An append wrapped onto the head of its full ring; `a` as for a flush, `b` is the number of IOVAs lost."""


@slow
def trace(cpu: Any, code: int, b: int) -> None:
    """Note that something happened, where this CPU's events are recorded."""
    if cpu.events:
        emit(deref(event_ring_t, cpu.events), code, cpu.id, cpu.ctrs.unmaps, b, now_ticks(cpu))
