"""The kernel that ran out of addresses, replayed in an aperture as small: it fails as often, and for the first time at
the same request, whatever the trace leaves open."""

import numpy as np
import pytest

from emu.analysis.attempts import compare_attempts, median_of
from emu.capture.attempts import find_attempts
from emu.capture.flushes import flushes_in, jiffies_granule_ns, jiffies_start_ns
from emu.capture.ftrace import read_capture
from emu.config import CostsConfig
from emu.experiment import run_machine
from emu.machine.event_writer import EventCollector
from emu.workload.from_attempts import attempts_workload, possible_times
from emu.workload.from_capture import recorded_times
from tests.machine.machines import config_of

pytestmark = pytest.mark.captures

NO_TIME = tuple(name.removesuffix("_ns") for name in CostsConfig.model_fields if name != "reclaim_ns")
"""The record's times are the costs, but for what it takes to free an entry: no line tells of that."""
TIMEOUT_NS, TICK_NS = 1_000_000_000, 4_000_000


@pytest.fixture(scope="module")
def capture(captures_dir):
    return read_capture(captures_dir / "s390x-6.12-lazy-vblk-smallaperture-2cpu.trace.gz", physical=True)


@pytest.fixture(scope="module")
def replayed(capture):
    """The outcomes of replays with flushes of several possible lengths, and their failures beside the kernel's."""
    attempts = find_attempts(capture)
    load = attempts_workload(capture, attempts)
    flushes = flushes_in(capture.events)
    granule_ns = jiffies_granule_ns(TIMEOUT_NS, TICK_NS)
    since_start_ns = jiffies_start_ns(flushes["timer_ns"], granule_ns) - int(capture.events["time_ns"][0])
    config = config_of(
        "DMA-SQ",
        machine_engine="sim",
        machine_cpus=capture.cpus,
        machine_record=True,
        machine_jiffies_start_ms=(since_start_ns % granule_ns - granule_ns) / 1e6,
        domain_aperture_mb=256,
        hypervisor_intercept_ns=0.0,
        hypervisor_walk_ns=0.0,
        hypervisor_mapping_limit=0,
        **{f"costs_{name}_ns": 0.0 for name in NO_TIME},
    )
    runs, compared = [], []
    # Of the thirteen that a verification makes: the first, the middle one and the last.
    for load.recorded in possible_times(recorded_times(capture))[::6]:
        collector = EventCollector()
        runs.append(run_machine(config, "DMA-SQ", load, real_time=True, collect_in=collector).run)
        compared.append(compare_attempts(capture, attempts, collector.events()))
    return runs, compared


def test_as_many_calls_find_no_addresses_as_in_the_kernel(replayed):
    runs, compared = replayed
    for run, each in zip(runs, compared, strict=True):
        assert each["failures"]["kernel"] == 397
        assert each["failures"]["emu"] == run["map_failures"] == pytest.approx(397, rel=0.1)
        assert each["failures"]["emu"] == each["matched"] + each["extra"]


def test_as_much_is_rolled_back_as_in_the_kernel(replayed):
    _, compared = replayed
    roll_backs = median_of(compared)["roll_backs"]
    assert roll_backs["kernel"] == 2597
    assert roll_backs["emu"] == pytest.approx(2597, rel=0.2)
    # One request of a hundred maps more or less is 4 % already.
    assert 0.5 * 2597 < roll_backs["least"] <= roll_backs["most"] < 1.5 * 2597


def test_the_first_request_to_fail_is_the_kernels_at_the_kernels_time(replayed):
    _, compared = replayed
    for each in compared:
        assert each["first_failed_attempt"]["emu"] == each["first_failed_attempt"]["kernel"]
        assert each["first_failure_s"]["kernel"] == 20.895824
        assert each["first_failure_s"]["emu"] == pytest.approx(20.895824, abs=0.02)


def test_most_failures_are_those_of_the_kernel_call_by_call(replayed):
    _, compared = replayed
    for each in compared:
        assert each["matched"] > 0.8 * each["failures"]["kernel"]
        assert each["missed"] < 0.2 * each["failures"]["kernel"]


def test_nothing_flushes_because_addresses_run_out_and_the_books_balance(replayed, capture):
    runs, _ = replayed
    for run in runs:
        assert run["flushes"]["full"] == 0
        assert run["flushes"]["timeout"] == np.count_nonzero(flushes_in(capture.events)["timer_ns"])
        assert run["violations"] == 0
        assert run["conservation"]["holds"]
