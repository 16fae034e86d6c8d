"""The benchmark of policies compares like with like."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emu.native.atomics import interpreted

TOOL = Path(__file__).resolve().parents[1] / "tools" / "bench_policy.py"


@pytest.mark.skipif(interpreted, reason="compiled code is what it measures")
def test_a_policy_as_built_in_does_the_same_compiled_and_is_measured_beside_it():
    command = [sys.executable, TOOL, "--quick", "--only", "ring:kernel", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout)
    assert found["differ"] == []
    (row,) = found["cases"]
    assert (row["case"], row["policy"], row["turns"]) == ("ring", "kernel", 3)
    assert row["built_in_ns"] > 0 < row["asked_ns"]
