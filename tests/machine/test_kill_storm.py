"""A short storm of random kills; tools/kill_storm.py has the long one."""

import importlib.util
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kill_storm.py"


def test_whoever_dies_and_whenever_the_rest_is_told_and_nothing_is_left():
    specification = importlib.util.spec_from_file_location("kill_storm", TOOL)
    kill_storm = importlib.util.module_from_spec(specification)
    # Its dataclass looks for its module there.
    sys.modules["kill_storm"] = kill_storm
    specification.loader.exec_module(kill_storm)
    tally = kill_storm.storm(5, seed=4)
    assert not tally.problems, "\n".join(tally.problems)
    assert tally.kills.total() >= 5
