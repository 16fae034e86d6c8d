"""Virtual time: who is furthest behind goes first, and whoever waits is served in the order of coming."""

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.native import virtual
from emu.native.atomics import interpreted

from .harness import at
from .world import (
    World,
    give_core_away,
    line,
    lock,
    set_word,
    sleep,
    spend,
    turn,
    unlock,
    wait_awake,
    wake,
    wake_awake,
    work,
)

pytestmark = pytest.mark.interpreted


def run(*scripts, **options):
    world = World(list(scripts), **options)
    world.run()
    return world


# --- turns ----------------------------------------------------------------------------------------------------------


def test_the_one_furthest_behind_goes_first():
    world = run([spend(10), spend(10), spend(10)], [spend(15), spend(8)])
    assert world.history() == [(10, 0, 0), (15, 1, 0), (20, 0, 1), (23, 1, 1), (30, 0, 2)]


def test_of_equal_clocks_the_lower_number_goes_first():
    world = run(*[[spend(10), spend(10)] for _ in range(5)])
    assert world.history() == [(at_ns, slot, at_ns // 10 - 1) for at_ns in (10, 20) for slot in range(5)]


def test_in_the_midst_of_an_operation_a_cpu_runs_ahead_by_no_more_than_the_slack():
    world = run([work(90), lock(), work(90), lock(1)], [spend(100), spend(100)], slack_ns=100)
    assert [entry[1:] for entry in world.history()] == [(0, 0), (0, 1), (0, 2), (1, 0), (0, 3), (1, 1)]


def test_an_operation_begins_when_all_before_it_is_done():
    world = run([work(50), turn()], [spend(40), spend(9), spend(2)], slack_ns=1000)
    assert world.history()[1:] == [(40, 1, 0), (49, 1, 1), (50, 0, 1), (51, 1, 2)]


def test_a_fiber_that_gives_its_core_away_sees_what_others_do_next():
    world = run([give_core_away(), give_core_away(), give_core_away()], [spend(30), spend(30)])
    assert world.history() == [(1, 0, 0), (30, 1, 0), (31, 0, 1), (60, 1, 1), (61, 0, 2)]


def test_one_fiber_alone_runs_through():
    assert run([spend(5), work(5), turn(), lock(), unlock()]).ended(0) == 10


def test_a_world_stops_where_it_was_told_and_goes_on_from_there():
    world = World([[spend(10), spend(10)], [spend(19), spend(10)]])
    assert world.run(until_ns=20)
    assert world.history() == [(10, 0, 0), (19, 1, 0)]
    assert not world.run()
    assert world.history()[2:] == [(20, 0, 1), (29, 1, 1)]


def test_no_time_is_left_when_all_have_ended():
    assert not World([[spend(1)], [spend(2)], []]).run()


def test_no_time_is_left_when_all_wait_for_ever():
    world = World([[sleep()], [lock()], [spend(1), lock()]])
    assert not world.run()
    assert [world.ended(slot) for slot in range(3)] == [None, 0, None]


# --- locks ----------------------------------------------------------------------------------------------------------


def test_a_lock_is_handed_on_in_the_order_of_coming():
    hold = [lock(), spend(50), unlock()]
    world = run([lock(), spend(100), unlock()], [spend(3), *hold], [spend(1), *hold], [spend(2), *hold])
    assert [world.times(slot)[1] for slot in (2, 3, 1)] == [100, 150, 200]


def test_nobody_who_comes_later_overtakes_those_who_wait():
    # The third comes at the very moment at which the lock is handed on.
    world = run([lock(), spend(10), unlock()], [spend(5), lock(), spend(5), unlock()], [spend(10), lock()])
    assert (world.times(1)[1], world.times(2)[1]) == (10, 15)


def test_a_cpu_that_gives_a_lock_back_queues_behind_those_who_wait():
    world = run([lock(), spend(10), unlock(), lock()], [spend(5), lock(), spend(7), unlock()])
    assert world.times(0)[3] == 17


def test_a_wait_for_a_lock_is_counted_to_the_nanosecond():
    world = run([lock(), spend(100), unlock()], [spend(30), lock(), unlock()], [spend(60), lock(), unlock()])
    (one, *_) = world.locks
    assert (one.acquisitions, one.contended, one.total_wait, one.max_wait, one.val) == (3, 2, 70 + 40, 70, 0)


def test_a_lock_that_another_had_last_costs_its_transfer_after_the_wait():
    costs = {"lock": 6.0, "transfer": 100.0}
    world = run([lock(), unlock(), lock(), spend(300), unlock()], [spend(200), lock()], costs_ns=costs)
    # Nobody had it before the first.
    assert world.times(0) == [6, 6, 12, 312, 312]
    assert world.times(1)[1] == 312 + 100


def test_a_lock_given_back_by_a_clock_that_is_ahead_is_free_only_then():
    # The first runs ahead within its slack: when the second comes, on its own clock the lock is held still.
    world = run([lock(), work(50), unlock()], [work(20), lock()], slack_ns=1000)
    assert world.times(1) == [20, 50]
    assert world.locks[0].total_wait == 30


# --- sleeping and waking --------------------------------------------------------------------------------------------


def test_a_sleep_that_nobody_ends_lasts_until_its_timeout():
    assert run([spend(5), sleep(100)], [spend(500)]).times(0) == [5, 105]


def test_a_word_that_has_changed_already_is_not_slept_on():
    assert run([spend(5), sleep(100, expected=0)], [set_word(1)]).times(0) == [5, 5]


def test_a_sleeper_goes_on_at_the_wakers_time():
    world = run([sleep(1000)], [spend(300), wake(), spend(1)])
    assert world.times(0) == [300]


def test_a_woken_sleeper_first_has_to_be_woken():
    world = run([sleep()], [spend(300), wake()], costs_ns={"wake": 40.0})
    assert (world.times(0), world.times(1)) == ([340], [300, 300])


def test_who_has_slept_longest_is_woken_first():
    sleepers = [[spend(delay_ns), sleep()] for delay_ns in (3, 1, 2)]
    world = run(*sleepers, [spend(10), wake(), spend(10), wake(), spend(10), wake()])
    assert [world.ended(slot) for slot in (1, 2, 0)] == [10, 20, 30]


def test_a_waker_wakes_as_many_as_it_says():
    world = run(*[[sleep(1000)] for _ in range(4)], [spend(10), wake(3)])
    assert [world.ended(slot) for slot in range(4)] == [10, 10, 10, 1000]


def test_sleepers_on_other_words_are_not_woken():
    world = run([sleep(1000, word=1)], [sleep(1000, word=2)], [spend(10), wake(5, word=2)])
    assert (world.ended(0), world.ended(1)) == (1000, 10)


def test_words_that_share_a_queue_of_sleepers_are_told_apart():
    queue_of = virtual._queue_of if interpreted else virtual._queue_of.py_func
    world = World([[]], words=4096)
    queues = [queue_of(at(world._words, word)) for word in range(4096)]
    other = queues.index(queues[0], 1)
    world = World([[sleep(1000)], [sleep(1000, word=other)], [spend(10), wake(5, word=other)]], words=4096)
    world.run()
    assert (world.ended(0), world.ended(1)) == (1000, 10)


def test_a_timed_out_sleeper_leaves_the_queue_to_the_others():
    world = run([sleep(5)], [spend(1), sleep()], [spend(2), sleep()], [spend(10), wake()], [spend(20), wake()])
    assert [world.ended(slot) for slot in range(3)] == [5, 10, 20]


def test_the_last_of_a_queue_may_time_out_as_well():
    world = run([sleep()], [spend(1), sleep(5)], [spend(10), sleep()], [spend(20), wake(2)])
    assert [world.ended(slot) for slot in range(3)] == [20, 6, 20]


def test_who_is_woken_runs_before_the_waker_goes_on_for_long():
    world = run([sleep(), spend(1)], [spend(300), wake(), spend(10)])
    assert world.history()[2:] == [(300, 0, 0), (301, 0, 1), (310, 1, 2)]


def test_who_has_timed_out_before_the_waker_came_is_not_woken():
    # The waker is ahead of the sleeper's time-out, within the slack, and calls before the sleeper had its turn.
    world = run([sleep(100), spend(1)], [sleep(), spend(1)], [work(500), wake()], [spend(200)], slack_ns=1000)
    assert world.times(0) == [100, 101]
    assert world.times(1) == [500, 501]
    assert [entry for entry in world.history() if entry[1] != 2] == [
        (100, 0, 0), (101, 0, 1), (200, 3, 0), (500, 1, 0), (501, 1, 1),
    ]  # fmt: skip


def test_a_waker_further_behind_does_not_turn_a_sleepers_clock_back():
    world = run([work(50), sleep()], [spend(0), wake()], slack_ns=1000)
    assert world.times(0) == [50, 50]


def test_sleepers_can_be_woken_from_outside_between_two_runs():
    world = World([[sleep(1000), spend(5)], [spend(50), spend(50)]])
    world.run(until_ns=60)
    assert world.wake_from_outside(60) == 1
    assert world.wake_from_outside(60) == 0
    world.run()
    assert world.times(0) == [60, 65]
    assert world.times(1) == [50, 100]


# --- waiting awake, and lines that are fought over ------------------------------------------------------------------


def test_who_waits_awake_for_a_word_sees_it_when_it_is_written():
    assert run([wait_awake(word=1)], [spend(300), wake_awake(word=1)]).times(0) == [300]


def test_nobody_waits_awake_for_ever():
    assert run([wait_awake()], [spend(1)]).times(0) == [200_000_000]


def test_a_line_is_at_one_place_at_a_time():
    world = run(*[[line()] for _ in range(5)], costs_ns={"transfer": 20.0})
    # The moment by which one comes before the others is up to a ns.
    assert sorted(world.ended(slot) // 10 for slot in range(5)) == [0, 2, 4, 6, 8]


def test_a_line_that_nobody_has_taken_away_costs_nothing():
    world = run([line(), spend(5), line()], [spend(50), line(), spend(50), line()], costs_ns={"transfer": 20.0})
    assert (world.times(0), world.times(1)) == ([0, 5, 5], [50, 70, 120, 120])


def test_who_has_a_line_loses_it_to_those_who_wait():
    steps_ns = {"transfer": 20.0, "lock": 4.0}
    world = run([line(), line()], [spend(1), line()], [spend(2), line()], costs_ns=steps_ns)
    assert world.ended(0) > 20


def test_chance_decides_who_gets_a_line_next_and_the_seed_decides_chance():
    def order(seed):
        world = run(*[[spend(slot), line()] for slot in range(6)], costs_ns={"transfer": 20.0}, seed=seed)
        return tuple(sorted(range(6), key=world.ended))

    orders = [order(seed) for seed in range(8)]
    assert orders == [order(seed) for seed in range(8)]
    assert len(set(orders)) > 2


# --- whatever is done -----------------------------------------------------------------------------------------------

few = st.integers(0, 3)
times = st.integers(0, 30)
critical = st.tuples(few, times).map(lambda held: [lock(held[0]), spend(held[1]), unlock(held[0])])
steps = st.one_of(
    times.map(lambda ns: [spend(ns)]),
    times.map(lambda ns: [work(ns), turn()]),
    st.tuples(few, times).map(lambda nap: [sleep(nap[1] + 1, word=nap[0])]),
    st.tuples(few, st.integers(1, 4)).map(lambda call: [wake(call[1], word=call[0])]),
    critical,
)
scripts = st.lists(st.lists(steps, max_size=6).map(lambda parts: list(chain(*parts))), min_size=1, max_size=8)
EXAMPLES = 15 if interpreted else 100


@settings(max_examples=EXAMPLES)
@given(scripts)
def test_without_slack_everything_happens_in_the_order_of_time(them):
    world = run(*them)
    moments = [at_ns for at_ns, slot, step in world.history() if them[slot][step][0] != work(0)[0]]
    assert moments == sorted(moments)
    assert [len(world.times(slot)) for slot in range(len(them))] == [len(script) for script in them]
    assert None not in [at_ns for slot in range(len(them)) for at_ns in world.times(slot)]


@settings(max_examples=EXAMPLES)
@given(scripts, st.integers(1, 5), st.sampled_from([0, 7, 1000]))
def test_how_often_python_looks_changes_nothing(them, turns, slack_ns):
    often = World(them, slack_ns=slack_ns)
    often.run(turns=turns)
    assert often.history() == run(*them, slack_ns=slack_ns).history()


@settings(max_examples=EXAMPLES)
@given(scripts, st.sampled_from([0, 7, 1000]))
def test_a_lock_is_never_held_by_two_at_a_time(them, slack_ns):
    world = run(*them, slack_ns=slack_ns)
    for which in range(4):
        spans = sorted(
            (world.times(slot)[i], world.times(slot)[i + 2])
            for slot, script in enumerate(them)
            for i, step in enumerate(script)
            if step == lock(which)
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert world.locks[which].val == 0
