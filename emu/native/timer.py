"""Timers that one process runs for all: armed through shared memory, fired at the tick.

As in kernel/time/timer.c a timer never fires early: its expiry is rounded up to jiffies, then to the granularity of the
timer wheel's level it falls into, and it fires at that tick. So 10 ms at HZ 250 becomes 12 to 16 ms, and 1000 ms
becomes 1000 to 1032 ms.
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import cmpxchg, fetch_add, read_once, smp_load_acquire, smp_mb, smp_store_release, write_once
from emu.native.compile import inline, jit, slow
from emu.native.futex import EVERYONE
from emu.native.record import address_of, deref, element, int64_t, struct
from emu.native.time import now_ns
from emu.native.wait import wait_on, wake_up

TIMER_IDLE, TIMER_ARMING, TIMER_PENDING = 0, 1, 2

timer_t = struct(
    state="i8",
    expires_ns="i8",
    due_ns="i8",
    armed_by="i8",
    armed_at_ns="i8",
    fired_ns="i8",
    is_recorded="i8",
)
"""`armed_by` is the emulated CPU's number: the callback acts on its behalf. It fires at `expires_ns`: when it is due
or, with `is_recorded`, when it did on a recorded machine. `fired_ns`: when it did last."""

firing_t = struct(at_ns="i8", cpu="i8")
"""A timer fired, on a recorded machine."""

timer_base_t = struct(
    lines=("doorbell", "tick_ns"),
    doorbell="i4",
    sleeps_until_ns="i8",
    tick_ns="i8",
    jiffies_start_ns="i8",
    timers="i8",
    count="i8",
    recorded="i8",
    recorded_count="i8",
    late_ns="i8",
)
"""`timers` is an array of `count` addresses of timer_t; jiffies are counted from `jiffies_start_ns`.
`recorded`: array of `recorded_count` firing_t in their order, or 0. `late_ns`: how much later (or
earlier) than it is due every timer fires, on purpose."""

NEVER = 1 << 62
_LATEST_NS = 1_000_000_000
"""Later than that, a recorded firing was another one's."""
_BUSY_NS = 100_000_000
"""Longer than that after its firing, a timer's flush is no longer at work."""
_WHEEL_BITS, _LEVEL_SHIFT, _LEVELS = 6, 3, 9


@inline
def _jiffies(cpu: Any, base: Any) -> int:
    return (now_ns(cpu) - base.jiffies_start_ns) // base.tick_ns


@jit
def wheel_shift(delta_jiffies: int) -> int:
    """log2 of the jiffies by which a timer of that length is rounded: those of its level of the wheel."""
    level = 0
    while level < _LEVELS - 1 and delta_jiffies >= ((1 << _WHEEL_BITS) - 1) << (_LEVEL_SHIFT * level):
        level += 1
    return _LEVEL_SHIFT * level


@jit
def wheel_expiry(now_jiffies: int, delta_jiffies: int) -> int:
    """The jiffy at which a timer armed now for `delta_jiffies` from now fires (calc_wheel_index)."""
    shift = wheel_shift(delta_jiffies)
    return (((now_jiffies + delta_jiffies) >> shift) + 1) << shift


@slow
def _first_firing_after(base: Any, at_ns: int) -> int:
    """Index of the first recorded firing after a time; the number of firings when there is none."""
    low, high = 0, base.recorded_count
    while low < high:
        middle = (low + high) >> 1
        if element(firing_t, base.recorded, middle).at_ns <= at_ns:
            low = middle + 1
        else:
            high = middle
    return low


@slow
def _fire_as_recorded(base: Any, timer: Any, granule_ns: int) -> None:
    """Have the timer fire when, and on the CPU on which, it did next: interrupts come as late as they came there.

    Its own due time stands beside that. The trace does not tell what jiffies were when the timer was armed while a
    flush was still at work: a CPU that flushes or frees with interrupts off does not count ticks, and who arms may have
    waited for its lock. The due time is then one of a few, a granule apart; the last before the firing is taken.
    """
    i = _first_firing_after(base, timer.armed_at_ns)
    if i == base.recorded_count:
        return
    firing = element(firing_t, base.recorded, i)
    if firing.at_ns > timer.due_ns + _LATEST_NS:
        return
    timer.expires_ns = firing.at_ns
    timer.armed_by = firing.cpu
    busy_ns = timer.armed_at_ns - timer.fired_ns
    earliest_ns = timer.due_ns - (busy_ns + granule_ns if busy_ns < _BUSY_NS else base.tick_ns)
    latest_ns = timer.due_ns + max(_BUSY_NS - busy_ns, 0)
    while timer.due_ns > firing.at_ns and timer.due_ns - granule_ns >= earliest_ns:
        timer.due_ns -= granule_ns
    while timer.due_ns + granule_ns <= min(firing.at_ns, latest_ns):
        timer.due_ns += granule_ns


@slow
def add_timer(cpu: Any, timer: Any, delay_ns: int) -> bool:
    """Arm a timer for `delay_ns` from now; False if it was armed already, which then stands."""
    if cmpxchg(timer, "state", TIMER_IDLE, TIMER_ARMING) != TIMER_IDLE:
        return False
    base = deref(timer_base_t, cpu.timers)
    delta_jiffies = (delay_ns + base.tick_ns - 1) // base.tick_ns
    expires_ns = base.jiffies_start_ns + wheel_expiry(_jiffies(cpu, base), delta_jiffies) * base.tick_ns
    timer.armed_at_ns = now_ns(cpu)
    timer.armed_by = cpu.id
    timer.due_ns = expires_ns
    expires_ns = timer.expires_ns = max(expires_ns + base.late_ns, timer.armed_at_ns)
    if base.recorded and timer.is_recorded:
        _fire_as_recorded(base, timer, base.tick_ns << wheel_shift(delta_jiffies))
        expires_ns = timer.expires_ns
    smp_store_release(timer, "state", TIMER_PENDING)
    # Either this CPU sees the sleeper's bedtime or the sleeper sees the timer: pairs with smp_mb() in wait_for_timer().
    smp_mb()
    if expires_ns < read_once(base, "sleeps_until_ns"):
        wake_timers(cpu, base)
    return True


@inline
def wake_timers(cpu: Any, base: Any) -> None:
    """Make the timer process look again."""
    fetch_add(base, "doorbell", 1)
    wake_up(cpu, address_of(base, "doorbell"), EVERYONE)


@jit
def _next_timer(base: Any) -> int:
    """Address of the pending timer that expires first, or 0."""
    found = 0
    earliest_ns = NEVER
    for i in range(base.count):
        address = element(int64_t, base.timers, i).value
        timer = deref(timer_t, address)
        if smp_load_acquire(timer, "state") == TIMER_PENDING and timer.expires_ns < earliest_ns:
            found = address
            earliest_ns = timer.expires_ns
    return found


@slow
def wait_for_timer(cpu: Any, longest_ns: int) -> int:
    """Sleep until a timer is due, at most `longest_ns`.

    Returns:
        The address of a timer that is due, now idle again, or 0.
    """
    base = deref(timer_base_t, cpu.timers)
    seen = read_once(base, "doorbell")
    address = _next_timer(base)
    until_ns = now_ns(cpu) + longest_ns
    if address:
        until_ns = min(until_ns, deref(timer_t, address).expires_ns)
    write_once(base, "sleeps_until_ns", until_ns)
    # Pairs with smp_mb() in add_timer().
    smp_mb()
    if _next_timer(base) == address:
        remaining_ns = until_ns - now_ns(cpu)
        if remaining_ns > 0:
            wait_on(cpu, address_of(base, "doorbell"), seen, remaining_ns)
    write_once(base, "sleeps_until_ns", 0)
    address = _next_timer(base)
    if address == 0:
        return 0
    timer = deref(timer_t, address)
    if timer.expires_ns > now_ns(cpu):
        return 0
    cpu.id = timer.armed_by
    timer.fired_ns = now_ns(cpu)
    smp_store_release(timer, "state", TIMER_IDLE)
    return address
