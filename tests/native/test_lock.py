"""The lock keeps processes apart, puts waiters to sleep, and outlives its owners."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.native.atomics import interpreted
from emu.native.compile import compile_entries
from emu.native.lock import SLOT_BITS, WAITERS, owner_word
from emu.native.record import int64_t

from . import harness
from .harness import at, context_t, eventually, guarded_t, running, scaled, shared

pytestmark = pytest.mark.interpreted

slots = st.integers(0, (1 << SLOT_BITS) - 2)
generations = st.integers(1, (1 << 16) - 1)


class Party:
    """Processes' contexts, the lock they meet at, and who of them has died."""

    def __init__(self, size):
        self.contexts = shared(context_t, size)
        self.dead_generation = shared(int64_t, size)
        self.guarded = shared(guarded_t)
        self.lock = self.guarded.lock[0]
        for slot in range(size):
            self.contexts.owner[slot] = owner_word(slot, 1)
        self.contexts.dead_generation[:] = at(self.dead_generation)

    def call(self, function, slot, *arguments):
        return function, at(self.contexts, slot), at(self.guarded), *arguments


def kill(process):
    os.kill(process.pid, signal.SIGKILL)


def all_asleep(processes):
    return all(psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING for process in processes)


def give_back_to_sleepers():
    """Two wait asleep; giving the lock back once is enough for both to have it in the end."""
    party = Party(3)
    compile_entries([harness.take, harness.give_back])
    harness.take(at(party.contexts), at(party.guarded))
    with running(*[party.call(harness.lock_once, slot) for slot in range(1, 3)]) as processes:
        assert eventually(lambda: party.lock.val & WAITERS and all_asleep(processes))
        harness.give_back(at(party.contexts), at(party.guarded))
    assert party.guarded.count[0] == 2


def without_timeouts(function):
    """Call a function of this file in a process in which whoever sleeps on a lock does so for an hour."""
    code = f"""
import emu.native.lock
emu.native.lock._SLEEP_NS = 3_600_000_000_000
from tests.native.test_lock import {function.__name__}
for _ in range(9):
    {function.__name__}()
"""
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)


def ticks_in(duration_ns):
    """How many ticks this machine's counter makes in that time, roughly."""
    marks = shared(int64_t, 4)
    harness.measure_clocks(at(marks, 0), at(marks, 1))
    time.sleep(0.01)
    harness.measure_clocks(at(marks, 2), at(marks, 3))
    before_ns, before, after_ns, after = marks.value.tolist()
    return duration_ns * (after - before) / (after_ns - before_ns)


def test_two_processes_never_hold_the_lock_together():
    party, rounds = Party(3), scaled(20_000, 100)
    with running(*[party.call(harness.count_under_lock, slot, rounds) for slot in range(3)]):
        pass
    assert party.guarded.violations[0] == 0
    assert party.guarded.count[0] == 3 * rounds
    assert party.lock.val == 0


def test_wait_statistics_add_up():
    party, rounds = Party(3), scaled(20_000, 100)
    with running(*[party.call(harness.count_under_lock, slot, rounds) for slot in range(3)]):
        pass
    lock = party.lock
    assert lock.acquisitions == 3 * rounds
    assert 0 <= lock.contended <= lock.acquisitions
    assert lock.max_wait <= lock.total_wait <= lock.contended * lock.max_wait
    assert lock.recovered == 0


def test_a_lock_that_nobody_wants_is_never_contended():
    party = Party(1)
    harness.count_under_lock(at(party.contexts), at(party.guarded), 10)
    assert (party.lock.acquisitions, party.lock.contended, party.lock.total_wait) == (10, 0, 0)


def test_the_word_names_its_owner():
    party = Party(2)
    harness.take(at(party.contexts, 1), at(party.guarded))
    assert party.lock.val == owner_word(1, 1)
    harness.give_back(at(party.contexts, 1), at(party.guarded))
    assert party.lock.val == 0


def test_waiters_sleep_and_all_of_them_get_the_lock():
    party = Party(5)
    compile_entries([harness.take, harness.give_back])
    harness.take(at(party.contexts), at(party.guarded))
    with running(*[party.call(harness.lock_once, slot) for slot in range(1, 5)]) as processes:
        assert eventually(lambda: party.lock.val & WAITERS and all_asleep(processes))
        assert party.guarded.count[0] == 0
        harness.give_back(at(party.contexts), at(party.guarded))
    assert party.guarded.count[0] == 4
    assert party.lock.val == 0
    assert (party.lock.acquisitions, party.lock.contended) == (5, 4)


def test_sleepers_are_woken_one_after_the_other_and_do_not_wait_for_their_timeout():
    done = without_timeouts(give_back_to_sleepers)
    assert done.returncode == 0, done.stderr


def test_a_wait_lasts_as_long_as_the_lock_was_held():
    party = Party(2)
    compile_entries([harness.take, harness.give_back, harness.measure_clocks])
    harness.take(at(party.contexts), at(party.guarded))
    with running(party.call(harness.lock_once, 1)):
        assert eventually(lambda: party.lock.val & WAITERS)
        time.sleep(0.05)
        harness.give_back(at(party.contexts), at(party.guarded))
    assert party.lock.max_wait == party.lock.total_wait
    assert party.lock.max_wait > ticks_in(45_000_000)


def test_a_lock_of_a_dead_owner_is_taken_over():
    party = Party(2)
    compile_entries([harness.lock_once])
    with running(party.call(harness.die_holding, 0)) as (holder,):
        assert eventually(lambda: party.guarded.inside[0])
        with running(party.call(harness.lock_once, 1)):
            assert eventually(lambda: party.lock.val & WAITERS)
            kill(holder)
            party.dead_generation.value[0] = 1
            assert eventually(lambda: party.guarded.count[0] == 1, timeout_s=1)
    assert party.lock.recovered == 1
    assert party.lock.val == 0


def test_a_lock_of_a_living_owner_is_not_taken_over():
    party = Party(2)
    compile_entries([harness.take, harness.give_back])
    party.dead_generation.value[0] = 2
    harness.take(at(party.contexts), at(party.guarded))
    with running(party.call(harness.lock_once, 1)):
        time.sleep(0.1)
        assert party.guarded.count[0] == 0, "another generation of the slot has died, not this one"
        harness.give_back(at(party.contexts), at(party.guarded))
    assert party.lock.recovered == 0


def test_only_one_of_many_waiters_takes_a_dead_owners_lock_over():
    party = Party(4)
    compile_entries([harness.take])
    harness.take(at(party.contexts), at(party.guarded))
    with running(*[party.call(harness.count_under_lock, slot, 20) for slot in range(1, 4)]):
        assert eventually(lambda: party.lock.val & WAITERS)
        party.dead_generation.value[0] = 1
    assert party.lock.recovered == 1
    assert party.guarded.violations[0] == 0
    assert party.guarded.count[0] == 60


def test_a_lock_waited_for_awake_excludes_as_well_and_wakes_nobody():
    party, rounds = Party(3), scaled(20_000, 100)
    with running(*[party.call(harness.count_polling, slot, rounds) for slot in range(3)]):
        pass
    assert party.guarded.count[0] == 3 * rounds
    assert party.lock.acquisitions == 3 * rounds
    assert party.lock.val == 0


def test_those_who_wait_awake_take_a_dead_owners_lock_over():
    party = Party(3)
    compile_entries([harness.take])
    harness.take(at(party.contexts), at(party.guarded))
    with running(*[party.call(harness.count_polling, slot, 20) for slot in (1, 2)]):
        time.sleep(0.05)
        assert party.guarded.count[0] == 0
        party.dead_generation.value[0] = 1
    assert party.lock.recovered == 1
    assert party.guarded.count[0] == 40


@pytest.mark.skipif(interpreted, reason="whoever is killed may hold the lock that makes plain atomics atomic")
def test_processes_killed_at_any_moment_never_stop_the_others():
    party = Party(4)
    stop, progress = shared(int64_t), shared(int64_t, 4)
    calls = [party.call(harness.count_until_stopped, slot, at(stop), at(progress, slot)) for slot in range(4)]
    dice = random.Random(7)  # noqa: S311 - not a secret
    with running(*calls) as processes:
        for victim in range(3):
            time.sleep(0.02 + dice.random() * 0.01)
            kill(processes[victim])
            party.dead_generation.value[victim] = 1
            before = int(progress.value[3])
            assert eventually(lambda before=before: progress.value[3] > before, timeout_s=2)
        stop.value[0] = 1
    assert party.lock.val == 0
    assert party.lock.recovered <= 3


@given(slots, generations, slots, generations)
def test_owners_have_different_names_that_leave_the_waiters_bit_alone(slot, generation, other_slot, other_generation):
    word, other = owner_word(slot, generation), owner_word(other_slot, other_generation)
    assert 0 < word < WAITERS
    assert (word == other) == ((slot, generation) == (other_slot, other_generation))
