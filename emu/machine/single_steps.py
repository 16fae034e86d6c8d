"""Steps that are timed by themselves: over and over, with nobody else who wants anything."""

from __future__ import annotations

from emu.machine.context import cpu_t
from emu.native.atomics import read_once
from emu.native.clock import clock_ns
from emu.native.compile import entry
from emu.native.lock import spin_lock, spin_unlock, spinlock_t
from emu.native.record import deref
from emu.native.time import relax


@entry
def take_often(context: int, address: int, rounds: int) -> int:
    """Take and give back a lock; `context` is a cpu_t's, `address` a spinlock_t's. Returns ns."""
    cpu = deref(cpu_t, context)
    lock = deref(spinlock_t, address)
    since_ns = clock_ns()
    for _ in range(rounds):
        spin_lock(cpu, lock)
        spin_unlock(cpu, lock)
    return clock_ns() - since_ns


@entry
def look_often(context: int, rounds: int) -> int:
    """Look at a word that does not change, as those who wait awake do; `context` is a cpu_t's. Returns ns."""
    cpu = deref(cpu_t, context)
    since_ns = clock_ns()
    for _ in range(rounds):
        if read_once(cpu, "finished"):
            break
        relax(cpu)
    return clock_ns() - since_ns
