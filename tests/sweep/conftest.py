"""Experiments, and an executor that runs nothing: what a sweep does is tested without machines where it can be."""

import copy
from functools import cache

import pytest

from emu.config import load
from emu.experiment import run_machine
from emu.sweep.cell_process import CellResult
from emu.workload.build import build_workload

MACHINE = """
[machine]
engine = "sim"
cpus = 2
ops = 200
seed = 7

[domain]
types = ["DMA-SQ"]
aperture_mb = 64
iova_ranges = 4096
"""
GRID = """
[sweep]
repeat = 2

[sweep.grid]
"domain.fq_size" = [16, 64]
"domain.fq_timeout_ms" = [1, 10]
"""
SEARCH = """
[sweep]
repeat = 2

[sweep.search]
objective = "pairs_per_s"
points = 9
batch = 2
seed = 3

[sweep.search.ranges]
"domain.fq_size" = { powers_of_two = [16, 1024] }
"domain.fq_timeout_ms" = { log_uniform = [0.5, 100.0] }
"domain.types" = { choices = ["DMA-FQ", "DMA-SQ"] }
"""


@cache
def real_run():
    """One element of `runs`, of a small machine."""
    overrides = [("machine", "engine", "sim"), ("machine", "cpus", 2), ("machine", "ops", 200)]
    overrides += [
        ("domain", "types", ["DMA-SQ"]),
        ("domain", "fq_size", 16),
        ("domain", "aperture_mb", 64),
        ("domain", "iova_ranges", 4096),
    ]
    config = load(overrides=overrides)
    return run_machine(config, "DMA-SQ", build_workload(config)).run


class FakeExecutor:
    """Runs nothing.

    Attributes:
        begun: numbers of the cells that were begun, in order.
        stop_after: raise KeyboardInterrupt after so many cells; None for never.
        changes: from a cell to changes of its run.
        errors: the error of a cell, by its number.
    """

    def __init__(self, stop_after=None, changes=lambda _cell: {}, errors=None):
        self.begun = []
        self.stop_after = stop_after
        self.changes = changes
        self.errors = errors or {}

    def run(self, cells, on_begin):
        for cell in cells:
            if self.stop_after == len(self.begun):
                raise KeyboardInterrupt
            on_begin(cell)
            self.begun.append(cell.number)
            run = copy.deepcopy(real_run()) | self.changes(cell)
            error = self.errors.get(cell.number)
            yield CellResult(cell, None if error else {"schema": 1, "runs": [run]}, error, 0.25)

    def close(self):
        pass


@pytest.fixture
def experiment(tmp_path):
    """Write an experiment: experiment(GRID) → its path."""

    def write(sweep, machine=MACHINE, name="experiment.toml"):
        path = tmp_path / name
        path.write_text(machine + sweep)
        return path

    return write
