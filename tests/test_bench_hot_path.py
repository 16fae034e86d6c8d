"""The benchmark compares like with like: emu and its C reference do the same to the same memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "bench_hot_path.py"

has_compiler = pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="there is no C compiler")


def run_tool(*arguments, **environment):
    own = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    command = [sys.executable, TOOL, "--quick", *arguments]
    return subprocess.run(command, env=own | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def found():
    done = run_tool("--json")
    assert done.returncode in {0, 1}, done.stderr
    return json.loads(done.stdout)


@has_compiler
def test_emu_and_c_leave_the_same_state_in_every_case(found):
    states = {case["name"]: case["state"] for case in found["cases"]}
    assert list(states) == ["lock", "iova", "ring", "pair"]
    for state in states.values():
        assert state["agree"]
        assert state["emu"] == state["c"] != state["before"]


@has_compiler
def test_one_turn_of_the_ring_is_whole_flushes_that_free_all_they_find(found):
    change = next(case for case in found["cases"] if case["name"] == "ring")["state"]["change"]
    assert change["queued"] == change["reclaimed"] == change["exposures"] == 255 * change["flushes_full"]
    assert change["ranges"] == change["overruns"] == 0


@has_compiler
def test_one_turn_of_pairs_fills_the_ring_once_and_needs_no_new_range(found):
    change = next(case for case in found["cases"] if case["name"] == "pair")["state"]["change"]
    assert change["maps"] == change["unmaps"] == change["mapped_pages"] == change["reclaimed"] == 32767
    assert change["global_rpcits"] == change["flushes_full"] == 1
    assert change["ranges"] == change["map_failures"] == 0


@has_compiler
def test_every_ratio_is_a_median_over_repetitions(found):
    for case in found["cases"]:
        ratio = case["emu_over_c"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert ratio["repetitions"] > 1
    assert found["startup"]["two_cpus_s"] > 0
    assert found["memory"]["private_bytes_max"] > 0


def test_without_a_compiler_it_is_skipped_with_a_reason():
    done = run_tool(CC="no-such-compiler")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.startswith("skipped: no C compiler")


def test_interpreted_it_is_skipped_with_a_reason():
    done = run_tool("--json", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0
    assert "NUMBA_DISABLE_JIT" in json.loads(done.stdout)["skipped"]
