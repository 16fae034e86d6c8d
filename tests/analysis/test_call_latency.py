"""Averages and deviations from histograms, exactly and as kernel/dma/map_benchmark.c counts."""

import math

import numpy as np
import pytest

import emu
from emu.analysis.call_latency import call_latency
from emu.native.histogram import bucket_bounds


def as_in_a_summary(values_ns, tick_ns):
    """Values counted in buckets, as `histograms` in summary.json has them."""
    buckets = np.searchsorted(bucket_bounds(), (values_ns / tick_ns).astype(int), side="right") - 1
    counts = np.bincount(buckets)
    used = np.flatnonzero(counts)
    ends = np.round(bucket_bounds()[1:][used] * tick_ns, 1)
    return [[end, int(count)] for end, count in zip(ends.tolist(), counts[used], strict=True)]


def as_the_kernel(values_ns):
    """The sums of map_benchmark_thread(), and what do_map_benchmark() makes of them."""
    units = [int(value) // 100 for value in values_ns]
    loops, total, squares = len(units), sum(units), sum(unit * unit for unit in units)
    average = total // loops
    return average, math.isqrt(squares // loops - average * average)


@pytest.mark.parametrize("tick_ns", [0.25, 1 / 2.6, 1.0])
@pytest.mark.parametrize("scale", [30.0, 2_000.0, 500_000.0])
def test_a_histogram_says_what_the_values_say(tick_ns, scale):
    values = np.random.default_rng(1).lognormal(math.log(scale), 0.8, 5000)
    found = call_latency(as_in_a_summary(values, tick_ns), tick_ns)
    assert found.calls == 5000
    assert found.average_ns == pytest.approx(values.mean(), rel=0.005, abs=tick_ns)
    assert found.deviation_ns == pytest.approx(values.std(), rel=0.01, abs=tick_ns)
    average, deviation = as_the_kernel(values)
    assert found.average_100ns == pytest.approx(average, rel=0.005, abs=1)
    assert found.deviation_100ns == pytest.approx(deviation, rel=0.01, abs=1)


def test_the_kernel_cuts_what_is_below_its_unit():
    found = call_latency([[99.0, 1000], [160.0, 1000]], 1.0)
    assert (found.average_100ns, found.deviation_100ns) == (0, 0)
    assert found.average_ns == pytest.approx((98 + 157.5) / 2, abs=2)


def test_nothing_counted_is_nothing():
    assert call_latency([], 1.0).calls == 0


def test_sums_of_squares_have_no_limit():
    found = call_latency([[2.0**56, 10**9], [2.0**56 * 1.5, 10**9]], 1.0)
    assert found.deviation_100ns == pytest.approx(2**54 / 100, rel=0.05)


def test_a_real_run_agrees_with_its_recorded_calls():
    result = emu.run(engine="sim", cpus=2, seconds=0.05, domain="DMA-FQ", record=True)
    (run,) = result.runs
    calls = result.ops()
    for name in ("map", "unmap"):
        took_ns = calls[calls["op"] == name]["took_ns"]
        found = call_latency(run["histograms"][name], run["clock"]["tick_ns"])
        assert found.calls == len(took_ns)
        # Flushes that all take the same fill one bucket, and that is off by half its width at most.
        assert found.average_ns == pytest.approx(took_ns.mean(), rel=1 / 64)
        assert found.deviation_ns == pytest.approx(took_ns.std(), rel=1 / 60)
