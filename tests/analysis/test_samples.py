"""What samples say over time."""

import numpy as np
import pytest

from emu.analysis.fairness import jains_index
from emu.analysis.flush_groups import flush_groups
from emu.analysis.flushes import flush_t
from emu.analysis.histograms import percentile_steps, value_at
from emu.analysis.machine_log import Clock
from emu.analysis.samples import samples_of


def sample(at_ns, pairs=0, busy_ns=0, **more):
    rest = {"queued": 0, "requests": 0, "waiting": 0}
    return {"event": "sample", "at_ns": at_ns, "pairs": pairs, "busy_ns": busy_ns, **rest, **more}


def test_a_rate_is_the_growth_since_the_sample_before():
    samples = samples_of([sample(1_000_000_000, pairs=10), sample(3_000_000_000, pairs=50)])
    assert samples.rate(samples.pairs).tolist() == [10.0, 20.0]


def test_sums_that_were_read_a_little_off_make_no_negative_rate():
    samples = samples_of([sample(1_000_000_000, pairs=10), sample(2_000_000_000, pairs=9)])
    assert samples.rate(samples.pairs).tolist() == [10.0, 0.0]


def test_a_sample_soon_after_another_makes_no_rate_of_its_own():
    times = [20, 40, 60, 139, 140, 160]
    samples = samples_of(sample(ms * 1_000_000, pairs=ms) for ms in times)
    assert samples.at_s.tolist() == [0.02, 0.04, 0.06, 0.139, 0.16]


@pytest.mark.parametrize(
    "damaged",
    [{"event": "sample"}, sample(2, queued=None), sample("2"), {"event": "warning", "at_ns": 5}, sample(0), sample(-1)],
)
def test_damaged_samples_are_left_out(damaged):
    assert samples_of([sample(1), damaged, sample(2)]).at_s.tolist() == [1e-9, 2e-9]


def test_without_samples_there_is_nothing_over_time():
    assert len(samples_of([])) == 0


def test_a_request_is_spent_before_it_is_counted():
    seconds = 1_000_000_000
    samples = samples_of(
        [sample(seconds), sample(2 * seconds), sample(3 * seconds, busy_ns=2 * seconds + seconds // 2)]
    )
    assert samples.busy(1).tolist() == [0.5, 1.0, 1.0]
    assert samples.busy(2).tolist() == [0.0, 0.25, 1.0]


def test_steps_begin_where_the_values_of_a_bucket_do():
    one_in, heights = percentile_steps([[10.0, 90], [100.0, 9], [1000.0, 1]])
    assert np.allclose(one_in, [1, 10, 100, 150])
    assert heights.tolist() == [10.0, 100.0, 1000.0, 1000.0]


def test_nothing_counted_has_no_steps_and_no_percentiles():
    assert [len(each) for each in percentile_steps([])] == [0, 0]
    assert value_at([], 0.5) is None


@pytest.mark.parametrize(("fraction", "ns"), [(0.0, 10.0), (0.9, 10.0), (0.91, 100.0), (0.99, 100.0), (1.0, 1000.0)])
def test_a_percentile_is_the_end_of_its_bucket(fraction, ns):
    assert value_at([[10.0, 90], [100.0, 9], [1000.0, 1]], fraction) == ns


def test_flushes_of_one_cause_and_time_are_one_group_and_none_is_lost():
    flushes = np.zeros(5, flush_t)
    flushes["started_ticks"] = [100, 101, 102, 900, 100]
    flushes["finished_ticks"] = [110, 131, -1, 905, 101]
    flushes["cause"] = [0, 0, 0, 0, 1]
    flushes["entries"] = 7
    groups = flush_groups(flushes, Clock(1e9, 100, 0, is_virtual=True), 10.0)
    assert groups["count"].sum() == 5
    assert sorted(groups[["cause", "count", "longest_ns"]].tolist()) == [(0, 1, 5e9), (0, 3, 30e9), (1, 1, 1e9)]
    assert groups["at_s"][groups["count"] == 3].tolist() == [1.0]


def test_no_flushes_are_no_groups():
    assert len(flush_groups(np.zeros(0, flush_t), Clock(1.0, 0, 0, is_virtual=True), 1.0)) == 0


@pytest.mark.parametrize(("shares", "index"), [([5, 5, 5, 5], 1.0), ([8, 0, 0, 0], 0.25), ([0, 0], None), ([], None)])
def test_jains_index_is_1_where_all_have_the_same(shares, index):
    assert jains_index(shares) == index
