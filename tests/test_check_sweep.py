"""A short storm of kills over a sweep, and a cluster that loses a worker; tools/check_sweep.py has the long ones."""

import check_sweep
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of 24 cells that nobody disturbs: its experiment, and its folder."""
    place = tmp_path_factory.mktemp("sweep")
    experiment = place / "experiment.toml"
    assert check_sweep.write_experiment(experiment, repeat=2) == 24
    assert not check_sweep.finish(check_sweep.start(experiment, place / "whole"))
    return experiment, place / "whole"


def test_a_sweep_that_is_killed_again_and_again_loses_nothing_and_repeats_nothing(whole, tmp_path):
    experiment, folder = whole
    found = check_sweep.storm(experiment, tmp_path / "killed", cells=24, kills=2, seed=1)
    assert not found.problems
    assert not check_sweep.differences(folder, tmp_path / "killed")
    assert len(found.done_at_kills) == 2


def test_a_difference_is_found(whole, tmp_path):
    experiment, folder = whole
    other = tmp_path / "experiment.toml"
    other.write_text(experiment.read_text().replace("ops = 400", "ops = 402").replace("repeat = 2", "repeat = 1"))
    assert not check_sweep.finish(check_sweep.start(other, tmp_path / "other"))
    assert check_sweep.differences(folder, tmp_path / "other")


def test_a_cluster_that_loses_a_worker_has_the_same_cells(tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed; pip install 'emu[cluster]'")
    experiment = tmp_path / "experiment.toml"
    assert check_sweep.write_experiment(experiment, repeat=1) == 12
    assert not check_sweep.finish(check_sweep.start(experiment, tmp_path / "whole"))
    assert not check_sweep.on_cluster(experiment, tmp_path / "cluster", cells=12, kill_at=3)
    assert not check_sweep.differences(tmp_path / "whole", tmp_path / "cluster")
