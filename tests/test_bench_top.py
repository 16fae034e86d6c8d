"""The benchmark of the live view: what it takes from a machine's log, and what it makes of its rounds."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / "tools" / "bench_top.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_top", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample(at_s, pairs):
    return {"event": "sample", "at_ns": round(at_s * 1e9), "pairs": pairs}


def test_the_time_in_which_the_watcher_starts_does_not_count(bench):
    log = [sample(1.0, 10), sample(4.0, 100), {"event": "flush_started"}, sample(6.0, 300)]
    assert bench.pairs_per_s(log, 3.0) == 100.0
    with pytest.raises(bench.BenchError, match="too few samples"):
        bench.pairs_per_s(log, 5.0)


def test_a_machine_that_is_watched_is_held_against_the_other_of_its_round(bench):
    figures = bench.ratio_of([90.0, 60.0, 200.0], [100.0, 50.0, 200.0])
    assert figures["ratio"] == 1.0
    assert figures["middle_half"] == pytest.approx((0.95, 1.1))
