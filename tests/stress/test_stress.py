"""Random machines come out right, the same seed draws the same, and what fails is made small and can be repeated."""

import random
import subprocess
import sys
from pathlib import Path

from hypothesis import find

from emu.config import load
from emu.stress import hunt as hunting
from emu.stress.draw import descriptions
from emu.stress.hunt import hunt
from emu.stress.trial import Trial, resolve

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5.0


def test_random_machines_come_out_right():
    found = hunt(seed=1, seconds=SECONDS)
    assert found.complaint is None, f"{found.complaint}\n{found.failing and found.failing.to_toml()}"
    assert found.machines.total() > 3


def test_what_is_drawn_can_nearly_always_run():
    wanted = {"processes": 0, "threads": 0, "sim": 0}
    for engine in wanted:
        overrides = find(
            descriptions(),
            lambda drawn, engine=engine: bool((c := resolve(drawn)) and c.machine.engine == engine),
            random=random.Random(1),  # noqa: S311 - draws descriptions
        )
        wanted[engine] = resolve(overrides).machine.cpus
    assert wanted == {"processes": 1, "threads": 1, "sim": 1}


def drawn_by(seed, monkeypatch, complaint_of=lambda _config: None, most=None):
    """What a hunt that runs nothing has drawn, and what it found; it ends after `most` machines, or a second."""
    drawn = []

    def attempt(config):
        drawn.append(config.to_toml())
        return Trial(complaint_of(config), ops=1, interrupted=len(drawn) == most)

    monkeypatch.setattr(hunting, "attempt", attempt)
    return drawn, hunt(seed, 1.0 if most is None else 60.0)


def test_a_seed_draws_the_same_machines(monkeypatch):
    first, second = (drawn_by(7, monkeypatch, most=20)[0] for _ in range(2))
    assert len(first) == 20
    assert first == second != drawn_by(8, monkeypatch, most=20)[0]


def test_a_policy_is_asked_by_every_machine_and_only_those_run_that_have_a_queue(monkeypatch):
    drawn = []
    monkeypatch.setattr(hunting, "attempt", lambda config: drawn.append(config) or Trial(ops=1))
    hunt(7, 1.0, policy="batching")
    assert drawn
    assert all(config.lazy_types and config.domain.policy == "batching" for config in drawn)


def test_what_fails_is_made_small_and_can_be_read_back(monkeypatch, tmp_path):
    _, found = drawn_by(3, monkeypatch, lambda config: "too many" if config.machine.cpus > 2 else None)
    assert found.complaint == "too many"
    assert found.failing.machine.cpus == 3
    assert found.failing.machine.faults == []
    path = tmp_path / "failure.toml"
    path.write_text(found.failing.to_toml())
    assert load(path) == found.failing


def test_without_hypothesis_the_command_says_what_to_install():
    code = (
        "import sys; sys.modules['hypothesis'] = None; from emu.cli.app import dispatch; sys.exit(dispatch(['stress']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "emu stress: needs hypothesis, which is not installed; pip install 'emu[stress]'\n"
