"""What probes in the flush queue tell of its calls and flushes, and when they tell nothing."""

import pytest

from emu.capture.flushes import BY_FULL_RING, flushes_in
from emu.capture.ftrace import read_capture
from emu.capture.queue_probes import queue_times, recorded_full_rings, recorded_overruns
from tests.capture.probed_traces import (
    appended,
    flush_begins,
    flush_ends,
    flush_within_a_flush,
    flushed,
    found_full,
    line,
    mapped,
    maps_of,
    timer_fires,
)


@pytest.fixture
def reading(tmp_path):
    """Reads a trace given as lines."""

    def read(*lines):
        path = tmp_path / "synthetic.trace"
        path.write_text("".join([maps_of(), *lines]))
        return read_capture(path)

    return read


@pytest.fixture
def told(reading):
    """The queue's times in a trace given as lines."""

    def read(*lines):
        found = queue_times(reading(*lines))
        assert found is not None
        return found

    return read


def us(time_ns):
    """The microsecond of a line's time, as the lines here are written."""
    return (int(time_ns) - 1_000_000_000) / 1000


FIRST = appended(10, 0, 1, head=0, tail=1, stamp=0)
"""Says what was counted when the trace begins."""


def test_lines_that_agree_are_taken_at_their_word(told):
    times = told(FIRST, timer_fires(20, 0), flush_begins(30, 0), flush_ends(40, 0))
    (flush,) = times.flushes
    assert flush["timer"]
    assert us(flush["cause_ns"]) == 20
    assert 30 < us(flush["start_ns"]) < 30.1
    assert 39.9 < us(flush["finish_ns"]) < 40
    assert us(flush["resume_ns"]) == 40


def test_a_start_comes_after_the_line_before_an_append_with_the_older_stamp(told):
    older = [mapped(50, 1, 30), appended(60, 1, 17, head=0, tail=1, stamp=0)]
    times = told(FIRST, timer_fires(20, 0), flush_begins(30, 0), *older, flush_ends(90, 0))
    assert 50 < us(times.flushes["start_ns"][0]) < 60
    assert us(times.calls["append_ns"][1]) < us(times.flushes["start_ns"][0])


def test_an_append_comes_before_the_start_that_outdates_its_stamp(told):
    late = appended(80, 1, 17, head=0, tail=1, stamp=0)
    newer = appended(70, 0, 2, head=0, tail=2, stamp=1)
    times = told(FIRST, timer_fires(20, 2), flush_begins(30, 2), newer, late, flush_ends(90, 2))
    assert us(times.calls["append_ns"][2]) < us(times.flushes["start_ns"][0]) < 70
    assert times.events_ns[times.calls["event"][2]] == times.calls["begin_ns"][2] == times.calls["append_ns"][2]


def test_a_finish_comes_before_any_head_that_it_let_move(told):
    freed = appended(50, 0, 2, head=1, tail=2, stamp=1)
    times = told(FIRST, timer_fires(20, 1), flush_begins(30, 1), freed, flush_ends(90, 1))
    assert 49.9 < us(times.flushes["finish_ns"][0]) < 50
    assert us(times.flushes["resume_ns"][0]) == 90


def test_a_call_looks_at_its_full_ring_before_the_finish_that_would_have_made_room(told):
    # Its line comes after another ring was seen freed by the flush.
    fill = [appended(10 + i, 0, 1 + i, head=0, tail=1 + i, stamp=0) for i in range(3)]
    other = [appended(15, 1, 17, head=0, tail=1, stamp=0), appended(50, 1, 18, head=1, tail=2, stamp=1)]
    full = [found_full(60, 0, head=0), flush_begins(61, 0), flush_ends(70, 0), flushed(71, 0, 4, head=3, tail=3)]
    last = appended(72, 0, 4, head=3, tail=0, stamp=2)
    times = told(*fill, other[0], timer_fires(20, 2), flush_begins(30, 2), other[1], flush_ends(55, 2), *full, last)
    call = times.calls[-1]
    timers, own = times.flushes[times.flushes["timer"]][0], times.flushes[~times.flushes["timer"]][0]
    assert call["full"]
    assert us(call["begin_ns"]) < us(timers["finish_ns"]) < 50
    assert own["cause_ns"] == call["begin_ns"] < own["start_ns"] < own["finish_ns"] < own["resume_ns"]
    assert own["resume_ns"] == call["append_ns"]


def test_flushes_that_overlap_keep_what_the_stamps_say_of_their_order(told):
    times = told(flush_within_a_flush(others_stamp=1))
    outer, inner = times.flushes
    assert outer["start_ns"] < inner["start_ns"] < inner["finish_ns"] < outer["finish_ns"]
    lagging = told(flush_within_a_flush(others_stamp=0))
    outer = lagging.flushes[lagging.flushes["cpu"] == 0][0]
    assert us(outer["start_ns"]) > 301


def test_overruns_and_full_rings_are_told_by_cpu_and_unmap(reading):
    overrun = reading(flush_within_a_flush(others_stamp=1))
    assert recorded_overruns(overrun) == [(1, 4)]
    assert recorded_full_rings(overrun) == [(0, 4), (1, 4)]
    assert recorded_overruns(reading(flush_within_a_flush(others_stamp=0))) == []


def test_flushes_name_the_unmap_whose_line_comes_after_them(reading):
    flushes = flushes_in(reading(flush_within_a_flush(others_stamp=1)).events)
    assert flushes["cause"].tolist() == [BY_FULL_RING] * 2
    assert flushes["unmaps"].tolist() == [4, 4]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([FIRST], id="no flushes"),
        pytest.param([FIRST, flush_begins(30, 0), flush_ends(40, 0)], id="a flush without a cause"),
        pytest.param([FIRST, timer_fires(20, 0), flush_ends(40, 0)], id="a flush without a beginning"),
        pytest.param(
            [
                FIRST,
                timer_fires(20, 0),
                flush_begins(30, 0),
                flush_ends(40, 0),
                appended(50, 0, 2, head=0, tail=2, stamp=2),
            ],
            id="more starts than flushes",
        ),
        pytest.param(
            [
                FIRST,
                "CPU:1 [LOST 3 EVENTS]\n",
                timer_fires(20, 0),
                flush_begins(30, 0),
                flush_ends(40, 0),
            ],
            id="lost events",
        ),
        pytest.param(
            [
                line(10, 0, "q: (__iommu_dma_unmap+0x1cb/0x2d0) fq=0xff00 pfn=0x1 pages=1"),
                timer_fires(20, 0),
                flush_begins(30, 0),
                flush_ends(40, 0),
            ],
            id="appends without stamps",
        ),
    ],
)
def test_probes_that_tell_too_little_are_left_aside(reading, lines):
    assert queue_times(reading(*lines)) is None
