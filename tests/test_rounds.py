"""Candidates take turns: who runs when, on what seed, and what is kept when it ends early."""

import json
from zlib import crc32

import pytest

from emu.analysis.paired import LEVEL, plan_of
from emu.comparison import Question, compare_candidates
from emu.config import load
from emu.experiment import MachineError, Outcome
from emu.rounds import Candidate

COSTS = {"a": 1.0, "b": 2.0, "c": 1.0}


class FakeMachines:
    """Takes the place of machines: each is as fast as its name says, with jitter by seed.

    Attributes:
        ran: (name, seed) of each run.
        ends: what happens to a run, by its number: an exception, or changes to its outcome.
    """

    def __init__(self):
        self.ran = []
        self.ends = {}

    def run_machine(self, config, domain, workload, *, on_compile, on_progress):  # noqa: ARG002 - as the real one
        name = config.hypervisor.preset
        end = self.ends.get(len(self.ran), {})
        self.ran.append((name, config.machine.seed))
        if isinstance(end, BaseException):
            raise end
        if on_progress:
            on_progress(0.5)
        speed = COSTS[name] * (1 + 0.001 * (crc32(f"{name} {config.machine.seed}".encode()) % 17))
        latency = dict.fromkeys(("p50", "p99"), 1000.0)
        run = {"domain": domain, "pairs_per_s": speed, "violations": end.get("violations", 0)}
        run |= {"latency_ns": {"map": latency, "unmap": latency}, "exposure": {"max_ns": 0.0}}
        return Outcome(run, end.get("died"), end.get("interrupted", False))


@pytest.fixture
def machines(monkeypatch):
    fake = FakeMachines()
    monkeypatch.setattr("emu.rounds.run_machine", fake.run_machine)
    monkeypatch.setattr("emu.rounds.build_workload", lambda _config: None)
    return fake


def candidates(engine="sim", **seeds):
    made = []
    for name in COSTS:
        config = load(overrides=[("machine", "engine", engine), ("machine", "seed", seeds.get(name, 1))])
        hypervisor = config.hypervisor.model_copy(update={"preset": name})
        made.append(Candidate(name, config.model_copy(update={"hypervisor": hypervisor}), "DMA"))
    return made


def question(rounds=12, *, engine="sim", until=None, metric="pairs", **seeds):
    plan = plan_of(rounds, LEVEL, looks_on_the_way=until is not None)
    return Question(candidates(engine, **seeds), 0, metric, plan, until)


def test_every_round_has_every_candidate_once(machines):
    compare_candidates(question())
    rounds = [machines.ran[start : start + 3] for start in range(0, 36, 3)]
    assert len(machines.ran) == 36
    assert all({name for name, _ in each} == set(COSTS) for each in rounds)
    assert len({tuple(name for name, _ in each) for each in rounds}) > 2, "who goes first is drawn"


def test_a_round_has_one_seed_and_every_round_another(machines):
    compare_candidates(question())
    seeds = [{seed for _, seed in machines.ran[start : start + 3]} for start in range(0, 36, 3)]
    assert seeds == [{1 + number} for number in range(1, 13)]


@pytest.mark.usefixtures("machines")
def test_candidates_of_other_seeds_keep_them_apart():
    found = compare_candidates(question(b=100))
    assert {row["seed"] - row["round"] for row in found.rows if row["candidate"] == "b"} == {100}
    assert {row["seed"] - row["round"] for row in found.rows if row["candidate"] != "b"} == {1}


def test_a_real_computer_is_warmed_up_first(machines):
    found = compare_candidates(question(engine="processes"))
    assert len(machines.ran) == 39
    assert len(found.rows) == 36
    assert {row["round"] for row in found.rows} == set(range(1, 13))


@pytest.mark.usefixtures("machines")
def test_what_is_found_is_a_sentence_each():
    found = compare_candidates(question()).summary
    base, twice, same = found["candidates"]
    assert (base["ratio"], base["says"], base["differs"]) == (None, None, None)
    assert twice["differs"]
    assert twice["ratio"] == pytest.approx(2.0, rel=0.02)
    assert not same["differs"]
    assert same["says"].startswith("c: no difference from a found; if there is one it is below ")
    assert found["rounds"] == 12
    assert found["confidence"] == 0.99


@pytest.mark.usefixtures("machines")
def test_until_stops_at_the_first_look_that_knows_enough():
    assert compare_candidates(question(96, until=0.05)).summary["rounds"] == 12
    assert compare_candidates(question(96, until=0.0025)).summary["is_reached"]
    hardly = compare_candidates(question(48, until=1e-6)).summary
    assert (hardly["rounds"], hardly["is_reached"]) == (48, False)


@pytest.mark.parametrize("end", [KeyboardInterrupt(), {"interrupted": True}])
def test_an_interruption_keeps_the_complete_rounds(machines, tmp_path, end):
    machines.ends[31] = end
    found = compare_candidates(question(), folder=tmp_path)
    assert found.is_interrupted
    assert len(found.rows) == 30
    assert json.loads((tmp_path / "comparison.json").read_text())["rounds"] == 10
    assert not list(tmp_path.glob(".*"))


def test_few_complete_rounds_say_that_they_are_few(machines, tmp_path):
    machines.ends[9] = KeyboardInterrupt()
    compare_candidates(question(), folder=tmp_path)
    said = json.loads((tmp_path / "comparison.json").read_text())["candidates"][1]
    assert (said["low"], said["high"]) == (None, None)
    assert said["says"] == "b: 3 rounds are too few to tell it from a"
    assert said["differs"] is False


def test_no_complete_round_says_nothing(machines, tmp_path):
    machines.ends[2] = KeyboardInterrupt()
    found = compare_candidates(question(), folder=tmp_path)
    assert found.summary is None
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_a_death_and_a_machine_that_cannot_be_made_are_told(machines):
    machines.ends[4] = {"died": "cpu 0 was killed by SIGKILL"}
    found = compare_candidates(question())
    assert found.died.split(": ")[1] == "cpu 0 was killed by SIGKILL"
    assert len(found.rows) == 3
    machines.ends = {len(machines.ran) + 7: MachineError("no memory")}
    assert str(compare_candidates(question()).error).endswith(": no memory")


def test_violations_are_told(machines):
    machines.ends[5] = {"violations": 3}
    assert len(compare_candidates(question()).violated) == 1


@pytest.mark.usefixtures("machines")
def test_nothing_to_divide_by_is_no_ratio():
    said = compare_candidates(question(metric="exposure")).summary["candidates"][1]
    assert (said["ratio"], said["differs"]) == (None, None)
    assert said["says"] == "b: no ratio to a, as one of them is 0 in a round"


@pytest.mark.usefixtures("machines")
def test_the_folder_has_every_run_and_every_description(tmp_path):
    found = compare_candidates(question(), folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [{key: line[key] for key in row} for line, row in zip(lines, found.rows, strict=True)] == found.rows
    assert lines[0]["run"]["pairs_per_s"] == lines[0]["pairs"]
    assert sorted(path.name for path in tmp_path.glob("*.toml")) == [f"candidate-{number}.toml" for number in (1, 2, 3)]
    assert json.loads((tmp_path / "comparison.json").read_text()) == json.loads(json.dumps(found.summary))


@pytest.mark.usefixtures("machines")
def test_progress_goes_up_to_the_end():
    told = []
    compare_candidates(question(engine="processes"), on_progress=lambda part, rounds: told.append((part, rounds)))
    parts = [part for part, _ in told]
    assert parts == sorted(parts)
    assert {rounds for _, rounds in told} == {12}
    assert 0 < parts[0] < parts[-1] <= 1
