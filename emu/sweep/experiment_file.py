"""The file of an experiment: a machine file with one section more, `[sweep]`, that says what is tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from emu.config import Config, ConfigError, complaint, default_cpus, load, read_toml
from emu.sweep.figures import OBJECTIVES
from emu.sweep.ranges import Range

MOST_CELLS = 100_000
_NOT_SWEPT = {
    "machine.seed": "give repeat, which runs each cell with so many seeds, the first of them machine.seed",
    "machine.record": "a cell keeps no events; run it with emu run --record",
}

_Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _by_key(value: Any) -> Any:
    """`domain.fq_size = …` and `"domain.fq_size" = …` say the same."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        nested = {f"{name}.{key}": item for key, item in entry.items()} if _is_section(name, entry) else {name: entry}
        for key, item in nested.items():
            if key in flat:
                raise ValueError(f"names {key} twice")
            flat[key] = item
    return flat


def _is_section(name: str, entry: Any) -> bool:
    return "." not in name and isinstance(entry, Mapping) and name in Config.model_fields


def _known(keys: Mapping[str, Any]) -> None:
    if not keys:
        raise ValueError('needs at least one key, as in "domain.fq_size" = …')
    for written in keys:
        section, _, key = written.partition(".")
        part = Config.model_fields.get(section)
        if part is None or key not in getattr(part.annotation, "model_fields", ()):
            raise ValueError(f"{written}: no such key; a key is section.key, as domain.fq_size, see docs/config.md")
        if written in _NOT_SWEPT:
            raise ValueError(f"{written} cannot be swept; {_NOT_SWEPT[written]}")
    if "machine.ops" in keys and "machine.seconds" in keys:
        raise ValueError("machine.ops and machine.seconds contradict each other; sweep one")


class _Drawn(_Part):
    """What a sweep draws its values from."""

    ranges: dict[str, Range]
    points: int = Field(ge=1, le=MOST_CELLS)
    seed: _Seed = 1

    @field_validator("ranges", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return _by_key(value)

    @field_validator("ranges")
    @classmethod
    def _keys(cls, value: dict[str, Range]) -> dict[str, Range]:
        _known(value)
        return value


class Random(_Drawn):
    """Points drawn at random."""


class Search(_Drawn):
    """Points chosen by what earlier ones came to."""

    objective: str | list[str]
    batch: int = Field(4, ge=1, le=1000)

    @field_validator("objective")
    @classmethod
    def _are_figures(cls, value: str | list[str]) -> list[str]:
        names = [value] if isinstance(value, str) else value
        if not names or len(set(names)) < len(names):
            raise ValueError("needs the name of a figure, or several different ones")
        for name in names:
            if name not in OBJECTIVES:
                raise ValueError(f"{name}: no such figure; there are {', '.join(OBJECTIVES)}")
        return names


class Sweep(_Part):
    """The section `[sweep]`."""

    repeat: int = Field(1, ge=1, le=1000)
    grid: list[dict[str, list[Any]]] | None = None
    random: Random | None = None
    search: Search | None = None

    @field_validator("grid", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [_by_key(part) for part in (value if isinstance(value, list) else [value])]

    @field_validator("grid")
    @classmethod
    def _keys(cls, value: list[dict[str, list[Any]]] | None) -> list[dict[str, list[Any]]] | None:
        for part in value or []:
            _known(part)
            for key, choices in part.items():
                if not choices:
                    raise ValueError(f"{key}: needs at least one value")
                if len({repr(choice) for choice in choices}) < len(choices):
                    raise ValueError(f"{key}: names a value twice")
        return value

    @model_validator(mode="after")
    def _is_one_kind(self) -> Sweep:
        if sum(part is not None for part in (self.grid, self.random, self.search)) != 1:
            raise ValueError("needs one of [sweep.grid], [sweep.random] and [sweep.search]")
        return self

    @property
    def keys(self) -> list[str]:
        """Keys that are swept, as `section.key`, in the file's order."""
        drawn = self.random or self.search
        parts: list[Mapping[str, Any]] = [drawn.ranges] if drawn else list(self.grid or [])
        return list(dict.fromkeys(key for part in parts for key in part))


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment.

    Attributes:
        path: of its file.
        data: all of the file, as TOML has it.
        base: the machine that every cell changes.
        sweep: what is tried.
    """

    path: Path
    data: dict[str, Any]
    base: Config
    sweep: Sweep


def read_experiment(path: Path, cpus: int | None = None) -> Experiment:
    """Read the file of an experiment.

    Args:
        path: of the file.
        cpus: emulated CPUs where the file does not say; None for as many as are usual on this machine.

    Raises:
        ConfigError: it is wrong; one line: what, where, what to do.
    """
    data = read_toml(path)
    if not isinstance(data.get("sweep"), Mapping):
        raise ConfigError(
            f'{path} has no [sweep]; say what to try, as in [sweep.grid] and "domain.fq_size" = [64, 256]'
        )
    base = load(path, others=frozenset({"sweep"}))
    if "cpus" not in base.machine.model_fields_set:
        # Part of the experiment from now on: it may go on elsewhere.
        base = load(base, overrides=[("machine", "cpus", cpus or default_cpus())])
    if base.machine.record:
        raise ConfigError(f"{path}: machine.record: {_NOT_SWEPT['machine.record']}")
    try:
        sweep = Sweep.model_validate(data["sweep"])
    except ValidationError as error:
        raise ConfigError(complaint(error, f"{path}: [sweep]")) from None
    hypervisor = data.get("hypervisor", {})
    if "hypervisor.preset" in sweep.keys and hypervisor.keys() - {"preset"}:
        key = min(hypervisor.keys() - {"preset"})
        raise ConfigError(
            f"{path}: hypervisor.preset is swept, and stands for all numbers of a hypervisor, but one is given, {key}; "
            f'sweep it too, as in "hypervisor.{key}" = [{hypervisor[key]}]'
        )
    return Experiment(path, data, base, sweep)
