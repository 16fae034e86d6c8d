"""The large capture that the benchmark makes is flawless, and as large as was asked for."""

import importlib.util
from pathlib import Path

import pytest

from emu.capture.ftrace import read_capture
from emu.capture.shipped import find_capture

TOOL = Path(__file__).parents[1] / "tools" / "bench_capture.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_capture", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_of_a_capture_do_not_meet_each_other(bench, tmp_path):
    source = find_capture(Path("s390x-lazy-nvme"))
    bench.write_capture(source, tmp_path / "large.trace.gz", 100_000)
    once, large = read_capture(source), read_capture(tmp_path / "large.trace.gz")
    rounds = len(large.events) // len(once.events)
    assert rounds > 1
    assert len(large.events) + large.report.other_events >= 100_000
    assert len(large.mappings) == rounds * len(once.mappings)
    assert large.report.sentences() == once.report.sentences() == []
    assert (large.mappings["unmap_event"] >= 0).sum() == rounds * (once.mappings["unmap_event"] >= 0).sum()
    assert large.cpus == once.cpus


def test_what_is_measured_is_said(bench):
    result = bench.read(find_capture(Path("s390x-lazy-nvme")))
    capture = read_capture(find_capture(Path("s390x-lazy-nvme")))
    assert result["events"] == len(capture.events) + capture.report.other_events
    assert result["peak_rss_bytes"] > result["kept_bytes"] > 0
    assert "events/s" in bench._said(result)
