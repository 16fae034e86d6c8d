"""A sweep from its first cell to its last: what is done is left out, the rest is run and kept as it comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from emu.config import ConfigError
from emu.sweep.cells import Cell, Values, cells_of, check_corners, config_of, fixed_points
from emu.sweep.executor import Executor
from emu.sweep.experiment_file import Experiment, Search
from emu.sweep.folder import SweepFolder

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to do.

    Attributes:
        cells: all of them, in order; None where a search chooses them as it goes.
        most: how many there are, at most.
    """

    cells: list[Cell] | None
    most: int


def plan_of(experiment: Experiment) -> Plan:
    """Look at every cell before any is run.

    Raises:
        ConfigError: a value is wrong, or some contradict each other.
    """
    search = experiment.sweep.search
    if search:
        check_corners(experiment)
        return Plan(None, search.points * experiment.sweep.repeat)
    cells = cells_of(experiment, fixed_points(experiment))
    return Plan(cells, len(cells))


def conduct(plan: Plan, folder: SweepFolder, executor: Executor, on_progress: OnProgress) -> None:
    """Run what is not done yet.

    Args:
        plan: of the folder's experiment.
        folder: where results go.
        executor: who runs cells.
        on_progress: told (cells done, cells at most).

    Raises:
        SweepError: nobody is left to run them, or results cannot be written.
    """
    on_progress(len(folder.done), plan.most)

    def run(cells: list[Cell]) -> None:
        left = [cell for cell in cells if cell.number not in folder.done]
        for result in executor.run(left, lambda cell: folder.log("cell_started", cell=cell.number)):
            folder.keep(result)
            folder.log("cell_kept", cell=result.cell.number, took_s=round(result.took_s, 4), error=result.error)
            on_progress(len(folder.done), plan.most)

    if plan.cells is not None:
        run(plan.cells)
        return
    search = folder.experiment.sweep.search
    if search:
        _search(search, folder, run)


def _search(search: Search, folder: SweepFolder, run: Callable[[list[Cell]], None]) -> None:
    from emu.sweep.search import Searcher  # noqa: PLC0415 - needs an extra

    experiment, searcher = folder.experiment, Searcher(search)
    first_number = first_point = 0
    while points := searcher.ask():
        # Ends are sound, but what lies between them may not be: such a point has no cells.
        sound = [place for place, values in enumerate(points) if _is_sound(experiment, values)]
        cells = cells_of(experiment, [points[place] for place in sound], first_number, first_point)
        run(cells)
        by_point = {
            point: list(some)
            for point, some in itertools.groupby(sorted(cells, key=lambda c: c.point), lambda c: c.point)
        }
        found = dict(zip(sound, (folder.objectives(some, search.objective) for some in by_point.values()), strict=True))
        searcher.tell([found.get(place) for place in range(len(points))])
        first_number, first_point = first_number + len(cells), first_point + len(sound)


def _is_sound(experiment: Experiment, values: Values) -> bool:
    try:
        config_of(experiment, values)
    except ConfigError:
        return False
    return True
