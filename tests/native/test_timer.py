"""Timers fire late as the kernel's timer wheel does, and never early."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.native.clock import clock_ns
from emu.native.compile import compile_entries
from emu.native.record import int64_t
from emu.native.timer import TIMER_IDLE, TIMER_PENDING, timer_base_t, timer_t

from . import harness
from .harness import at, context_t, eventually, running, shared

pytestmark = pytest.mark.interpreted

MS = 1_000_000
TICK_NS = {100: 10 * MS, 250: 4 * MS, 1000: MS}

moments = st.integers(0, 10**16)


class Timers:
    """A base with some timers, an emulated CPU that arms them (context 0), and the process that runs them (1)."""

    def __init__(self, count=1, hz=250):
        self.timers = shared(timer_t, count)
        self.table = shared(int64_t, count)
        self.table.value[:] = [at(self.timers, i) for i in range(count)]
        self.base = shared(timer_base_t)
        self.base.tick_ns[0] = TICK_NS[hz]
        self.base.timers[0] = at(self.table)
        self.base.count[0] = count
        self.contexts = shared(context_t, 2)
        self.contexts.timers[:] = at(self.base)
        self.contexts.id[:] = 3, 99
        compile_entries([harness.arm, harness.look_for_timer])

    def arm(self, delay_ms, index=0):
        return harness.arm(at(self.contexts), at(self.timers, index), delay_ms * MS)

    def look(self, longest_ms=0):
        return harness.look_for_timer(at(self.contexts, 1), longest_ms * MS)

    def delay_ms(self, index=0):
        """From the arming to the planned end."""
        return (self.timers.expires_ns[index] - self.timers.armed_at_ns[index]) / MS


def fires_after_ns(now_ns, delay_ns, tick_ns):
    """What add_timer() plans at this moment."""
    return harness.expiry(now_ns // tick_ns, -(-delay_ns // tick_ns)) * tick_ns - now_ns


@given(moments, st.integers(0, 100_000), st.sampled_from(sorted(TICK_NS)))
def test_a_timer_never_fires_early(now_ns, delay_ms, hz):
    assert fires_after_ns(now_ns, delay_ms * MS, TICK_NS[hz]) >= delay_ms * MS


@given(moments, st.integers(1, 100_000), st.sampled_from(sorted(TICK_NS)))
def test_a_timer_is_late_by_about_an_eighth_of_its_delay_at_most(now_ns, delay_ms, hz):
    late_ns = fires_after_ns(now_ns, delay_ms * MS, TICK_NS[hz]) - delay_ms * MS
    assert late_ns <= delay_ms * MS * 8 // 63 + 2 * TICK_NS[hz]


@given(moments)
def test_10_ms_at_hz_250_become_12_to_16_ms(now_ns):
    assert 12 * MS <= fires_after_ns(now_ns, 10 * MS, TICK_NS[250]) <= 16 * MS


@given(moments)
def test_1000_ms_at_hz_250_become_1000_to_1032_ms(now_ns):
    assert 1000 * MS <= fires_after_ns(now_ns, 1000 * MS, TICK_NS[250]) <= 1032 * MS


@given(moments)
def test_1000_ms_at_hz_100_become_1000_to_1080_ms(now_ns):
    assert 1000 * MS <= fires_after_ns(now_ns, 1000 * MS, TICK_NS[100]) <= 1080 * MS


@given(st.integers(0, 2**40), st.integers(0, 100_000))
def test_the_wheel_agrees_with_calc_wheel_index(now, delta):
    levels = [level for level in range(9) if level == 0 or delta >= 63 << 3 * (level - 1)]
    granularity = 8 ** levels[-1]
    assert harness.expiry(now, delta) == (now + delta) // granularity * granularity + granularity


def test_an_armed_timer_stands():
    timers = Timers()
    assert timers.arm(10)
    planned = timers.timers.expires_ns[0]
    assert not timers.arm(1)
    assert timers.timers.expires_ns[0] == planned
    assert timers.timers.state[0] == TIMER_PENDING
    assert timers.timers.armed_by[0] == 3


def test_the_plan_of_an_armed_timer_is_that_of_the_wheel():
    timers = Timers(2)
    timers.arm(10, 0)
    timers.arm(1000, 1)
    # The clock is read twice; the second reading is the later.
    assert 11 < timers.delay_ms(0) <= 16
    assert 999 < timers.delay_ms(1) <= 1032


def test_a_timer_fires_at_its_tick_on_behalf_of_who_armed_it():
    timers = Timers(3)
    timers.arm(100, 0)
    timers.arm(10, 1)
    assert timers.look(1000) == at(timers.timers, 1)
    assert clock_ns() >= timers.timers.expires_ns[1]
    assert timers.contexts.id[1] == 3
    assert timers.timers.state.tolist() == [TIMER_PENDING, TIMER_IDLE, TIMER_IDLE]


def test_a_timer_that_has_fired_can_be_armed_again():
    timers = Timers(hz=1000)
    for _ in range(2):
        assert timers.arm(1)
        assert timers.look(1000) == at(timers.timers)


def test_without_a_timer_the_sleep_ends_in_time():
    timers = Timers()
    since = time.monotonic()
    assert timers.look(20) == 0
    assert 0.02 <= time.monotonic() - since < 2


def test_a_timer_that_is_not_due_does_not_fire():
    timers = Timers()
    timers.arm(500)
    assert timers.look(5) == 0
    assert timers.timers.state[0] == TIMER_PENDING


def test_arming_wakes_a_timer_process_that_sleeps():
    timers = Timers()
    fired, fired_at_ns = shared(int64_t), shared(int64_t)
    with running((harness.run_one_timer, at(timers.contexts, 1), at(fired), at(fired_at_ns))):
        assert eventually(lambda: timers.base.sleeps_until_ns[0] != 0)
        assert timers.arm(10)
        assert eventually(lambda: fired.value[0] == at(timers.timers), timeout_s=2)
    late_ms = (fired_at_ns.value[0] - timers.timers.expires_ns[0]) / MS
    assert 0 <= late_ms < 1000


def test_an_earlier_timer_wakes_a_process_that_sleeps_for_a_later_one():
    timers = Timers(2)
    fired, fired_at_ns = shared(int64_t), shared(int64_t)
    timers.arm(4000, 0)
    with running((harness.run_one_timer, at(timers.contexts, 1), at(fired), at(fired_at_ns))):
        assert eventually(lambda: timers.base.sleeps_until_ns[0] != 0)
        assert timers.arm(10, 1)
        assert eventually(lambda: fired.value[0] == at(timers.timers, 1), timeout_s=2)
    assert fired_at_ns.value[0] >= timers.timers.expires_ns[1]
