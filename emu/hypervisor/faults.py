"""Completions that go astray on purpose, and servers that are not steady: what `--fault` asks of a hypervisor.

A completion can be lost (`drop`), come once more when the guest has gone on (`duplicate`), or come after the one that
follows it (`reorder`). Which ones is a function of the seed and of the request's ticket, so a run on virtual clocks is
the same every time, and a server that takes a dead one's place goes on in its sense.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.state import REQUEST_DONE, REQUEST_POSTED, REQUEST_WAITERS, request_t
from emu.native.atomics import cmpxchg, xchg
from emu.native.compile import inline, jit, slow
from emu.native.futex import EVERYONE
from emu.native.lock import SLOT_BITS, SLOT_MASK
from emu.native.record import address_of, element
from emu.native.time import now_ns
from emu.native.wait import wake_up

_HELD_NS = 1_000_000
"""How long a completion waits for the next one to overtake it; a guest alone must not wait for ever."""
_MASK = (1 << 31) - 1
_DROP, _DUPLICATE, _REORDER, _JITTER = range(1, 5)


@jit
def _random(hv: Any, what: int, number: int) -> int:
    """31 bits that depend on the seed, on what they are for, and on a number; all arithmetic stays below 2^63."""
    x = (hv.faults.salt ^ (number * 0x9E3779B1) ^ (what * 0x85EBCA6B)) & _MASK
    for _ in range(3):
        x ^= x >> 15
        x = (x * 0x2C1B3C6D) & _MASK
        x ^= x >> 12
        x = (x * 0x297A2D39) & _MASK
    return x ^ (x >> 15)


@slow
def jitter_ns(hv: Any, number: int) -> int:
    """How much longer a request takes, from 0 to the jitter."""
    return _random(hv, _JITTER, number & _MASK) * hv.faults.jitter_ns >> 31


@inline
def complete(cpu: Any, request: Any) -> None:
    """Let the guest go on."""
    # Full barrier: the shadow table is up to date before the guest goes on.
    if xchg(request, "state", REQUEST_DONE) & REQUEST_WAITERS:
        wake_up(cpu, address_of(request, "state"), EVERYONE)


@slow
def _complete_if_waiting(cpu: Any, request: Any) -> bool:
    """Deliver a completion that nobody may be waiting for; True when somebody was."""
    for waiters in (0, REQUEST_WAITERS):
        if cmpxchg(request, "state", REQUEST_POSTED | waiters, REQUEST_DONE) == REQUEST_POSTED | waiters:
            wake_up(cpu, address_of(request, "state"), EVERYONE)
            return True
    return False


@slow
def _befalls(hv: Any, what: int, ticket: int, one_in: int) -> bool:
    return bool(one_in and _random(hv, what, ticket) % one_in == 0)


@slow
def complete_with_faults(cpu: Any, hv: Any, server: Any, posted: int) -> None:
    """Complete the request that this word of the queue stands for, or have it go astray."""
    ticket, slot = posted >> SLOT_BITS, posted & SLOT_MASK
    faults = hv.faults
    if faults.drop_next or _befalls(hv, _DROP, ticket, faults.drop_one_in):
        faults.drop_next = 0
        server.dropped += 1
    elif not server.held and (faults.reorder_next or _befalls(hv, _REORDER, ticket, faults.reorder_one_in)):
        faults.reorder_next = 0
        server.held = slot
        server.held_until_ns = now_ns(cpu) + _HELD_NS
        return
    else:
        complete(cpu, element(request_t, hv.requests, slot - 1))
        if faults.duplicate_next or _befalls(hv, _DUPLICATE, ticket, faults.duplicate_one_in):
            faults.duplicate_next = 0
            server.again = slot
    if server.held:
        server.reordered += 1
        complete(cpu, element(request_t, hv.requests, server.held - 1))
        server.held = 0


@slow
def deliver_late(cpu: Any, hv: Any, server: Any) -> None:
    """What is still to be delivered: a completion once more, or one held back for which no other has come."""
    if server.again and _complete_if_waiting(cpu, element(request_t, hv.requests, server.again - 1)):
        server.duplicated += 1
        server.again = 0
    if server.held and now_ns(cpu) >= server.held_until_ns:
        complete(cpu, element(request_t, hv.requests, server.held - 1))
        server.held = 0
