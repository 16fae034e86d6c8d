"""`emu explore` finds what is wrong with a queue, and completes where nothing is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.cli.app import dispatch
from emu.mutants.catalogue import MUTANTS

REPOSITORY = Path(__file__).parents[2]


def explore(*options, mutant=None, expect):
    """Run the command; returns its standard output."""
    environment = {**os.environ, "COLUMNS": "110", **({"EMU_MUTANT": mutant} if mutant else {})}
    command = [sys.executable, "-m", "emu", "explore", "--shorten", "0", *options]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def test_it_finds_the_overrun_of_the_queue_of_each_cpu_by_itself():
    found = json.loads(explore("--json", expect=1))
    assert found["violation"]["kind"] == "lost"
    assert "2 IOVAs lost" in found["violation"]["text"]
    assert found["violation"]["preemptions"] == 1
    assert found["violation"]["first_after_s"] < 10


def test_the_single_queue_loses_nothing_while_no_timer_fires():
    found = json.loads(
        explore("--domain", "DMA-SQ", "--fq-size", "4", "--ops", "2", "--preemptions", "any", "--json", expect=0)
    )
    assert found["complete"]
    assert found["whatever_the_preemptions"]


def test_the_timers_flush_makes_the_single_queue_overrun_as_well():
    found = json.loads(explore("--domain", "DMA-SQ", "--with-timer", "1", "--json", expect=1))
    assert found["violation"]["kind"] == "lost"


def test_who_waits_for_room_loses_nothing():
    options = ("--on-overrun", "wait", "--ops", "2", "--preemptions", "2", "--json")
    assert json.loads(explore(*options, expect=0))["complete"]


def test_a_schedule_is_written_and_does_the_same_again(tmp_path):
    first = explore("--program", "queue queue", "--save", str(tmp_path / "found.json"), expect=1)
    again = explore("--schedule", str(tmp_path / "found.json"), expect=1)
    assert again.strip()
    assert again.strip() in first
    for told in ("fetch_add(cookie.fq_flush_start_cnt", "ring 0.tail = 0", "2 IOVAs lost"):
        assert told.replace(" ", "") in "".join(again.split())


def test_a_limit_is_said_to_have_ended_the_search():
    said = explore("--domain", "DMA-SQ", "--schedules", "20", expect=0)
    assert "Stopped by --schedules 20, not complete" in " ".join(said.split())


@pytest.mark.parametrize("name", ["free-at-equal", "start-after-flush", "timer-off-too-late", "wrong-magazine"])
def test_it_catches_a_bug_that_was_put_in(name):
    found = json.loads(explore("--json", *MUTANTS[name].explore, mutant=name, expect=1))
    assert found["mutant"] == name


@pytest.mark.parametrize("memory", ["sc", "tso", "pso"])
def test_a_run_goes_on_after_a_barrier_and_into_its_next_operation(memory):
    options = ("--ops", "1", "--timer-sleeps", "--memory", memory, "--preemptions", "0")
    found = json.loads(explore("--json", *options, expect=0))
    # Each CPU can be the first. A run that ended at its own continuation would be no schedule.
    assert found["schedules"] >= 2
    assert found["complete"]


@pytest.mark.parametrize("name", ["no-mb-in-add-timer", "no-mb-in-wait-for-timer"])
def test_a_missing_fence_is_caught_with_store_buffers(name):
    found = json.loads(explore("--json", *MUTANTS[name].explore, mutant=name, expect=1))
    assert found["violation"]["kind"] == "deadlock"


@pytest.mark.parametrize(
    "options",
    [
        MUTANTS["no-mb-in-add-timer"].explore,
        ("--domain", "DMA", "--switch", "DMA-FQ", "--memory", "tso", "--ops", "1", "--preemptions", "1"),
        ("--domain", "DMA-SQ", "--memory", "tso", "--ops", "2", "--preemptions", "1"),
    ],
    ids=["timer", "switch", "single queue"],
)
def test_with_all_its_fences_it_is_sound_with_store_buffers_too(options):
    assert json.loads(explore("--json", *options, expect=0))["complete"]


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        (("--domain", "s390-lazy"), "--domain s390-lazy"),
        (("--fq-size", "3"), "--fq-size 3"),
        (("--memory", "rmo"), "--memory rmo"),
        (("--program", "queue map"), "--program: queue stands alone"),
        (("--preemptions", "few"), "--preemptions few"),
    ],
)
def test_a_wrong_call_is_one_line(emu_in_process, options, blamed):
    code, err = emu_in_process("explore", *options)
    assert code == 2
    assert blamed in err
    assert err.count("\n") == 1


@pytest.fixture
def emu_in_process(capsys):
    def call(*arguments):
        code = dispatch(arguments)
        return code, capsys.readouterr().err

    return call
