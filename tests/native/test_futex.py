"""Futexes put processes to sleep on a word and wake them."""

import time

import psutil
import pytest

from emu.native.atomics import atomic64_t, atomic_t
from emu.native.futex import EVERYONE, futex_wait, futex_wake

from . import harness
from .harness import at, eventually, running, shared

pytestmark = pytest.mark.interpreted

# The supervisor calls the plain functions, the machine's processes the compiled ones.
both_waits = pytest.mark.parametrize("wait", [futex_wait, harness.futex_wait_at])
both_wakes = pytest.mark.parametrize("wake", [futex_wake, harness.futex_wake_at])


def asleep(process):
    return psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING


@both_waits
def test_waiting_for_another_value_returns_at_once(wait):
    word = shared(atomic_t)
    word.counter[0] = 1
    assert wait(at(word), 0, 60_000_000_000) == -1


@both_waits
def test_a_wait_ends_at_its_timeout_and_not_before(wait):
    word = shared(atomic_t)
    since = time.monotonic_ns()
    assert wait(at(word), 0, 20_000_000) == -1
    assert 20_000_000 <= time.monotonic_ns() - since < 2_000_000_000


@both_waits
def test_a_negative_word_is_recognised(wait):
    word = shared(atomic_t)
    word.counter[0] = -2
    since = time.monotonic_ns()
    wait(at(word), -2, 10_000_000)
    assert time.monotonic_ns() - since >= 10_000_000


@both_wakes
def test_waking_nobody_wakes_nobody(wake):
    word = shared(atomic_t)
    assert wake(at(word), EVERYONE) == 0


@both_wakes
def test_sleepers_in_other_processes_are_woken_and_counted(wake):
    word, woken = shared(atomic_t), shared(atomic64_t)
    with running(*[(harness.sleep_until_changed, at(word), 0, at(woken))] * 3) as processes:
        assert eventually(lambda: all(asleep(process) for process in processes))
        time.sleep(0.02)
        word.counter[0] = 1
        assert wake(at(word), 1) == 1
        assert eventually(lambda: woken.counter[0] == 1)
        assert wake(at(word), EVERYONE) == 2
    assert woken.counter[0] == 3


def test_a_timeout_may_be_a_number_from_a_record():
    word, timeout = shared(atomic_t), shared(atomic64_t)
    timeout.counter[0] = 1_000_000
    assert futex_wait(at(word), word.counter[0], timeout.counter[0]) == -1
