"""What is compared: every machine file × every domain × every value that varies."""

from __future__ import annotations

import itertools
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu.cli.failure import Failure
from emu.cli.options import check_timeline, configured
from emu.config import Config
from emu.rounds import Candidate

Place = tuple[str, str]
Varied = Mapping[Place, Sequence[Any]]

_MOST = 64


def parse_vary(texts: Sequence[str]) -> dict[Place, list[Any]]:
    """Take `section.key=V1,V2` apart; values are read as TOML, and bare words are strings.

    Raises:
        Failure: one has another form, or there are two of a key.
    """
    varied: dict[Place, list[Any]] = {}
    for text in texts:
        place, equals, written = text.partition("=")
        section, dot, key = place.strip().partition(".")
        if not (equals and dot and section and key):
            raise Failure(f"--vary {text}: needs the form section.key=V1,V2, as in --vary domain.fq_size=256,1024")
        if (section, key) in varied:
            raise Failure(f"--vary {section}.{key} is given twice; give all its values in one")
        values = _values(written)
        if len(values) < 2:
            raise Failure(f"--vary {text}: needs at least two values, as in --vary domain.fq_size=256,1024")
        varied[section, key] = values
    return varied


def _values(written: str) -> list[Any]:
    try:
        return list(tomllib.loads(f"values = [{written}]")["values"])
    except (ValueError, RecursionError):
        return [_value(word.strip()) for word in written.split(",")]


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except (ValueError, RecursionError):
        return word


def candidates_of(
    machines: Sequence[Path | Config | None],
    typed: Mapping[Place, tuple[str, Any]],
    varied: Varied,
    costs: Path | None = None,
) -> list[Candidate]:
    """Every machine, with every domain of its description, with every value that varies.

    Args:
        machines: files, descriptions or None for the defaults; at least one.
        typed: what `overrides_of` found.
        varied: (section, key) → its values.
        costs: what --costs names, or None.

    Raises:
        Failure: something in them is wrong, or there are not at least two.
    """
    for section, key in varied:
        if (section, key) in typed:
            raise Failure(f"{typed[section, key][0]} and --vary both give {section}.{key}; give one")
    found: list[tuple[list[str], Candidate]] = []
    for name, machine in zip(_names(machines), machines, strict=True):
        for values in itertools.product(*varied.values()):
            here = dict(zip(varied, values, strict=True))
            over = {place: (f"--vary {'.'.join(place)}={_shown(value)}", value) for place, value in here.items()}
            config = configured(machine, {**typed, **over}, costs_file=costs)
            check_timeline(config)
            said = [f"{'.'.join(place)}={_shown(value)}" for place, value in here.items()]
            found += [([name, domain, *said], Candidate("", config, domain)) for domain in config.domain.types]
    if len(found) < 2:
        raise Failure(
            "needs two candidates at least: several machine files, --domain more than once, or --vary KEY=V1,V2"
        )
    if len(found) > _MOST:
        raise Failure(f"{len(found)} candidates are too many for one comparison; at most {_MOST} take turns")
    return _named(found)


def index_of(candidates: Sequence[Candidate], baseline: str | None) -> int:
    """Which candidate the others are compared with; the first by default.

    Raises:
        Failure: there is none of that name.
    """
    names = [candidate.name for candidate in candidates]
    if baseline is None:
        return 0
    if baseline not in names:
        raise Failure(f"--baseline {baseline}: no such candidate; there are {', '.join(names)}")
    return names.index(baseline)


def _names(machines: Sequence[Path | Config | None]) -> list[str]:
    """By file name, with its folder where names are the same."""
    stems = Counter(machine.stem for machine in machines if isinstance(machine, Path))
    return [
        (machine.stem if stems[machine.stem] == 1 else str(machine.with_suffix("")))
        if isinstance(machine, Path)
        else f"machine {number}"
        for number, machine in enumerate(machines, 1)
    ]


def _named(found: Sequence[tuple[list[str], Candidate]]) -> list[Candidate]:
    """Names of what differs only; equals have a number."""
    differing = [len(set(column)) > 1 for column in zip(*(parts for parts, _ in found), strict=True)]
    names = [" ".join(itertools.compress(parts, differing)) or parts[1] for parts, _ in found]
    seen: Counter[str] = Counter()
    named = []
    for name, (_, candidate) in zip(names, found, strict=True):
        seen[name] += 1
        numbered = name if seen[name] == 1 else f"{name} ({seen[name]})"
        named.append(Candidate(numbered, candidate.config, candidate.domain))
    return named


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
