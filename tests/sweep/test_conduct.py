"""What a sweep does, with cells that run nothing."""

import json
from contextlib import suppress

import duckdb
import pytest

from emu.sweep.conduct import conduct, plan_of
from emu.sweep.executor import SweepError
from emu.sweep.folder import SweepFolder, reading
from emu.sweep.results import export, recommend

from .conftest import GRID, MACHINE, SEARCH, FakeExecutor, real_run


def sweep(path, source, executor, retry=False):
    """One call; the cells that are done after it."""
    with SweepFolder(path, source) as folder:
        if retry:
            folder.forget_failed()
        with suppress(KeyboardInterrupt):
            conduct(plan_of(folder.experiment), folder, executor, lambda _done, _most: None)
        return folder.done


def table(path, columns):
    with duckdb.connect(":memory:") as database:
        return database.execute(f"SELECT {columns} FROM ({reading(path)})").fetchall()  # noqa: S608 - the test's own


def test_every_combination_is_run_with_every_seed(tmp_path, experiment):
    executor = FakeExecutor()
    assert sweep(tmp_path / "s", experiment(GRID), executor) == set(range(8))
    rows = table(tmp_path / "s", "cell, point, seed, domain_fq_size, domain_fq_timeout_ms")
    assert rows[:4] == [(0, 0, 7, 16, 1.0), (1, 1, 7, 16, 10.0), (2, 2, 7, 64, 1.0), (3, 3, 7, 64, 10.0)]
    assert [row[1:] for row in rows[4:]] == [(point, 8, *values) for _, point, _, *values in rows[:4]]


def test_a_row_has_the_figures_of_the_summary_and_the_summary(tmp_path, experiment):
    sweep(tmp_path / "s", experiment(GRID), FakeExecutor(changes=lambda cell: {"pairs_per_s": 1e3 + cell.number}))
    assert table(tmp_path / "s", "pairs_per_s") == [(1e3 + number,) for number in range(8)]
    ((text, p99, flushes, memory),) = table(
        tmp_path / "s", "first(summary), first(unmap_p99_ns), first(flushes_full), first(segment_bytes)"
    )
    run = json.loads(text)["runs"][0]
    assert (p99, flushes, memory) == (run["latency_ns"]["unmap"]["p99"], run["flushes"]["full"], run["segment_bytes"])
    assert memory > 0


def test_what_was_interrupted_goes_on_and_repeats_nothing(tmp_path, experiment):
    source, first, second = experiment(GRID), FakeExecutor(stop_after=3), FakeExecutor()
    assert len(sweep(tmp_path / "s", source, first)) == 3
    assert len(sweep(tmp_path / "s", None, second)) == 8
    assert sorted(first.begun + second.begun) == list(range(8))


def test_a_half_written_cell_is_none(tmp_path, experiment):
    source = experiment(GRID)
    sweep(tmp_path / "s", source, FakeExecutor(stop_after=3))
    (tmp_path / "s/cells/.000003.parquet.tmp").write_bytes(b"PAR1")
    executor = FakeExecutor()
    sweep(tmp_path / "s", source, executor)
    assert executor.begun == [3, 4, 5, 6, 7]
    assert not list((tmp_path / "s/cells").glob(".*"))


def test_another_experiment_does_not_go_into_the_same_folder(tmp_path, experiment):
    sweep(tmp_path / "s", experiment(GRID), FakeExecutor())
    changed = experiment(GRID.replace("16, 64", "16, 32"), name="changed.toml")
    with pytest.raises(SweepError, match=r"sweep\.grid\.domain\.fq_size was \[16, 64\], and is \[16, 32\]"):
        SweepFolder(tmp_path / "s", changed)


def test_a_comment_is_no_change(tmp_path, experiment):
    sweep(tmp_path / "s", experiment(GRID), FakeExecutor(stop_after=1))
    assert len(sweep(tmp_path / "s", experiment("# more\n" + GRID, name="said.toml"), FakeExecutor())) == 8


def test_another_emu_does_not_go_on(tmp_path, experiment):
    source = experiment(GRID)
    sweep(tmp_path / "s", source, FakeExecutor(stop_after=1))
    about = tmp_path / "s/sweep.json"
    known = json.loads(about.read_text())
    about.write_text(json.dumps(known | {"versions": known["versions"] | {"source": "0" * 16}}))
    with pytest.raises(SweepError, match=r"was begun with emu .* 0000000000000000"):
        SweepFolder(tmp_path / "s", source)


def test_two_sweeps_do_not_use_one_folder_at_a_time(tmp_path, experiment):
    source = experiment(GRID)
    with SweepFolder(tmp_path / "s", source), pytest.raises(SweepError, match="in use by another emu sweep"):
        SweepFolder(tmp_path / "s", source)
    SweepFolder(tmp_path / "s", source).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path, experiment):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.txt").touch()
    with pytest.raises(SweepError, match=r"is not empty \(thesis.txt\)"):
        SweepFolder(tmp_path / "s", experiment(GRID))
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.txt"]


def test_the_cpus_of_the_machine_where_it_began_are_part_of_it(tmp_path, experiment, monkeypatch):
    source = experiment(GRID, MACHINE.replace("cpus = 2\n", ""))
    monkeypatch.setattr("emu.sweep.experiment_file.default_cpus", lambda: 3)
    sweep(tmp_path / "s", source, FakeExecutor(stop_after=1))
    monkeypatch.setattr("emu.sweep.experiment_file.default_cpus", lambda: 4)
    sweep(tmp_path / "s", source, FakeExecutor())
    assert table(tmp_path / "s", "DISTINCT cpus") == [(3,)]


def test_cells_with_an_error_stay_until_they_are_to_run_again(tmp_path, experiment):
    source = experiment(GRID)
    sweep(tmp_path / "s", source, FakeExecutor(errors={2: "no memory"}))
    assert table(tmp_path / "s", "cell, error, pairs_per_s")[2] == (2, "no memory", None)
    idle, again = FakeExecutor(), FakeExecutor()
    sweep(tmp_path / "s", source, idle)
    sweep(tmp_path / "s", source, again, retry=True)
    assert (idle.begun, again.begun) == ([], [2])
    assert table(tmp_path / "s", "count(error)") == [(0,)]


def larger_is_faster(cell):
    return {"pairs_per_s": float(cell.config.domain.fq_size or 0) - cell.config.domain.fq_timeout_ms + cell.seed % 2}


@pytest.mark.parametrize("stop_after", [1, 4, 7, 17])
def test_a_search_that_was_interrupted_tries_what_it_would_have_tried(tmp_path, experiment, stop_after):
    source = experiment(SEARCH, MACHINE.replace('types = ["DMA-SQ"]\n', ""))
    whole, first, second = (FakeExecutor(stop, larger_is_faster) for stop in (None, stop_after, None))
    sweep(tmp_path / "whole", source, whole)
    sweep(tmp_path / "parts", source, first)
    sweep(tmp_path / "parts", source, second)
    assert sorted(first.begun + second.begun) == sorted(whole.begun) == list(range(18))
    columns = "cell, point, seed, domain_types, domain_fq_size, domain_fq_timeout_ms"
    assert table(tmp_path / "parts", columns) == table(tmp_path / "whole", columns)


def test_a_search_finds_what_is_better(tmp_path, experiment):
    text = SEARCH.replace("points = 9", "points = 40").replace("repeat = 2", "repeat = 1")
    sweep(
        tmp_path / "s",
        experiment(text, MACHINE.replace('types = ["DMA-SQ"]\n', "")),
        FakeExecutor(None, larger_is_faster),
    )
    ((first, last),) = table(
        tmp_path / "s", "avg(pairs_per_s) FILTER (cell < 10), avg(pairs_per_s) FILTER (cell >= 30)"
    )
    assert last > first * 1.3


def test_a_retried_search_forgets_what_came_of_the_failure(tmp_path, experiment):
    source = experiment(SEARCH, MACHINE.replace('types = ["DMA-SQ"]\n', ""))
    sweep(tmp_path / "s", source, FakeExecutor(errors={5: "no memory"}))
    again = FakeExecutor()
    sweep(tmp_path / "s", source, again, retry=True)
    assert sorted(again.begun) == list(range(5, 18))


def test_the_front_and_its_knee_are_recommended(tmp_path, experiment):
    def changes(cell):
        size, timeout = cell.config.domain.fq_size, cell.config.domain.fq_timeout_ms
        speed = {16: 500.0, 64: 970.0}[size] + (30.0 if timeout > 5 else 0.0)
        # 16 entries and 10 ms expose longer than 64 and 1 ms, and are slower.
        exposure = real_run()["exposure"] | {"max_ns": {16: 1e6, 64: 2e6}[size] * timeout**1.5, "windows": 9}
        return {"pairs_per_s": speed, "exposure": exposure}

    sweep(tmp_path / "s", experiment(GRID), FakeExecutor(changes=changes))
    found = recommend(tmp_path / "s")
    assert found.swept == ["domain_fq_size", "domain_fq_timeout_ms"]
    assert [(row["domain_fq_size"], row["domain_fq_timeout_ms"]) for row in found.front] == [(64, 10), (64, 1), (16, 1)]
    assert found.front[found.knee]["domain_fq_timeout_ms"] == 1
    assert (found.front[found.knee]["domain_fq_size"], found.configurations, found.left_out) == (64, 4, 0)
    assert found.front[0]["cells"] == 2
    assert found.front[0]["spread"] == 0


def test_what_is_wrong_or_not_known_is_not_recommended(tmp_path, experiment):
    def changes(cell):
        exposure = real_run()["exposure"] | {"windows": 0, "still_open": 9, "max_ns": 0.0}
        return {0: {"violations": 1}, 1: {"exposure": exposure}}.get(cell.point, {})

    executor = FakeExecutor(changes=changes, errors={2: "no memory"})
    sweep(tmp_path / "s", experiment(GRID), executor)
    found = recommend(tmp_path / "s")
    assert [row["domain_fq_size"] for row in found.front] == [64]
    assert [row["domain_fq_timeout_ms"] for row in found.front] == [10]
    assert found.left_out == 3


@pytest.mark.parametrize("name", ["cells.csv", "cells.parquet"])
def test_all_cells_go_into_one_file(tmp_path, experiment, name):
    sweep(tmp_path / "s", experiment(GRID), FakeExecutor(stop_after=5))
    assert export(tmp_path / "s", tmp_path / name) == 5
    with duckdb.connect(":memory:") as database:
        database.execute(f"CREATE VIEW cells AS FROM '{tmp_path / name}'")
        found = database.execute("SELECT cell, domain_fq_size FROM cells ORDER BY cell").fetchall()
    assert found == [(0, 16), (1, 16), (2, 64), (3, 64), (4, 16)]
    with pytest.raises(SweepError, match="is there already"):
        export(tmp_path / "s", tmp_path / name)
