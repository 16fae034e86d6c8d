"""Rings that overran in a real kernel overrun here too, at the same appends and no others; where CPUs wait, none do."""

import numpy as np
import pytest

from emu.capture.ftrace import read_capture
from emu.capture.queue_probes import recorded_full_rings, recorded_overruns
from emu.config import CostsConfig, load
from emu.experiment import run_machine
from emu.iommu.tracepoints import EVENT_FLUSH, EVENT_FLUSH_TIMEOUT, EVENT_OVERRUN
from emu.machine.event_writer import EventCollector
from emu.native.virtual import PS, START_PS
from emu.workload.from_capture import capture_workload, recorded_times
from tests.capture.probed_traces import flush_within_a_flush, maps_of

CAPTURE = "x86-6.12-lazy-vblk-8cpu-overrun.trace.gz"
RING = 256
FREE = [("costs", name, 0.0) for name in CostsConfig.model_fields]
FREE += [("hypervisor", name, 0.0) for name in ("intercept_ns", "walk_ns", "change_ns")]


def replay(capture, *, on_overrun="kernel", **domain):
    """Replay a capture at its recorded times, nothing costing time of its own; the result and what it noted."""
    sim = [("machine", "engine", "sim"), ("machine", "cpus", capture.cpus), ("machine", "record", True)]
    options = [("domain", key, value) for key, value in {"on_overrun": on_overrun, **domain}.items()]
    load_of_it = capture_workload(capture, as_probed=True)
    load_of_it.recorded = recorded_times(capture)
    collector = EventCollector()
    config = load(None, "bare-metal", [*FREE, *sim, *options])
    run = run_machine(config, "DMA-FQ", load_of_it, real_time=True, collect_in=collector).run
    return run, collector.events()


def unmaps_of(events):
    """(CPU, number of its unmap, from 1) of events that happen in the midst of one."""
    return [(int(event["cpu"]), int(event["a"]) + 1) for event in events]


def overruns(events):
    return unmaps_of(events[events["code"] == EVENT_OVERRUN])


def full_rings(events):
    """Which unmaps flushed: flushes of the timer come after no unmap of its own."""
    return unmaps_of(events[(events["code"] == EVENT_FLUSH) & (events["a"] > 0)])


def synthetic(tmp_path, others_stamp):
    path = tmp_path / "synthetic.trace"
    path.write_text(maps_of() + flush_within_a_flush(others_stamp=others_stamp))
    return read_capture(path)


def test_a_flush_that_spans_anothers_overruns_that_ones_ring(tmp_path):
    capture = synthetic(tmp_path, others_stamp=1)
    run, events = replay(capture, fq_size=4)
    assert overruns(events) == recorded_overruns(capture) == [(1, 4)]
    assert run["overrun_iovas"] == 4


def test_a_probe_that_comes_before_what_it_tells_of_overruns_nothing(tmp_path):
    capture = synthetic(tmp_path, others_stamp=0)
    run, events = replay(capture, fq_size=4)
    assert overruns(events) == recorded_overruns(capture) == []
    assert sorted(full_rings(events)) == recorded_full_rings(capture) == [(0, 4), (1, 4)]
    assert run["conservation"]["holds"], run["conservation"]


@pytest.fixture(scope="module")
def capture(captures_dir):
    path = captures_dir / CAPTURE
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return read_capture(path)


@pytest.fixture(scope="module")
def replayed(capture):
    return replay(capture)


@pytest.mark.captures
def test_the_kernels_overruns_happen_at_the_same_appends_and_no_others(capture, replayed):
    run, events = replayed
    assert len(recorded_overruns(capture)) == 9
    assert overruns(events) == recorded_overruns(capture)
    assert (run["overruns"], run["overrun_iovas"]) == (9, 9 * RING)
    assert run["violations"] == 0
    assert run["conservation"]["holds"], run["conservation"]


@pytest.mark.captures
def test_the_same_calls_find_their_ring_full(capture, replayed):
    _, events = replayed
    assert len(recorded_full_rings(capture)) == 472
    assert sorted(full_rings(events)) == sorted(recorded_full_rings(capture))


@pytest.mark.captures
def test_the_timer_was_pending_whenever_it_fired_in_the_kernel(capture, replayed):
    _, events = replayed
    timeouts = events[events["code"] == EVENT_FLUSH_TIMEOUT]
    firings = recorded_times(capture).firings
    assert len(firings) == 77
    assert np.array_equal(timeouts["ticks"] - START_PS // PS, firings["at_ns"])
    assert np.array_equal(timeouts["cpu"], firings["cpu"])


@pytest.mark.captures
def test_who_waits_for_room_loses_nothing(capture):
    run, events = replay(capture, on_overrun="wait")
    assert overruns(events) == []
    assert (run["overruns"], run["overrun_iovas"]) == (0, 0)
    assert run["unmaps"] == len(capture.mappings)
    assert run["conservation"]["holds"], run["conservation"]
