"""Entries that the tests of emu.native call, plain functions when interpreted, and the processes that run them."""

import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import multiprocess
import numpy as np
from numba import njit

from emu.native.atomics import (
    atomic64_t,
    atomic_t,
    cmpxchg,
    ctz,
    fetch_add,
    fetch_and,
    fetch_or,
    fetch_xor,
    ilog2,
    interpreted,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    write_once,
    xchg,
)
from emu.native.bitmap import (
    bitmap_clear,
    bitmap_set,
    find_next_bit,
    find_next_zero_area,
    test_and_clear_bit,
    test_and_set_bit,
)
from emu.native.clock import clock_ns, cpu_relax, sleep_ns, ticks
from emu.native.compile import compile_entries
from emu.native.events import emit
from emu.native.futex import futex_wait, futex_wake
from emu.native.histogram import bucket_of, record_value
from emu.native.lock import spin_lock, spin_lock_polling, spin_unlock, spinlock_t
from emu.native.rbtree import rb_erase, rb_link_before, rb_link_last, rb_root
from emu.native.record import deref, element, int64_t, struct
from emu.native.timer import add_timer, timer_t, wait_for_timer, wheel_expiry

_fork = multiprocess.get_context("fork")

context_t = struct(
    native="i8", owner="i4", id="i8", slot="i8", dead_generation="i8", timers="i8", events="i8", records="i8"
)
"""What locks, timers and events need of the context of a process."""

guarded_t = struct(lock=spinlock_t, inside="i8", violations="i8", count="i8")
"""A lock and what it guards."""

harness = njit(nogil=True, error_model="numpy")
"""Not `entry`: these must not enter the package's cache."""


def scaled(compiled: int, plain: int) -> int:
    """How often to repeat something: interpreted code is a thousand times slower."""
    return plain if interpreted else compiled


def shared(dtype: Any, count: int = 1) -> Any:
    """Array of records, all zero, that forked processes share."""
    form = np.dtype(dtype)
    return np.frombuffer(mmap.mmap(-1, form.itemsize * count), form).view(np.recarray)


def at(array: Any, index: int = 0) -> int:
    """Address of an element; the caller keeps the array, or its memory is gone."""
    return int(array.ctypes.data) + index * array.dtype.itemsize


@contextmanager
def running(*calls: tuple[Callable[..., Any], *tuple[int, ...]], timeout_s: float = 20.0) -> Iterator[list[Any]]:
    """Processes that each call a harness function; at the end they have returned, or it is an error.

    A process that the test kills itself is not an error.
    """
    compile_entries(call[0] for call in calls)
    processes = [_fork.Process(target=call[0], args=call[1:], daemon=True) for call in calls]
    try:
        for process in processes:
            process.start()
        yield processes
        until = time.monotonic() + timeout_s
        for process in processes:
            process.join(max(until - time.monotonic(), 0))
            assert process.exitcode is not None, f"{process.name} does not return"
            assert process.exitcode <= 0, f"{process.name} failed"
    finally:
        for process in processes:
            if process.pid:
                process.kill()
                process.join()


def eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> bool:
    """Whether the condition comes true in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


# Atomics.


@harness
def add_64(address, value):
    return fetch_add(deref(atomic64_t, address), "counter", value)


@harness
def add_32(address, value):
    return fetch_add(deref(atomic_t, address), "counter", value)


@harness
def or_64(address, value):
    return fetch_or(deref(atomic64_t, address), "counter", value)


@harness
def and_64(address, value):
    return fetch_and(deref(atomic64_t, address), "counter", value)


@harness
def xor_64(address, value):
    return fetch_xor(deref(atomic64_t, address), "counter", value)


@harness
def exchange_64(address, value):
    return xchg(deref(atomic64_t, address), "counter", value)


@harness
def compare_exchange_64(address, old, new):
    return cmpxchg(deref(atomic64_t, address), "counter", old, new)


@harness
def store_and_load_64(address, value):
    record = deref(atomic64_t, address)
    write_once(record, "counter", value)
    first = read_once(record, "counter")
    smp_store_release(record, "counter", first + 1)
    return smp_load_acquire(record, "counter")


@harness
def highest_bit(value):
    return ilog2(value)


@harness
def lowest_bit(value):
    return ctz(value)


@harness
def add_often(address, times):
    counter = deref(atomic64_t, address)
    for _ in range(times):
        fetch_add(counter, "counter", 1)
    return 0


@harness
def increment_by_compare_exchange(address, times):
    counter = deref(atomic64_t, address)
    for _ in range(times):
        while True:
            seen = read_once(counter, "counter")
            if cmpxchg(counter, "counter", seen, seen + 1) == seen:
                break
    return 0


@harness
def store_then_look(mine, theirs, seen, rounds, barrier):
    """Store buffering: each round both sides store, then look at the other's; both seeing nothing is forbidden."""
    counter = deref(atomic64_t, barrier)
    for i in range(rounds):
        fetch_add(counter, "counter", 1)
        while smp_load_acquire(counter, "counter") < 2 * (i + 1):
            cpu_relax()
        write_once(element(int64_t, mine, i), "value", 1)
        smp_mb()
        element(int64_t, seen, i).value = read_once(element(int64_t, theirs, i), "value")
    return 0


# Locks.


@harness
def count_under_lock(context, address, rounds):
    """Increment under the lock, slowly; note whoever else is inside."""
    cpu = deref(context_t, context)
    guarded = deref(guarded_t, address)
    for _ in range(rounds):
        spin_lock(cpu, guarded.lock)
        if read_once(guarded, "inside") != 0:
            guarded.violations += 1
        write_once(guarded, "inside", 1)
        count = read_once(guarded, "count")
        for _ in range(20):
            cpu_relax()
        write_once(guarded, "count", count + 1)
        write_once(guarded, "inside", 0)
        spin_unlock(cpu, guarded.lock)
    return 0


@harness
def lock_once(context, address):
    cpu = deref(context_t, context)
    guarded = deref(guarded_t, address)
    spin_lock(cpu, guarded.lock)
    guarded.count += 1
    spin_unlock(cpu, guarded.lock)
    return 0


@harness
def count_polling(context, address, rounds):
    """Increment under the lock, waiting for it awake."""
    cpu = deref(context_t, context)
    guarded = deref(guarded_t, address)
    for _ in range(rounds):
        spin_lock_polling(cpu, guarded.lock)
        count = read_once(guarded, "count")
        for _ in range(20):
            cpu_relax()
        write_once(guarded, "count", count + 1)
        spin_unlock(cpu, guarded.lock)
    return 0


@harness
def take(context, address):
    spin_lock(deref(context_t, context), deref(guarded_t, address).lock)
    return 0


@harness
def give_back(context, address):
    spin_unlock(deref(context_t, context), deref(guarded_t, address).lock)
    return 0


@harness
def die_holding(context, address):
    """Take the lock, say so, and never give it back."""
    cpu = deref(context_t, context)
    guarded = deref(guarded_t, address)
    spin_lock(cpu, guarded.lock)
    write_once(guarded, "inside", 1)
    while True:
        sleep_ns(1_000_000_000)


@harness
def count_until_stopped(context, address, stop, progress):
    """Increment under the lock; count what has been done in `progress` as well."""
    cpu = deref(context_t, context)
    guarded = deref(guarded_t, address)
    own = deref(int64_t, progress)
    while not read_once(deref(int64_t, stop), "value"):
        spin_lock(cpu, guarded.lock)
        guarded.count += 1
        spin_unlock(cpu, guarded.lock)
        write_once(own, "value", own.value + 1)
    return 0


# Futexes.


@harness
def futex_wait_at(address, expected, timeout_ns):
    return futex_wait(address, expected, timeout_ns)


@harness
def futex_wake_at(address, waiters):
    return futex_wake(address, waiters)


@harness
def sleep_until_changed(address, expected, woken):
    """Sleep on a word for as long as it takes; count the return."""
    while read_once(deref(atomic_t, address), "counter") == expected:
        futex_wait(address, expected, 0)
    fetch_add(deref(atomic64_t, woken), "counter", 1)
    return 0


# Clocks.


@harness
def measure_clocks(ns_address, ticks_address):
    deref(int64_t, ns_address).value = clock_ns()
    deref(int64_t, ticks_address).value = ticks()
    return 0


# Histograms.


@harness
def bucket_index(value):
    return bucket_of(value)


@harness
def record_all(histogram, values, count):
    for i in range(count):
        record_value(histogram, element(int64_t, values, i).value)
    return 0


# Bitmaps.


@harness
def set_bits(bitmap, start, count):
    bitmap_set(bitmap, start, count)
    return 0


@harness
def clear_bits(bitmap, start, count):
    bitmap_clear(bitmap, start, count)
    return 0


@harness
def next_bit(bitmap, size, start):
    return find_next_bit(bitmap, size, start)


@harness
def zero_area(bitmap, size, start, count, boundary):
    return find_next_zero_area(bitmap, size, start, count, boundary)


@harness
def set_one_bit(bitmap, bit):
    return int(test_and_set_bit(bitmap, bit))


@harness
def clear_one_bit(bitmap, bit):
    return int(test_and_clear_bit(bitmap, bit))


@harness
def claim_bits(bitmap, bits, claimed):
    """Set every bit; count those that were clear."""
    own = deref(int64_t, claimed)
    for bit in range(bits):
        if not test_and_set_bit(bitmap, bit):
            own.value += 1
    return 0


# Trees.


@harness
def link_last(root, node):
    rb_link_last(deref(rb_root, root), node)
    return 0


@harness
def link_before(root, node, successor):
    rb_link_before(deref(rb_root, root), node, successor)
    return 0


@harness
def erase(root, node):
    rb_erase(deref(rb_root, root), node)
    return 0


# Timers.


@harness
def expiry(now_jiffies, delta_jiffies):
    return wheel_expiry(now_jiffies, delta_jiffies)


@harness
def arm(context, timer, delay_ns):
    return int(add_timer(deref(context_t, context), deref(timer_t, timer), delay_ns))


@harness
def run_one_timer(context, fired, fired_at_ns):
    """Sleep until a timer fires; note which and when."""
    cpu = deref(context_t, context)
    address = 0
    while address == 0:
        address = wait_for_timer(cpu, 5_000_000_000)
    deref(int64_t, fired_at_ns).value = clock_ns()
    smp_store_release(deref(int64_t, fired), "value", address)
    return 0


@harness
def look_for_timer(context, longest_ns):
    return wait_for_timer(deref(context_t, context), longest_ns)


# Events.


@harness
def emit_one(context, code, a, b, at_ticks):
    emit(deref(context_t, context), code, a, b, at_ticks)
    return 0


@harness
def emit_many(context, count):
    """Emit events numbered from 0 in `a`, with a check sum in `b`; those that are lost are numbered too."""
    cpu = deref(context_t, context)
    for i in range(count):
        emit(cpu, 7, i, i ^ 0x5A5A, 3 * i)
    return 0
