"""A spinlock that knows its owner and keeps statistics.

The word is 0 or the owner's name (slot and generation, never a pid: a zombie's pid looks alive), with a bit that says
someone sleeps, and one that says its owner is dead, which spares those who are about to sleep from doing so. Taking a
free lock is one compare-and-exchange, giving it back one exchange. A waiter spins briefly, then sleeps on the word;
with more processes than cores that is several times faster than spinning on. Sleeps are bounded, and a waiter whose
owner has been published dead takes the lock over; what the lock guards has been repaired before that. On virtual clocks
waiters get the lock in the order in which they came, each when the one before gives it back, as from the kernel's
queued spinlocks.

Whoever calls passes its context record `cpu`, of which this file needs `owner` (int32, the name), `dead_generation`
(address of one int64 for each slot, the generation that died there), `events` (its ring of events, or 0) and `records`
(whether each wait is to be noted there).
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import barrier, cmpxchg, fetch_or, read_once, xchg
from emu.native.clock import cpu_relax, sched_yield, ticks
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_LOCK, COST_TRANSFER
from emu.native.engine import by_engine
from emu.native.events import emit
from emu.native.futex import EVERYONE, futex_wait, futex_wake
from emu.native.record import address_of, deref, element, int64_t, struct
from emu.native.virtual import NEVER_PS, PS, cost_ps, fiber_of, give_way, sleep_on, wake_first, world_t

spinlock_t = struct(
    lines=("val",),
    val="i4",
    recovered="i4",
    id="i4",
    acquisitions="i8",
    contended="i8",
    total_wait="i8",
    max_wait="i8",
    free_at_ps="i8",
    last_owner="i4",
    handover="i8",
)
"""`id`: the name by which events call it. `total_wait` and `max_wait` in ticks; all but `val` are written by the owner
only. `free_at_ps` and `last_owner` belong to virtual clocks: when, and by whom, the lock was given back. `handover`: of
a lock whose owner died, the ticks at which that was noticed; once `recovered` has counted that it was taken over, how
many ticks whoever waited for it waited after that."""

EVENT_LOCK_WAIT, EVENT_LOCK_TAKEN_OVER = 64, 65
"""A lock was taken that had to be waited for; it was taken from a dead owner. `a` is its `id`, `b` the ticks waited,
or those since the death was noticed."""

SLOT_BITS = 13
SLOT_MASK = (1 << SLOT_BITS) - 1
_GENERATION_MASK = (1 << 16) - 1
ORPHANED = 1 << 29
WAITERS = 1 << 30
_FLAGS = ORPHANED | WAITERS
_SPINS = 100
_SLEEP_NS = 50_000_000


def owner_word(slot: int, generation: int) -> int:
    """The name under which a slot's process takes locks; never 0."""
    return (generation & _GENERATION_MASK) << SLOT_BITS | (slot + 1)


@inline
def _spin_lock(cpu: Any, lock: Any) -> None:
    # Acquire: pairs with the release in _spin_unlock().
    if cmpxchg(lock, "val", 0, cpu.owner) != 0:
        _spin_lock_slow(cpu, lock)
    lock.acquisitions += 1


@inline
def _spin_unlock(cpu: Any, lock: Any) -> None:
    # Release: pairs with the acquire in _spin_lock().
    if xchg(lock, "val", 0) & WAITERS:
        futex_wake(address_of(lock, "val"), 1)


@inline
def _spin_lock_polling(cpu: Any, lock: Any) -> None:
    if cmpxchg(lock, "val", 0, cpu.owner) != 0:
        _spin_lock_polling_slow(cpu, lock)
    lock.acquisitions += 1


@slow
def _spin_lock_polling_slow(cpu: Any, lock: Any) -> None:
    since = ticks()
    while not _poll_for_lock(cpu, lock, since):
        sched_yield()
    _note_wait(cpu, lock, since, ticks())


@inline
def _poll_for_lock(cpu: Any, lock: Any, since: int) -> bool:
    """Look for a while; True when the lock was taken, from nobody or from a dead owner."""
    word = 0
    for _ in range(_SPINS):
        word = read_once(lock, "val")
        if word == 0 and cmpxchg(lock, "val", 0, cpu.owner) == 0:
            return True
        cpu_relax()
    return word != 0 and _is_dead(cpu, word) and _take_over(cpu, lock, word, since)


@slow
def _spin_lock_slow(cpu: Any, lock: Any) -> None:
    since = ticks()
    _wait_for_lock(cpu, lock, since)
    _note_wait(cpu, lock, since, ticks())


@inline
def _note_wait(cpu: Any, lock: Any, since: int, until: int) -> None:
    waited = until - since
    lock.contended += 1
    lock.total_wait += waited
    lock.max_wait = max(lock.max_wait, waited)
    if cpu.records:
        emit(cpu, EVENT_LOCK_WAIT, lock.id, waited, until)


@slow
def _wait_for_lock(cpu: Any, lock: Any, since: int) -> None:
    for _ in range(_SPINS):
        if read_once(lock, "val") == 0 and cmpxchg(lock, "val", 0, cpu.owner) == 0:
            return
        cpu_relax()
    while True:
        word = read_once(lock, "val")
        if word == 0:
            # Others may sleep too, and whoever woke us has cleared the bit that says so.
            if cmpxchg(lock, "val", 0, cpu.owner | WAITERS) == 0:
                return
            continue
        if _is_dead(cpu, word):
            if _take_over(cpu, lock, word, since):
                return
            continue
        if not word & WAITERS:
            if cmpxchg(lock, "val", word, word | WAITERS) != word:
                continue
            word |= WAITERS
        futex_wait(address_of(lock, "val"), word, _SLEEP_NS)


@inline
def _take_over(cpu: Any, lock: Any, word: int, since: int) -> bool:
    """Take the lock of a dead owner; only one waiter succeeds."""
    if cmpxchg(lock, "val", word, cpu.owner | WAITERS) != word:
        return False
    now = ticks()
    lock.handover = now - max(lock.handover, since)
    barrier()
    lock.recovered += 1
    if cpu.events:
        emit(cpu, EVENT_LOCK_TAKEN_OVER, lock.id, lock.handover, now)
    return True


@jit
def _is_dead(cpu: Any, word: int) -> bool:
    slot = (word & SLOT_MASK) - 1
    generation = (word & ~_FLAGS) >> SLOT_BITS
    return bool(read_once(element(int64_t, cpu.dead_generation, slot), "value") == generation)


@inline
def _lock_virtually(cpu: Any, lock: Any) -> None:
    fiber = fiber_of(cpu)
    give_way(fiber)
    world = deref(world_t, fiber.world)
    fiber.now_ps += cost_ps(world, COST_LOCK)
    if lock.val != 0 or lock.free_at_ps > fiber.now_ps:
        _queue_for_lock(cpu, lock)
    # The line comes when the lock has been given back.
    if lock.last_owner and lock.last_owner != cpu.owner:
        fiber.now_ps += cost_ps(world, COST_TRANSFER)
    lock.val |= cpu.owner
    lock.acquisitions += 1


@slow
def _queue_for_lock(cpu: Any, lock: Any) -> None:
    """Wait for those who came before; whoever gives the lock back leaves it to the first of the queue."""
    fiber = fiber_of(cpu)
    since_ps = fiber.now_ps
    if lock.val != 0:
        lock.val |= WAITERS
        sleep_on(fiber, address_of(lock, "val"), NEVER_PS)
    # A CPU whose clock is a little ahead may have given it back already, in this one's future.
    fiber.now_ps = max(fiber.now_ps, lock.free_at_ps)
    _note_wait(cpu, lock, since_ps // PS, fiber.now_ps // PS)


@inline
def _unlock_virtually(cpu: Any, lock: Any) -> None:
    fiber = fiber_of(cpu)
    lock.free_at_ps = fiber.now_ps
    lock.last_owner = cpu.owner
    if lock.val & WAITERS:
        _pass_lock_on(fiber, lock)
    else:
        lock.val = 0


@slow
def _pass_lock_on(fiber: Any, lock: Any) -> None:
    # Held for the next one, so that nobody who comes meanwhile is served before it.
    lock.val = WAITERS if wake_first(deref(world_t, fiber.world), address_of(lock, "val"), fiber.now_ps) else 0


spin_lock = by_engine(_spin_lock, _lock_virtually)
"""`spin_lock(cpu, lock)`: take the lock. Acquire: pairs with the release in `spin_unlock`."""

spin_unlock = by_engine(_spin_unlock, _unlock_virtually)
"""`spin_unlock(cpu, lock)`: give the lock back. Release: pairs with the acquire in `spin_lock`."""

spin_lock_polling = by_engine(_spin_lock_polling, _lock_virtually)
"""`spin_lock_polling(cpu, lock)`: take it without ever sleeping on it: waiters give their core away between looks.

Whoever gives the lock back then wakes nobody, and is not preempted for it before its next step.
"""


@inline
def is_held_by(lock: Any, owner: int) -> bool:
    """Whether the word names this owner."""
    return (read_once(lock, "val") & ~_FLAGS) == owner


@inline
def orphan(lock: Any) -> None:
    """Wake those who wait for the lock of an owner that has been published dead."""
    fetch_or(lock, "val", ORPHANED)
    futex_wake(address_of(lock, "val"), EVERYONE)
