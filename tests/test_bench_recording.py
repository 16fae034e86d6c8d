"""The benchmark of recording: whatever the machine loses of a flood, it counts."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bench_recording.py"


def test_every_event_of_a_flood_is_written_or_counted():
    options = ["--rounds", "1", "--seconds", "0.05", "--flood-seconds", "0.2", "--json"]
    done = subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert len(found["cost"]) == 4
    assert all(row["ratio"] > 0 for row in found["cost"])
    assert [row["cpus"] for row in found["flood"]] == [1, 1, 2, 2]
    assert all(row["exact"] and row["happened"] > 1000 for row in found["flood"]), found["flood"]
