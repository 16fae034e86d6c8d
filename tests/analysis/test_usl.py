"""The Universal Scalability Law finds what was put in."""

import numpy as np
import pytest

from emu.analysis.usl import fit_scalability, throughput

CPUS = np.array([2.0**power for power in range(11)] * 3)


@pytest.mark.parametrize(("rate", "contention", "coherency"), [(1e6, 0.05, 1e-4), (2e5, 0.3, 2e-3), (5e7, 0.02, 2e-5)])
def test_parameters_are_recovered_from_noise(rate, contention, coherency):
    noise = np.exp(0.01 * np.random.default_rng(5).normal(size=len(CPUS)))
    found = fit_scalability(CPUS, throughput(CPUS, rate, contention, coherency) * noise)
    assert (found.rate, found.contention, found.coherency) == pytest.approx((rate, contention, coherency), rel=0.05)
    assert found.peak_cpus == pytest.approx(np.sqrt((1 - contention) / coherency), rel=0.05)
    assert found.worst < 0.05
    assert found.at(64) == pytest.approx(throughput(np.array([64.0]), rate, contention, coherency)[0], rel=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, inside = np.random.default_rng(9), 0
    for _ in range(100):
        noise = np.exp(0.02 * rng.normal(size=len(CPUS)))
        low, high = fit_scalability(CPUS, throughput(CPUS, 1e6, 0.1, 1e-3) * noise).contention_interval
        inside += low <= 0.1 <= high
    assert 88 <= inside <= 100


def test_what_grows_with_every_cpu_has_no_early_peak():
    found = fit_scalability(CPUS, 1e6 * CPUS)
    assert found.contention == pytest.approx(0, abs=1e-4)
    assert found.peak_cpus is None or found.peak_cpus > 1024


def test_three_sizes_are_too_few():
    with pytest.raises(ValueError, match="needs more than 3 numbers of CPUs, not 3"):
        fit_scalability([1, 2, 4, 4], [1.0, 2.0, 3.0, 3.1])
