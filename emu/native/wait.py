"""Sleeping on a word of the segment until another CPU wakes who sleeps there, and waiting awake for it to change."""

from __future__ import annotations

from typing import Any

from emu.native.atomics import int64_t, read_once
from emu.native.clock import cpu_relax, sched_yield
from emu.native.compile import inline, slow
from emu.native.engine import by_engine
from emu.native.futex import EVERYONE, futex_wait, futex_wake
from emu.native.record import deref, struct
from emu.native.virtual import NEVER_PS, PS, fiber_of, sleep_on, wake


@inline
def is_aborted(cpu: Any) -> bool:
    """Whether the machine is being stopped and those who could end a wait may be dead."""
    return read_once(deref(int64_t, cpu.abort), "value") != 0


_word_t = struct(value="i4")
_LOOKS = 100
_LONGEST_PS = 200_000_000 * PS


@inline
def _wait(_cpu: Any, address: int, expected: int, timeout_ns: int) -> None:
    futex_wait(address, expected, timeout_ns)


@slow
def _wait_virtually(cpu: Any, address: int, expected: int, timeout_ns: int) -> None:
    if deref(_word_t, address).value == expected:
        fiber = fiber_of(cpu)
        sleep_on(fiber, address, fiber.now_ps + timeout_ns * PS if timeout_ns > 0 else NEVER_PS)


wait_on = by_engine(_wait, _wait_virtually)
"""`wait_on(cpu, address, expected, timeout_ns)`: sleep while the 32-bit word is `expected`; 0 or less waits for ever.
May return for no reason."""


@inline
def _wake(_cpu: Any, address: int, waiters: int) -> None:
    futex_wake(address, waiters)


@slow
def _wake_virtually(cpu: Any, address: int, waiters: int) -> None:
    wake(fiber_of(cpu), address, waiters)


wake_up = by_engine(_wake, _wake_virtually)
"""`wake_up(cpu, address, waiters)`: wake up to that many sleepers."""


@inline
def _poll(_cpu: Any, _address: int, looks: int) -> None:
    # What is waited for may need this core.
    if looks % _LOOKS == 0:
        sched_yield()
    else:
        cpu_relax()


@slow
def _poll_virtually(cpu: Any, address: int, _looks: int) -> None:
    fiber = fiber_of(cpu)
    sleep_on(fiber, address, fiber.now_ps + _LONGEST_PS)


poll = by_engine(_poll, _poll_virtually)
"""`poll(cpu, address, looks)`: one round of a loop that waits awake for another CPU to write the word, after `looks`
looks at it, the last of them just now. On virtual clocks it lasts until somebody says so by `wake_pollers`, as the look
at a line that is still there costs nothing, and 200 ms at most."""


@inline
def _sees_it(_cpu: Any, _address: int) -> None:
    pass


@slow
def _wake_pollers_virtually(cpu: Any, address: int) -> None:
    wake(fiber_of(cpu), address, EVERYONE)


wake_pollers = by_engine(_sees_it, _wake_pollers_virtually)
"""`wake_pollers(cpu, address)`: the word has just been written, and those who wait awake for it see it."""
