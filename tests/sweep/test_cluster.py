"""What a cluster must have; tests/test_check_sweep.py runs one."""

import pytest

from emu.sweep.conduct import plan_of
from emu.sweep.executor import SweepError
from emu.sweep.experiment_file import read_experiment
from emu.sweep.versions import versions

from .conftest import GRID

cluster = pytest.importorskip(
    "emu.sweep.cluster", reason="dask.distributed is not installed; pip install 'emu[cluster]'"
)


def test_a_worker_of_another_emu_runs_nothing(experiment):
    (cell, *_) = plan_of(read_experiment(experiment(GRID))).cells
    with pytest.raises(SweepError, match="0000000000000000"):
        cluster.run_on_worker(cell, versions() | {"source": "0" * 16})


def test_no_scheduler_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.3)
    with pytest.raises(SweepError, match="no scheduler answers"):
        cluster.ClusterExecutor("tcp://127.0.0.1:9")
