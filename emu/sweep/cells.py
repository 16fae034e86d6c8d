"""The cells of a sweep: one machine with one domain and one seed each, numbered in the order in which they are begun.

The number of a cell says all about it: the same experiment has the same cells in the same order, wherever it runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.config import Config, ConfigError, DomainType, load
from emu.sweep.experiment_file import MOST_CELLS, Experiment

_DOMAIN = "domain.types"
_MOST_CORNERS = 4096

Values = Mapping[str, Any]
"""What a cell changes of the experiment's machine: values by `section.key`."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One machine to run.

    Attributes:
        number: from 0.
        point: which combination of values it is; the repetitions of a point differ by their seeds alone.
        config: the description, with everything resolved.
    """

    number: int
    point: int
    config: Config

    @property
    def domain(self) -> DomainType:
        """What it runs."""
        return self.config.domain.types[0]

    @property
    def seed(self) -> int:
        """Of everything random in it."""
        return self.config.machine.seed

    @property
    def is_measured(self) -> bool:
        """Whether its figures depend on what else this machine does meanwhile."""
        return self.config.machine.engine != "sim"


def fixed_points(experiment: Experiment) -> list[Values]:
    """The points of a grid, or of a random sweep, in order.

    Raises:
        ConfigError: there are too many.
    """
    sweep = experiment.sweep
    count = sum(math.prod(len(choices) for choices in part.values()) for part in sweep.grid or [])
    _limit(experiment, sweep.random.points if sweep.random else count)
    if sweep.random:
        generator = np.random.default_rng(sweep.random.seed)
        return [
            {key: choices.draw(generator) for key, choices in sweep.random.ranges.items()}
            for _ in range(sweep.random.points)
        ]
    points = (
        dict(zip(part, combination, strict=True))
        for part in sweep.grid or []
        for combination in itertools.product(*part.values())
    )
    # Several grids may have a point in common.
    return list({repr(sorted(point.items())): point for point in points}.values())


def cells_of(
    experiment: Experiment, points: Sequence[Values], first_number: int = 0, first_point: int = 0
) -> list[Cell]:
    """Every point once with the first seed, then every point with the second, and so on.

    So what a machine does more slowly in the end hits all points, and a sweep that was stopped has something of each.

    Raises:
        ConfigError: a value is wrong, or some contradict each other.
    """
    configs = [config_of(experiment, values) for values in points]
    seeded = (
        (first_point + place, config if not repeat else _with_seed(config, config.machine.seed + repeat))
        for repeat in range(experiment.sweep.repeat)
        for place, config in enumerate(configs)
    )
    return [Cell(first_number + number, point, config) for number, (point, config) in enumerate(seeded)]


def config_of(experiment: Experiment, values: Values) -> Config:
    """The description of a point, with the first seed.

    Raises:
        ConfigError: a value is wrong, or some contradict each other; the line names the experiment's file.
    """
    where = f"{experiment.path}: [sweep]"
    given = [
        (*written.split(".", 1), _domains(value) if written == _DOMAIN else value) for written, value in values.items()
    ]
    try:
        config = load(experiment.base, overrides=given)
    except ConfigError as error:
        shown = ", ".join(f"{key} = {value}" for key, value in values.items())
        raise ConfigError(f"{where}: {str(error).removeprefix('command line: ')} (in the cell {shown})") from None
    if len(config.domain.types) != 1:
        raise ConfigError(
            f"{experiment.path}: a cell runs one domain; give one in [domain] types, or sweep over them with "
            '"domain.types" = ["DMA", "DMA-FQ"]'
        )
    if config.machine.seed + experiment.sweep.repeat > 2**63:
        raise ConfigError(f"{experiment.path}: machine.seed: leaves no room for {experiment.sweep.repeat} seeds")
    last = max((action.at_s for action in config.machine.timeline), default=0.0)
    if config.machine.ops is None and last >= config.machine.seconds:
        raise ConfigError(
            f"{experiment.path}: the timeline goes on to {last:g} s, but a load ends after {config.machine.seconds:g} s"
        )
    return config


def _limit(experiment: Experiment, points: int) -> None:
    cells = points * experiment.sweep.repeat
    if cells > MOST_CELLS:
        raise ConfigError(f"{experiment.path}: [sweep] has {cells} cells, more than {MOST_CELLS}; try fewer values")


def check_corners(experiment: Experiment) -> None:
    """See whether what a search may try is sound: all combinations of ends, or each end alone where these are many.

    Raises:
        ConfigError: it is not.
    """
    search = experiment.sweep.search
    if not search:
        return
    _limit(experiment, search.points)
    ends = {key: choices.ends for key, choices in search.ranges.items()}
    if math.prod(len(some) for some in ends.values()) <= _MOST_CORNERS:
        points: Iterator[Values] = (
            dict(zip(ends, combination, strict=True)) for combination in itertools.product(*ends.values())
        )
    else:
        usual = {key: some[0] for key, some in ends.items()}
        points = ({**usual, key: end} for key, some in ends.items() for end in some)
    for values in points:
        config_of(experiment, values)


def value_of(config: Config, key: str) -> Any:
    """What a description says under `section.key`; of the domain's types the only one."""
    if key == _DOMAIN:
        return config.domain.types[0]
    section, _, name = key.partition(".")
    return config.model_dump(mode="json", include={section: {name}})[section][name]


def _domains(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _with_seed(config: Config, seed: int) -> Config:
    # A copy, not another reading: nothing else depends on the seed.
    return config.model_copy(update={"machine": config.machine.model_copy(update={"seed": seed})})
