"""Cells in processes of this machine: real ones, tiny."""

import psutil
import pytest

from emu.experiment import MachineError, run_machine
from emu.sweep import cell_process
from emu.sweep.conduct import plan_of
from emu.sweep.experiment_file import read_experiment
from emu.sweep.local import LocalExecutor
from emu.workload.build import build_workload

from .conftest import GRID


@pytest.fixture
def executor():
    made = LocalExecutor(1)
    yield made
    made.close()


def cells_of(path):
    return plan_of(read_experiment(path)).cells


def kill_children():
    for child in psutil.Process().children():
        if not any("resource_tracker" in word for word in child.cmdline()):
            child.kill()


def test_a_cell_is_what_the_machine_is(executor, experiment):
    cells = cells_of(experiment(GRID))[:3]
    results = list(executor.run(cells, lambda _cell: None))
    for cell, result in zip(cells, results, strict=True):
        own = run_machine(cell.config, cell.domain, build_workload(cell.config)).run
        (run,) = result.summary["runs"]
        assert {name: run[name] for name in own if name != "processes"} == {
            name: value for name, value in own.items() if name != "processes"
        } | {"clock": run["clock"]}
    assert len({result.pid for result in results}) == 1


def test_a_cell_whose_process_is_killed_runs_again(executor, experiment):
    begun = []

    def kill_the_first(cell):
        begun.append(cell.number)
        if len(begun) == 2:
            kill_children()

    results = list(executor.run(cells_of(experiment(GRID))[:3], kill_the_first))
    assert begun == [0, 1, 1, 2]
    assert [result.cell.number for result in results] == [0, 1, 2]
    assert not any(result.error for result in results)


def test_a_cell_that_kills_its_process_each_time_is_reported(executor, experiment):
    def kill_at_1(cell):
        if cell.number == 1:
            kill_children()

    results = list(executor.run(cells_of(experiment(GRID))[:3], kill_at_1))
    assert [result.error for result in results] == [None, "its process was killed by SIGKILL, 3 times", None]


def test_a_machine_that_cannot_be_made_is_reported(experiment, monkeypatch):
    def refuse(*_arguments):
        raise MachineError("no space left for a segment of 9 MiB")

    monkeypatch.setattr("emu.experiment.run_machine", refuse)
    result = cell_process._run(cells_of(experiment(GRID))[0], lambda _done, _known: None)
    assert (result.summary, result.error) == (None, "no space left for a segment of 9 MiB")
