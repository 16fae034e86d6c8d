"""The comparison of remedies: what it makes of the rounds it has measured."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / "tools" / "bench_remedies.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_remedies", PATH)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rounds(bench, *throughputs, overruns=0):
    row = bench.Row()
    for pairs_per_s in throughputs:
        row.add(
            {
                "pairs_per_s": pairs_per_s,
                "overruns": overruns,
                "overrun_iovas": 256 * overruns,
                "flushes": {"full": 7},
                "latency_ns": {"unmap": {"p99": 100.0}},
                "exposure": {"p99_ns": 1e6},
            }
        )
    return row


def test_a_remedy_is_held_against_the_kernels_run_of_the_same_round(bench):
    kernel, remedy = rounds(bench, 100.0, 50.0, 200.0, overruns=2), rounds(bench, 90.0, 60.0, 200.0)
    figures = bench.summary_of(remedy, kernel)
    assert figures["ratio"] == 1.0
    assert figures["middle_half"] == pytest.approx((0.95, 1.1))
    assert figures["lost"] == 0
    assert bench.summary_of(kernel, kernel)["lost"] == 3 * 512


def test_one_round_has_no_spread(bench):
    assert bench.summary_of(rounds(bench, 90.0), rounds(bench, 100.0))["middle_half"] == (0.9, 0.9)


def test_a_run_without_a_result_is_one_line(bench):
    with pytest.raises(RuntimeError, match=r"^emu run: [^\n]*$"):
        bench.run_once(bench.Way(("--fq-size", "3")), (), 0.05)
