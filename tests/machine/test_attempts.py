"""Requests replayed as attempts fail where the replay has no room, and only there."""

import pytest

from emu.analysis.attempts import compare_attempts, median_of
from emu.capture.attempts import find_attempts
from emu.capture.ftrace import read_capture
from emu.experiment import run_machine
from emu.machine.event_writer import EventCollector
from emu.workload.from_attempts import attempts_workload
from tests.capture.block_driver import BUFFER, NEXT_BUFFER, Trace
from tests.machine.machines import config_of

pytestmark = pytest.mark.interpreted

ENGINES = ["processes", "sim"]


@pytest.fixture
def replay(tmp_path):
    """Replays a request that the kernel took back, for want of 128 pages, and then completed."""
    trace = Trace()
    trace.refused((BUFFER, 128))
    trace.complete(trace.request((BUFFER, 128), (NEXT_BUFFER, 128)))
    (tmp_path / "requests.trace").write_text("".join(trace.lines))
    capture = read_capture(tmp_path / "requests.trace", physical=True)
    attempts = find_attempts(capture)

    def run(engine, aperture_mb):
        config = config_of(
            "DMA",
            machine_engine=engine,
            machine_cpus=2,
            machine_record=True,
            domain_aperture_mb=aperture_mb,
            domain_iova_ranges=1024,
        )
        collector = EventCollector()
        outcome = run_machine(config, "DMA", attempts_workload(capture, attempts), collect_in=collector)
        return outcome.run, compare_attempts(capture, attempts, collector.events())

    return run


@pytest.mark.parametrize("engine", ENGINES)
def test_with_room_for_all_nothing_fails_and_what_the_kernel_did_not_get_is_given_back(replay, engine):
    run, compared = replay(engine, aperture_mb=64)
    assert (run["maps"], run["unmaps"], run["map_failures"]) == (2 + 1 + 5, 2 + 1 + 5, 0)
    assert run["conservation"]["holds"]
    assert compared["failures"] == {"kernel": 1, "emu": 0}
    assert compared["roll_backs"] == {"kernel": 2, "emu": 0}
    assert compared["first_failed_attempt"] == {"kernel": 0, "emu": None}
    assert (compared["matched"], compared["extra"], compared["missed"]) == (0, 0, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_room_the_replay_takes_back_what_the_kernel_did_and_what_it_did_not(replay, engine):
    # 256 pages: 128 in the lower half, and a header in the upper one, where 128 more do not fit then.
    run, compared = replay(engine, aperture_mb=1)
    assert (run["maps"], run["unmaps"], run["map_failures"]) == (4, 4, 2)
    assert run["pairs_by_cpu"] == [4, 0]
    assert run["conservation"]["holds"]
    assert compared["failures"] == {"kernel": 1, "emu": 2}
    assert compared["roll_backs"] == {"kernel": 2, "emu": 4}
    assert compared["first_failed_attempt"] == {"kernel": 0, "emu": 0}
    assert (compared["matched"], compared["extra"], compared["missed"]) == (1, 1, 0)


def test_several_replays_are_summed_up_by_their_median_and_their_range(replay):
    compared = [replay("sim", aperture_mb)[1] for aperture_mb in (1, 1, 64)]
    together = median_of(compared)
    assert together["failures"] == {"kernel": 1, "emu": 2, "least": 0, "most": 2}
    assert together["first_failed_attempt"] == {"kernel": 0, "emu": 0, "least": 0, "most": 0}
    assert together["missed"] == 0


def test_events_of_another_run_are_refused(tmp_path):
    trace = Trace()
    trace.complete(trace.request((BUFFER, 128)))
    (tmp_path / "other.trace").write_text("".join(trace.lines))
    other = read_capture(tmp_path / "other.trace", physical=True)
    collector = EventCollector()
    with pytest.raises(ValueError, match="missing"):
        compare_attempts(other, find_attempts(other), collector.events())
