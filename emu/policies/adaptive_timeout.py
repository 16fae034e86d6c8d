"""A timer that waits longer while rings fill by themselves, and comes back when they do not.

Under load a ring is full, and flushed, long before the timer fires: its flush is one more, and as dear as theirs, but
frees next to nothing. So whenever flushes have finished between two armings besides the timer's own, the timeout is
doubled; when none has, it is halved, down to the usual one, so that what an idle device has unmapped does not stay
within its reach.
"""

from typing import Any

from emu.iommu.policy import LONGEST_TIMEOUT_NS
from emu.native.atomics import read_once, write_once
from emu.native.record import deref, struct

MOST_DOUBLINGS = 5
"""From 10 ms to 320 ms."""

shared_state = struct(doublings="i8", finished="i8")
"""`finished`: flushes that had finished when the timer was armed last."""


def timeout_ns(cpu: Any, cookie: Any) -> int:
    """The usual time, doubled as often as there was reason to."""
    state = deref(shared_state, cookie.policy)
    # Whoever arms the timer is alone in doing so until it has fired.
    finished = read_once(cookie.fq_flush_finish_cnt, "counter")
    others = finished - read_once(state, "finished") - 1
    doublings = read_once(state, "doublings")
    doublings = min(doublings + 1, MOST_DOUBLINGS) if others > 0 else max(doublings - 1, 0)
    write_once(state, "doublings", doublings)
    write_once(state, "finished", finished)
    return min(cookie.fq_timeout_ns << doublings, LONGEST_TIMEOUT_NS)
