"""A spinlock that knows its owner and keeps statistics.

The word is 0 or the owner's name (slot and generation, never a pid: a zombie's pid looks alive), with a bit that says
someone sleeps. Taking a free lock is one compare-and-exchange, giving it back one exchange. A waiter spins briefly,
then sleeps on the word; with more processes than cores that is several times faster than spinning on. Sleeps are
bounded, and a waiter whose owner has been published dead takes the lock over.

Whoever calls passes its context record `cpu`, of which this file needs `owner` (int32, the name) and `dead_generation`
(address of one int64 for each slot, the generation that died there).
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import cmpxchg, read_once, xchg
from emu.native.clock import cpu_relax, sched_yield, ticks
from emu.native.compile import inline, jit, slow
from emu.native.futex import futex_wait, futex_wake
from emu.native.record import address_of, element, int64_t, struct

spinlock_t = struct(
    lines=("val",),
    val="i4",
    recovered="i4",
    acquisitions="i8",
    contended="i8",
    total_wait="i8",
    max_wait="i8",
)
"""`total_wait` and `max_wait` in ticks; all but `val` are written by the owner only."""

SLOT_BITS = 13
SLOT_MASK = (1 << SLOT_BITS) - 1
_GENERATION_MASK = (1 << 16) - 1
WAITERS = 1 << 30
_SPINS = 100
_SLEEP_NS = 50_000_000


def owner_word(slot: int, generation: int) -> int:
    """The name under which a slot's process takes locks; never 0."""
    return (generation & _GENERATION_MASK) << SLOT_BITS | (slot + 1)


@inline
def spin_lock(cpu: Any, lock: Any) -> None:
    """Take the lock. Acquire: pairs with the release in `spin_unlock`."""
    if cmpxchg(lock, "val", 0, cpu.owner) != 0:
        _spin_lock_slow(cpu, lock)
    lock.acquisitions += 1


@inline
def spin_unlock(cpu: Any, lock: Any) -> None:
    """Give the lock back. Release: pairs with the acquire in `spin_lock`."""
    if xchg(lock, "val", 0) & WAITERS:
        futex_wake(address_of(lock, "val"), 1)


@inline
def spin_lock_polling(cpu: Any, lock: Any) -> None:
    """Take the lock without ever sleeping on it: waiters give their core away between looks.

    Whoever gives the lock back then wakes nobody, and is not preempted for it before its next step.
    """
    if cmpxchg(lock, "val", 0, cpu.owner) != 0:
        _spin_lock_polling_slow(cpu, lock)
    lock.acquisitions += 1


@slow
def _spin_lock_polling_slow(cpu: Any, lock: Any) -> None:
    since = ticks()
    while not _poll_for_lock(cpu, lock):
        sched_yield()
    _note_wait(lock, ticks() - since)


@inline
def _poll_for_lock(cpu: Any, lock: Any) -> bool:
    """Look for a while; True when the lock was taken, from nobody or from a dead owner."""
    word = 0
    for _ in range(_SPINS):
        word = read_once(lock, "val")
        if word == 0 and cmpxchg(lock, "val", 0, cpu.owner) == 0:
            return True
        cpu_relax()
    return word != 0 and _is_dead(cpu, word) and _take_over(cpu, lock, word)


@slow
def _spin_lock_slow(cpu: Any, lock: Any) -> None:
    since = ticks()
    _wait_for_lock(cpu, lock)
    _note_wait(lock, ticks() - since)


@inline
def _note_wait(lock: Any, waited: int) -> None:
    lock.contended += 1
    lock.total_wait += waited
    lock.max_wait = max(lock.max_wait, waited)


@slow
def _wait_for_lock(cpu: Any, lock: Any) -> None:
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
        if not word & WAITERS:
            if cmpxchg(lock, "val", word, word | WAITERS) != word:
                continue
            word |= WAITERS
        futex_wait(address_of(lock, "val"), word, _SLEEP_NS)
        if read_once(lock, "val") == word and _is_dead(cpu, word) and _take_over(cpu, lock, word):
            return


@inline
def _take_over(cpu: Any, lock: Any, word: int) -> bool:
    """Take the lock of a dead owner; only one waiter succeeds."""
    if cmpxchg(lock, "val", word, cpu.owner | WAITERS) != word:
        return False
    lock.recovered += 1
    return True


@jit
def _is_dead(cpu: Any, word: int) -> bool:
    slot = (word & SLOT_MASK) - 1
    generation = (word & ~WAITERS) >> SLOT_BITS
    return bool(read_once(element(int64_t, cpu.dead_generation, slot), "value") == generation)
