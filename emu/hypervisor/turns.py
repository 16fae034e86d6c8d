"""Whose turn it is where every CPU serves itself: first come, first served, as from the kernel's queued spinlocks.

A lock that whoever looks at the right moment gets is not fair: a CPU that traps all the time would keep the timer
waiting, and each other. So a CPU that comes takes a ticket, and only whose ticket is first tries for the lock. The
tickets decide the order only; that one serves at a time is the lock's affair. A ticket names its CPU from the moment it
is taken, so that those behind it can pass one that has died.
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import cmpxchg, int64_t, read_once, smp_load_acquire
from emu.native.clock import cpu_relax, sched_yield
from emu.native.compile import inline, slow
from emu.native.engine import by_engine
from emu.native.lines import write_lines
from emu.native.lock import SLOT_BITS, SLOT_MASK
from emu.native.record import address_of, element
from emu.native.wait import is_aborted

_LOOKS = 100
_WORD_BYTES = int64_t.itemsize


@slow
def _take_ticket(cpu: Any, hv: Any) -> int:
    """Queue for the lock; returns the ticket, or -1 when as many wait as may."""
    write_lines(cpu, address_of(hv, "tail"), _WORD_BYTES)
    while True:
        ticket = read_once(hv, "tail")
        # Read after the tail, and it only grows: when the exchange succeeds, no more than this are waiting.
        if hv.queue_limit and ticket - read_once(hv, "head") >= hv.queue_limit:
            return -1
        place = element(int64_t, hv.ring, ticket & hv.ring_mask)
        found = read_once(place, "value")
        # Of those that want one ticket the exchange chooses; each of them moves the tail on.
        is_mine = not _is_taken(found, ticket) and _enter(cpu, place, found, ticket)
        cmpxchg(hv, "tail", ticket, ticket + 1)
        if is_mine:
            return ticket


@inline
def _is_taken(found: int, ticket: int) -> bool:
    return (found & SLOT_MASK) != 0 and found >> SLOT_BITS >= ticket


@inline
def _enter(cpu: Any, place: Any, found: int, ticket: int) -> bool:
    return cmpxchg(place, "value", found, ticket << SLOT_BITS | (cpu.slot + 1)) == found


@slow
def _await_turn(cpu: Any, hv: Any, ticket: int) -> None:
    while True:
        for _ in range(_LOOKS):
            # Acquire: pairs with the exchange in _let_next_try(), so that the one before has the lock or had it.
            if smp_load_acquire(hv, "head") >= ticket:
                return
            cpu_relax()
        if is_aborted(cpu):
            return
        _pass_the_dead(cpu, hv)
        sched_yield()


@slow
def _pass_the_dead(cpu: Any, hv: Any) -> None:
    """Move on when whoever is first has died before it had the lock."""
    first = read_once(hv, "head")
    entered = read_once(element(int64_t, hv.ring, first & hv.ring_mask), "value")
    slot = entered & SLOT_MASK
    if not slot or entered >> SLOT_BITS != first:
        return
    if read_once(element(int64_t, cpu.dead_generation, slot - 1), "value"):
        cmpxchg(hv, "head", first, first + 1)


@slow
def _take_turn(cpu: Any, hv: Any) -> int:
    ticket = _take_ticket(cpu, hv)
    if ticket >= 0:
        _await_turn(cpu, hv, ticket)
    return ticket


@inline
def _let_next_try(cpu: Any, hv: Any, ticket: int) -> None:
    write_lines(cpu, address_of(hv, "head"), _WORD_BYTES)
    # Fails when those behind took this CPU for dead; they have moved on then.
    cmpxchg(hv, "head", ticket, ticket + 1)


# Who comes first on virtual clocks also gets the lock first.
take_turn = by_engine(_take_turn, _take_ticket)
"""`take_turn(cpu, hv)`: queue, and wait awake until all who came before have the lock, or had it; then try for it.
Returns the ticket, or -1 when as many wait as may."""

let_next_try = by_engine(_let_next_try, _let_next_try)
"""`let_next_try(cpu, hv, ticket)`: whoever holds this ticket has the lock now."""
