"""Flushes that begin and end when they did on a recorded machine: for replays at recorded times."""

from __future__ import annotations

from typing import Any

from emu.native.compile import slow
from emu.native.record import element, pointer_to, struct
from emu.native.time import now_ns

recorded_flush_t = struct(begin_ns="i8", end_ns="i8", resume_ns="i8", cpu="i8")
"""One domain-wide flush, on the run's clocks: when it was counted as started, when as finished, and when its CPU went
on."""

recorded_flushes = struct(first="i8", count="i8")
"""Array of recorded_flush_t in the order of their beginnings; empty on a machine that replays nothing."""

_EARLIEST_NS, _LATEST_NS = 1_000_000, 250_000_000


@slow
def find_recorded_flush(cpu: Any, flushes: Any) -> int:
    """Address of the flush that this CPU did then: its first that begins now or later, or 0."""
    if flushes.count == 0:
        return 0
    now = now_ns(cpu)
    low, high = 0, flushes.count
    while low < high:
        middle = (low + high) >> 1
        if element(recorded_flush_t, flushes.first, middle).begin_ns < now - _EARLIEST_NS:
            low = middle + 1
        else:
            high = middle
    while low < flushes.count:
        flush = element(recorded_flush_t, flushes.first, low)
        if flush.begin_ns > now + _LATEST_NS:
            return 0
        # One that began a moment ago and is over was the one before.
        if flush.cpu == cpu.id and flush.end_ns > now:
            return pointer_to(flush)
        low += 1
    return 0
