"""Flushes that begin and end when they did on a recorded machine: for replays at recorded times."""

from __future__ import annotations

from typing import Any

from emu.native.compile import slow
from emu.native.record import element, pointer_to, struct
from emu.native.time import now_ns

recorded_flush_t = struct(cause_ns="i8", begin_ns="i8", end_ns="i8", resume_ns="i8", cpu="i8")
"""One domain-wide flush, on the run's clocks: when its timer fired or its unmap found the ring full, when it was
counted as started, when as finished, and when its CPU went on."""

recorded_flushes = struct(first="i8", count="i8")
"""Array of recorded_flush_t in the order of their causes; empty on a machine that replays nothing."""

_LONGEST_NS = 1_000_000_000
"""No flush is over later than that after its cause."""


@slow
def find_recorded_flush(cpu: Any, flushes: Any) -> int:
    """Address of the flush that this CPU did then: the last whose cause has happened, if it is not over; else 0."""
    now = now_ns(cpu)
    low, high = 0, flushes.count
    while low < high:
        middle = (low + high) >> 1
        if element(recorded_flush_t, flushes.first, middle).cause_ns <= now:
            low = middle + 1
        else:
            high = middle
    while low > 0:
        low -= 1
        flush = element(recorded_flush_t, flushes.first, low)
        if flush.cause_ns < now - _LONGEST_NS:
            return 0
        if flush.cpu == cpu.id:
            return pointer_to(flush) if flush.end_ns > now else 0
    return 0
