"""A timeline gives out what is due, in order, once."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from emu.config import Action
from emu.machine.timeline import Timeline


def test_actions_come_in_the_order_of_their_times_and_then_as_written():
    timeline = Timeline(
        [Action(at_s=2.0, type="DMA"), Action(at_s=1.0, driver="unbind"), Action(at_s=2.0, driver="bind")]
    )
    taken = []
    while action := timeline.take_due(5.0):
        taken.append((action.at_s, action.type, action.driver))
    assert taken == [(1.0, None, "unbind"), (2.0, "DMA", None), (2.0, None, "bind")]


def test_nothing_comes_before_its_time():
    timeline = Timeline([Action(at_s=1.0, type="DMA-FQ")])
    assert timeline.take_due(0.999) is None
    assert timeline.next_at_s == 1.0
    assert timeline.take_due(1.0).type == "DMA-FQ"
    assert timeline.take_due(9.0) is None
    assert timeline.next_at_s == math.inf


@settings(max_examples=40, derandomize=True)
@given(st.lists(st.integers(0, 20), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_whenever_it_is_asked_each_action_is_done_once_and_none_too_early(times_s, steps_s):
    timeline = Timeline([Action(at_s=float(at), type="DMA") for at in times_s])
    now_s, taken = 0.0, []
    for step in [*steps_s, 100]:
        now_s += step
        while action := timeline.take_due(now_s):
            assert action.at_s <= now_s
            taken.append(action.at_s)
        assert timeline.next_at_s > now_s
    assert taken == sorted(times_s)
