"""What a flush queue leaves to a policy: which ring, when to flush, range or global, how long to wait, what to free.

The steps below are asked for by name where `flush_queue.py` and `dma.py` have to decide. Built in is what Linux does;
it vanishes into the hot path. A policy of the user's gives some of them another meaning (`put_in`), for machines whose
contexts are marked with its name, so that neither pays for the other. What it answers is looked at before it is used:
a ring that there is not is a violation that is counted, never a write into foreign memory.

Two things are no policy's choice: an IOVA that was queued is freed only off the head of its ring, and a ring without
room is flushed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from emu.native.compile import inline, jit, slow
from emu.native.engine import by_mark
from emu.oracle.findings import NO_SUCH_RING, NO_SUCH_TIMEOUT, note_violation

LONGEST_TIMEOUT_NS = 3_600_000_000_000
"""What a policy may answer at most: an hour, as `fq_timeout_ms`."""


@inline
def _ring_of(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> int:
    """Of several rings, the number of the one on which an unmapped IOVA is put: this CPU's own."""
    return cpu.id


@inline
def _flush_at_once(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> bool:
    """Whether an unmap flushes its range and frees the IOVA, as if there were no queue: never."""
    return False


@inline
def _flush_before(cpu: Any, cookie: Any, fq: Any, iova_pfn: int, pages: int) -> bool:
    """Whether a ring that has room is flushed before an IOVA is appended to it: never."""
    return False


@inline
def _flush_after(cpu: Any, cookie: Any, fq: Any) -> bool:
    """Whether a ring is flushed once an IOVA has been appended to it: never."""
    return False


@inline
def _flush_by_range(cpu: Any, cookie: Any, fq: Any) -> bool:
    """Whether a ring's flush is one of its entries' ranges, which frees no other ring's: never, it is of everything."""
    return False


@inline
def _timeout_ns(cpu: Any, cookie: Any) -> int:
    """How long the flush timer runs that is armed now: always the same."""
    return cookie.fq_timeout_ns


@inline
def _may_free(cpu: Any, cookie: Any, entry: Any, counter: int) -> bool:
    """Whether the entry at a ring's head is freed: when more flushes have finished than had started at its append."""
    return entry.counter < counter


ring_of = by_mark(_ring_of)
flush_at_once = by_mark(_flush_at_once)
flush_before = by_mark(_flush_before)
flush_after = by_mark(_flush_after)
flush_by_range = by_mark(_flush_by_range)
timeout_ns = by_mark(_timeout_ns)
may_free = by_mark(_may_free)

STEPS = {
    "ring_of": ring_of,
    "flush_at_once": flush_at_once,
    "flush_before": flush_before,
    "flush_after": flush_after,
    "flush_by_range": flush_by_range,
    "timeout_ns": timeout_ns,
    "may_free": may_free,
}
"""By the names that a policy's file gives its functions."""


@slow
def refuse_ring(cpu: Any, cookie: Any, iova_pfn: int, ring: int) -> int:
    """A policy has named a ring that there is not: count it. Returns the one that is taken instead."""
    note_violation(cpu, NO_SUCH_RING, iova_pfn, cookie.fq_rings, ring)
    return cpu.id % cookie.fq_rings


@slow
def refuse_timeout(cpu: Any, cookie: Any, delay_ns: int) -> int:
    """A policy has asked for a timeout that cannot be: count it. Returns the one that is taken instead."""
    note_violation(cpu, NO_SUCH_TIMEOUT, 0, LONGEST_TIMEOUT_NS, delay_ns)
    return cookie.fq_timeout_ns


def _ring_checked(answer: Any) -> Any:
    @inline
    def ring_of(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> int:
        ring = int(answer(cpu, cookie, iova_pfn, pages))
        if ring < 0 or ring >= cookie.fq_rings:
            return refuse_ring(cpu, cookie, iova_pfn, ring)
        return ring

    return ring_of


def _timeout_checked(answer: Any) -> Any:
    @inline
    def timeout_ns(cpu: Any, cookie: Any) -> int:
        delay_ns = int(answer(cpu, cookie))
        if delay_ns <= 0 or delay_ns > LONGEST_TIMEOUT_NS:
            return refuse_timeout(cpu, cookie, delay_ns)
        return delay_ns

    return timeout_ns


_CHECKED: Mapping[str, Callable[[Any], Any]] = {"ring_of": _ring_checked, "timeout_ns": _timeout_checked}


def put_in(mark: str, functions: Mapping[str, Any]) -> dict[str, Any]:
    """Give the steps that a policy defines its meaning, for contexts with its mark.

    Args:
        mark: name of the second field of the policy's contexts.
        functions: all functions of its file by name, plain Python; those that are no step are parts of others.

    Returns:
        Function by name, compiled: what the names stand for in the file's module from now on.
    """
    compiled = {name: inline(function) if name in STEPS else jit(function) for name, function in functions.items()}
    for name, step in STEPS.items():
        if name in compiled:
            step.meanings[mark] = _CHECKED.get(name, lambda answer: answer)(compiled[name])
    return compiled
