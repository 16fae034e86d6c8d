"""What the primitives become: the instructions they are meant to be, and nothing else."""

import platform
import re

import pytest
from numba import njit, types
from numba.core.errors import TypingError

from emu.native.atomics import (
    atomic64_t,
    cmpxchg,
    fetch_add,
    fetch_or,
    interpreted,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    smp_wmb,
    write_once,
    xchg,
)
from emu.native.clock import TICKS_ARE_CYCLES, clock_ns, cpu_relax, ticks
from emu.native.events import emit
from emu.native.futex import futex_wait
from emu.native.histogram import record_value
from emu.native.record import deref, element

from .harness import context_t

pytestmark = [
    pytest.mark.skipif(interpreted, reason="interpreted runs have no machine code"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86_64"),
]


def machine_code(function, arguments):
    """Assembly of the function alone, without the wrappers through which Python calls it."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    signature = (types.int64,) * arguments
    compiled.compile(signature)
    text = compiled.inspect_asm(signature)
    assert "#APP" not in text, "inline assembly"
    assert not re.search(r"\basm\b", compiled.inspect_llvm(signature)), "inline assembly"
    bodies = re.findall(rf"^(\S*{function.__name__}\S*):\n(.*?)^\.Lfunc_end", text, re.DOTALL | re.MULTILINE)
    return next(body for name, body in bodies if "7cpython" not in name and "cfunc" not in name)


def test_compare_and_exchange_is_one_locked_instruction():
    def compare_and_exchange(address, old, new):
        return cmpxchg(deref(atomic64_t, address), "counter", old, new)

    assert re.search(r"lock\s+cmpxchg", machine_code(compare_and_exchange, 3))


def test_exchange_is_an_xchg_with_memory():
    def exchange(address, value):
        return xchg(deref(atomic64_t, address), "counter", value)

    assert re.search(r"xchgq\s.*\(%r\w+\)", machine_code(exchange, 2))


def test_addition_that_returns_is_a_locked_xadd():
    def add_and_return(address, value):
        return fetch_add(deref(atomic64_t, address), "counter", value)

    assert re.search(r"lock\s+xadd", machine_code(add_and_return, 2))


def test_addition_whose_result_is_not_wanted_is_a_locked_add():
    def add_only(address, value):
        fetch_add(deref(atomic64_t, address), "counter", value)
        return 0

    assert re.search(r"lock\s+add", machine_code(add_only, 2))


def test_setting_bits_is_locked():
    def set_bits(address, value):
        fetch_or(deref(atomic64_t, address), "counter", value)
        return 0

    assert re.search(r"lock\s+or", machine_code(set_bits, 2))


def test_a_full_barrier_is_a_fence():
    def barrier(address):
        before = read_once(deref(atomic64_t, address), "counter")
        smp_mb()
        return before

    assert re.search(r"mfence|lock\s+or", machine_code(barrier, 1))


def test_acquire_release_and_once_are_plain_moves_here():
    def hand_over(address, value):
        record = deref(atomic64_t, address)
        seen = smp_load_acquire(record, "counter") + read_once(record, "counter")
        smp_wmb()
        write_once(record, "counter", value)
        smp_store_release(record, "counter", value + seen)
        return seen

    code = machine_code(hand_over, 2)
    assert not re.search(r"\block\b|xchg|mfence", code)
    assert len(re.findall(r"mov\w*\s+\(%r\w+\)|add\w*\s+\(%r\w+\)", code)) == 2, "both loads remain"
    assert len(re.findall(r"mov\w*\s+%r\w+, \(%r\w+\)", code)) == 3, "both stores remain, and that of the result"


def test_the_spin_hint_is_pause():
    def relax():
        cpu_relax()
        return 0

    assert re.search(r"\bpause\b", machine_code(relax, 0))


@pytest.mark.skipif(not TICKS_ARE_CYCLES, reason="this machine's time-stamp counter does not tell the time")
def test_ticks_are_the_time_stamp_counter():
    def now():
        return ticks()

    assert re.search(r"\brdtsc\b", machine_code(now, 0))


def test_libc_is_called_by_name():
    def wait_and_look(address, value, timeout_ns):
        return futex_wait(address, value, timeout_ns) + clock_ns()

    code = machine_code(wait_and_look, 3)
    assert "clock_gettime" in code
    assert "syscall" in code


def test_following_a_pointer_is_one_load():
    def follow(address):
        return deref(atomic64_t, address).counter

    code = machine_code(follow, 1)
    assert "call" not in code
    assert "NRT_" not in code
    assert len(re.findall(r"\(%r\w+\)", code)) <= 2, "one load, one store of the result"


def test_an_element_is_reached_without_a_call():
    def step(address, index, value):
        element(atomic64_t, address, index).counter += value
        return 0

    code = machine_code(step, 3)
    assert "call" not in code
    assert "NRT_" not in code


def test_measuring_neither_calls_nor_counts_references():
    def measure(histogram, value):
        record_value(histogram, value)
        return 0

    code = machine_code(measure, 2)
    assert "call" not in code
    assert "NRT_" not in code


def test_an_event_is_emitted_without_a_locked_instruction():
    def note(context, a):
        emit(deref(context_t, context), 1, a, 4, 5)
        return 0

    code = machine_code(note, 2)
    assert not re.search(r"\block\b|xchg|mfence", code)
    assert "NRT_" not in code


def test_a_field_that_is_not_a_literal_is_refused_with_a_typing_error():
    @njit
    def choose(address, field):
        return read_once(deref(atomic64_t, address), field)

    with pytest.raises(TypingError):
        choose.compile((types.int64, types.unicode_type))
