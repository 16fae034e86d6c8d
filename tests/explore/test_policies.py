"""Policies are explored as the emulated kernel is: emu's own break no promise, and a wrong one is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.explore.bounds import Bounds
from emu.explore.machine import Machine
from emu.explore.search import Limits, Search
from emu.explore.world import Ordering
from emu.native.atomics import interpreted

pytestmark = pytest.mark.interpreted
in_process = pytest.mark.skipif(not interpreted, reason="what is explored is interpreted: NUMBA_DISABLE_JIT=1")
by_command = pytest.mark.skipif(interpreted, reason="the command interprets by itself")

REPOSITORY = Path(__file__).parents[2]


def explored(policy, *, preemptions, programs=(("unmap", "unmap"),) * 2, **bounds):
    """What a search over a small machine of a policy comes to."""
    machine = Machine(Bounds(programs, policy=str(policy), on_overrun="wait", **bounds))
    with machine.ready():
        return Search(machine.world, Limits(preemptions=preemptions, refine_s=0)).run()


@in_process
@pytest.mark.parametrize("policy", ["adaptive_timeout", "batching", "per_node_queues"])
def test_the_examples_violate_nothing(policy):
    found = explored(policy, preemptions=1, timer=1)
    assert found.found is None
    assert not found.stopped_by
    assert found.schedules >= 2


@in_process
def test_batches_of_several_are_flushed_by_whoever_fills_them_or_by_the_timer():
    programs = (("unmap",) * 4, ("unmap", "map"))
    found = explored("batching", preemptions=1, timer=1, fq_size=4, programs=programs)
    assert found.found is None
    assert found.schedules > 10


@in_process
@pytest.mark.parametrize("memory", ["tso", "pso"])
def test_a_batch_is_safe_with_stores_that_are_late(memory):
    found = explored("batching", preemptions=2, ordering=Ordering(memory))
    assert found.found is None


@in_process
def test_one_that_frees_too_early_is_found():
    found = explored("free_too_early", preemptions=2).found
    assert found.violation.kind == "early"
    assert found.preemptions == 2


@in_process
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("def ring_of(cpu, cookie, iova_pfn, pages):\n    return 2\n", "ring"),
        ("def timeout_ns(cpu, cookie):\n    return 0\n", "timeout"),
        ("def may_free(cpu, cookie, entry, counter):\n    return False\n", "kept"),
        ("def ring_of(cpu, cookie, iova_pfn, pages):\n    return cookie.nothing\n", "crash"),
    ],
)
def test_whatever_else_is_wrong_is_found_too(tmp_path, text, kind):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    found = explored(path, preemptions=1, timer=1, fq_size=4).found
    assert found.violation.kind == kind


def explore(*options, expect):
    command = [sys.executable, "-m", "emu", "explore", *options]
    environment = {**os.environ, "COLUMNS": "110"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@by_command
def test_a_wrong_one_is_rejected_with_a_schedule_that_does_the_same_again(tmp_path):
    path, schedule = tmp_path / "mine.py", tmp_path / "found.json"
    path.write_text((REPOSITORY / "emu" / "policies" / "free_too_early.py").read_text())
    options = ("--policy", str(path), "--ops", "2", "--on-overrun", "wait", "--shorten", "0", "--save", str(schedule))
    first = explore(*options, expect=1)
    assert "policy mine" in " ".join(first.stdout.split())
    assert "becomes allocatable before a flush that started after its unmap has finished" in " ".join(
        first.stdout.split()
    )
    kept = json.loads(schedule.read_text())
    assert kept["bounds"]["policy"] == str(path)
    again = explore("--schedule", str(schedule), expect=1)
    assert again.stderr == ""
    assert again.stdout.strip() in first.stdout
    path.write_text(path.read_text() + "\nMORE = 1\n")
    assert "has been edited since" in explore("--schedule", str(schedule), expect=1).stderr
