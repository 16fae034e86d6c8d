"""A timeline gives out what is due, in order, once."""

import math

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
