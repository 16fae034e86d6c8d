"""Stacks: a switch leaves one thread of control where it is, and goes on with another where that was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.native import llvm
from emu.native.atomics import interpreted
from emu.native.compile import compile_entries, slow
from emu.native.record import address_of, deref, int64_t, struct
from emu.native.stack import STACK_BYTES, Stacks, switch_stack

from .harness import at, harness, scaled, shared

pytestmark = pytest.mark.interpreted

ROOT = Path(__file__).resolve().parents[2]
DEPTH = 12

fiber_t = struct(main="i8", stack="i8", argument="i8", turns="i8", result="i8")


@harness
def enter(fiber):
    """Go on with a fiber until it switches back."""
    own = deref(fiber_t, fiber)
    switch_stack(address_of(own, "main"), own.stack)
    return 0


@harness
def count_turns(fiber):
    own = deref(fiber_t, fiber)
    while True:
        own.turns += 1
        switch_stack(address_of(own, "stack"), own.main)


@harness
def keep_numbers(fiber):
    """Sum numbers that are all needed after a switch, whole ones and floats."""
    own = deref(fiber_t, fiber)
    x = own.argument
    a, b, c, d, e, f, g, h = x + 1, x * 3, x ^ 5, x - 7, x * 11, x + 13, x * 17, x ^ 19
    p, q, r, s, t, u, v, w = x / 2, x / 4, x / 8, x / 16, x * 1.5, x * 2.5, x * 3.5, x * 4.5
    while True:
        own.result = (a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7 + h * 8) * 1000 + int(
            p + q * 2 + r * 4 + s * 8 + t + u * 2 + v * 3 + w * 4
        )
        own.turns += 1
        switch_stack(address_of(own, "stack"), own.main)
        a, b, c, d, e, f, g, h = b, c, d, e, f, g, h, a
        p, q, r, s, t, u, v, w = q, r, s, t, u, v, w, p


@slow
def bottom(fiber, depth):
    switch_stack(address_of(fiber, "stack"), fiber.main)
    return depth


def above(below):
    """One more level: what it adds after the switch must still be there."""

    @slow
    def level(fiber, depth):
        mine = fiber.argument * depth
        return below(fiber, depth + 1) + mine

    return level


chain = bottom
for _ in range(DEPTH):
    chain = above(chain)


@harness
def dive(fiber):
    own = deref(fiber_t, fiber)
    while True:
        own.result = chain(own, 0)
        own.turns += 1
        switch_stack(address_of(own, "stack"), own.main)


@harness
def pass_on(fiber):
    """Go on with the one whose stack is in the word that `argument` is the address of."""
    own = deref(fiber_t, fiber)
    while True:
        own.turns += 1
        switch_stack(address_of(own, "stack"), deref(int64_t, own.argument).value)


class Fibers:
    """Fibers that all begin in one function; `argument` is each one's number unless given."""

    def __init__(self, function, count=1, argument=None):
        compile_entries([enter, function])
        self.records = shared(fiber_t, count)
        self._stacks = Stacks(count)
        self._main = self._stacks.main()
        self.records.main = self._main
        self.records.argument = range(count) if argument is None else argument
        for number in range(count):
            self.records.stack[number] = self._stacks.begin(function, at(self.records, number))

    def enter(self, number=0):
        enter(at(self.records, number))

    def close(self):
        self._stacks.close()


def test_a_fiber_goes_on_where_it_switched_away():
    fibers = Fibers(count_turns)
    for turns in range(1, 10):
        fibers.enter()
        assert fibers.records.turns[0] == turns


def test_each_fiber_begins_with_its_own_argument():
    fibers = Fibers(keep_numbers, 3, argument=[2, 3, 2])
    for number in range(3):
        fibers.enter(number)
    first, second, third = fibers.records.result.tolist()
    assert first == third != second


def test_numbers_of_both_kinds_survive_a_switch():
    alone = Fibers(keep_numbers, argument=[12_345])
    results = []
    for _ in range(8):
        alone.enter()
        results.append(int(alone.records.result[0]))
    assert len(set(results)) == 8
    # The same again, while others use the registers in between.
    crowd = Fibers(keep_numbers, 5, argument=[12_345, 1, 999, 54_321, 7])
    for expected in results:
        for number in range(5):
            crowd.enter(number)
        assert crowd.records.result[0] == expected


def test_a_deep_chain_of_calls_is_left_and_found_again():
    fibers = Fibers(dive, 2, argument=[3, 5])
    for number in (0, 1, 0, 1):
        fibers.enter(number)
    added = sum(range(DEPTH))
    assert fibers.records.result.tolist() == [3 * added + DEPTH, 5 * added + DEPTH]


def test_fibers_may_switch_to_each_other_without_their_caller():
    fibers = Fibers(pass_on, 5)
    following = [at(fibers.records, number) + fiber_t.fields["stack"][1] for number in range(1, 5)]
    fibers.records.argument = [*following, at(fibers.records) + fiber_t.fields["main"][1]]
    for turns in range(1, 4):
        fibers.enter()
        assert fibers.records.turns.tolist() == [turns] * 5


def test_thousands_of_stacks_cost_only_what_they_touch():
    count = scaled(4096, 50)
    fibers = Fibers(count_turns, count)
    for number in range(count):
        fibers.enter(number)
    assert (fibers.records.turns == 1).all()
    fibers.close()


@pytest.mark.skipif(interpreted, reason="a greenlet's stack is Python's")
def test_a_stack_begins_aligned_as_the_abi_wants_it():
    stacks = Stacks(2)
    compile_entries([count_turns])
    first, second = (stacks.begin(count_turns, 0) for _ in range(2))
    assert first % 16 == second % 16 == (8 if llvm.SWITCHES_BY_ASSEMBLY else 0)
    assert second - first >= STACK_BYTES


@pytest.mark.skipif(interpreted or not llvm.SWITCHES_BY_ASSEMBLY, reason="this is the run without assembly")
def test_all_of_this_holds_where_libc_switches(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", Path(__file__).relative_to(ROOT)],
        cwd=ROOT,
        env=os.environ | {"EMU_PORTABLE_STACKS": "1", "EMU_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed, 1 skipped" in done.stdout
