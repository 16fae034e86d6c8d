"""Sleeping on a word of the segment until another CPU wakes who sleeps there."""

from __future__ import annotations

from typing import Any

from emu.native.compile import inline, slow
from emu.native.engine import by_engine
from emu.native.futex import futex_wait, futex_wake
from emu.native.record import deref, struct
from emu.native.virtual import NEVER_PS, PS, fiber_of, sleep_on, wake

_word_t = struct(value="i4")


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
