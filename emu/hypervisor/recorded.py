"""Flushes that take as long as those of a capture did: for replays at recorded times."""

from __future__ import annotations

from typing import Any

from emu.native.compile import jit, slow
from emu.native.record import element, struct
from emu.native.time import now_ns, spend_until

recorded_flush_t = struct(begin_ns="i8", end_ns="i8", cpu="i8")
"""One domain-wide flush of the capture, on the run's clocks."""

_WINDOW_NS = 25_000_000
"""How far from its recorded moment a flush may happen here and still be that one."""


@jit
def _first_after(hv: Any, at_ns: int) -> int:
    """Index of the first recorded flush that begins at `at_ns` or later."""
    low, high = 0, hv.recorded_count
    while low < high:
        middle = (low + high) >> 1
        if element(recorded_flush_t, hv.recorded, middle).begin_ns < at_ns:
            low = middle + 1
        else:
            high = middle
    return low


@slow
def spend_as_recorded(cpu: Any, hv: Any) -> None:
    """Let the time pass that this CPU's flush took when it was recorded; none if there was no such flush."""
    at_ns = now_ns(cpu)
    end_ns = at_ns
    nearest_ns = _WINDOW_NS
    i = _first_after(hv, at_ns - _WINDOW_NS)
    while i < hv.recorded_count:
        flush = element(recorded_flush_t, hv.recorded, i)
        if flush.begin_ns > at_ns + _WINDOW_NS:
            break
        if flush.cpu == cpu.id and abs(flush.begin_ns - at_ns) < nearest_ns:
            nearest_ns = abs(flush.begin_ns - at_ns)
            end_ns = flush.end_ns
        i += 1
    spend_until(cpu, max(end_ns, at_ns))
