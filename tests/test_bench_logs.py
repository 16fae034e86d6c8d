"""The large run that the benchmark makes is one that `emu logs` understands, with as many flushes as it should have."""

import importlib.util
from pathlib import Path

import pytest

from emu.analysis.run_data import load_run

TOOL = Path(__file__).parents[1] / "tools" / "bench_logs.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_logs", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("strict", [False, True])
def test_its_flushes_are_found(bench, tmp_path, strict):
    bench.write_run(tmp_path, 40_000, 1000, strict=strict)
    (domain,) = load_run(tmp_path).domains
    flushes = domain.flushes()
    assert len(flushes) == 40
    assert (flushes["finished_ticks"] > flushes["started_ticks"]).all()
    assert set(flushes["service_ns"]) == {4_200_000}


def test_what_is_measured_is_said(bench, tmp_path):
    bench.write_run(tmp_path, 40_000, 1000, strict=False)
    result = {"events": 40_000, **bench.ask(tmp_path, "slowest-flushes")}
    assert result["rows"] == 20
    assert result["peak_rss_bytes"] > 0
    assert "20 rows" in bench._said(result)
