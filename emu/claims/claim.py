"""A published statement as an experiment: what was said and where, how it is read as numbers, what runs to show it.

Each is a TOML file of the package. Everything an experiment needs is in its file and in the presets it names; no claim
is known to any code.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emu.config import Config, ConfigError, DomainType, load

EXPERIMENTS = Path(__file__).parent / "experiments"

Sections = dict[str, dict[str, Any]]
"""Values of a run's description, by section and key."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Machine(_Part):
    """One machine that runs.

    Attributes:
        preset: its hypervisor. domain: what it runs.
        settings: values beyond the preset's and the claim's.
    """

    preset: str
    domain: DomainType
    settings: Sections = Field(default_factory=dict)


class Ratio(_Part):
    """The throughput of one machine as a multiple of another's, under the same load in the same round.

    Attributes:
        name: what is compared.
        of, to: numerator and denominator.
        at_least, at_most: the bounds that the whole interval must keep; at least one of them.
    """

    name: str
    of: Machine
    to: Machine
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _is_bounded(self) -> Ratio:
        if self.at_least is None and self.at_most is None:
            raise ValueError("needs at_least or at_most")
        return self


class Fit(_Part):
    """A constant of the description that published points are to determine: the best of some values is taken."""

    section: str
    key: str
    values: list[float] = Field(min_length=1)


class Curve(_Part):
    """Throughput of each CPU over the number of CPUs, beside published points.

    Attributes:
        name: whose points. machine: what runs.
        published: thousand map+unmap pairs per CPU and second, by number of CPUs.
        tolerance: as a part of each point.
        beyond_model: why the model cannot reach points that it does not.
    """

    name: str
    machine: Machine
    published: dict[str, float] = Field(min_length=2)
    tolerance: float = Field(gt=0, lt=1)
    beyond_model: str | None = None

    @property
    def cpus(self) -> list[int]:
        """Numbers of CPUs, in the order of the points."""
        return [int(number) for number in self.published]


class Growth(_Part):
    """How the time that the timer's flush and its frees take grows with the number of CPUs: time ~ CPUs^exponent.

    Attributes:
        name: what grows. machine: what runs.
        cpus: how many CPUs it has, in turn.
        at_least: the bound that the exponent's whole interval must keep.
        beyond_model: why the model does not have it grow so, where it does not.
    """

    name: str
    machine: Machine
    cpus: list[int] = Field(min_length=3)
    at_least: float
    beyond_model: str | None = None


class Claim(_Part):
    """A published statement.

    Attributes:
        id: as in C2. statement: what was said. source: where.
        reading: how the words are read as numbers.
        engines: those that can show it.
        rounds: how often everything is measured, each time with another seed.
        settings: values of the description that all of its machines share.
        ratio, curve, growth: what is measured; at least one of anything.
        fit: constants that are fitted to the points of all curves together.
    """

    id: str = Field(pattern="^C[0-9]+$")
    statement: str
    source: str
    reading: str
    engines: list[Literal["sim", "processes"]] = Field(["sim", "processes"], min_length=1)
    rounds: int = Field(5, ge=1, le=100)
    settings: Sections = Field(default_factory=dict)
    ratio: list[Ratio] = Field(default_factory=list)
    curve: list[Curve] = Field(default_factory=list)
    growth: list[Growth] = Field(default_factory=list)
    fit: list[Fit] = Field(default_factory=list)

    @model_validator(mode="after")
    def _measures_something(self) -> Claim:
        if not (self.ratio or self.curve or self.growth):
            raise ValueError("measures nothing: needs a ratio, a curve or a growth")
        if bool(self.fit) != bool(self.curve):
            raise ValueError("a fit and the curves that it is fitted to need each other")
        return self

    @property
    def combinations(self) -> list[Sections]:
        """All that the fit chooses from: a value of each of its constants."""
        chosen: list[Sections] = [{}]
        for fit in self.fit:
            chosen = [
                {**others, fit.section: {**others.get(fit.section, {}), fit.key: value}}
                for others in chosen
                for value in fit.values
            ]
        return chosen

    def config_of(self, machine: Machine, *changes: Sections) -> Config:
        """The whole description of a machine.

        Args:
            machine: one of this claim's.
            changes: what else is said, the last said counting.

        Raises:
            ConfigError: something in it is wrong; the line begins with the claim.
        """
        values: dict[tuple[str, str], Any] = {}
        for sections in (self.settings, machine.settings, *changes):
            values |= {(section, key): value for section, keys in sections.items() for key, value in keys.items()}
        given = [(section, key, value) for (section, key), value in values.items()]
        try:
            return load(preset=machine.preset, overrides=[*given, ("domain", "types", [machine.domain])])
        except ConfigError as error:
            raise ConfigError(f"{self.id}: {error}") from None


def read_claims(folder: Path = EXPERIMENTS) -> list[Claim]:
    """All claims of a folder, in the order of their numbers.

    Raises:
        ConfigError: a file is not a claim.
    """
    claims = [_read(path) for path in folder.glob("*.toml")]
    return sorted(claims, key=lambda claim: int(claim.id[1:]))


def _read(path: Path) -> Claim:
    try:
        return Claim.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path.name}: {place}: {first['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{path.name} is not TOML: {error}") from None
