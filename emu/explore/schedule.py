"""A schedule in a file: what was explored, and which CPU did how many steps in what order, to be run again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu.explore.bounds import Bounds, BoundsError
from emu.explore.search import Found, Script
from emu.explore.world import Ordering, Segment, Violation, flush_of, name_of_flush
from emu.native.compile import source_key

_FORMAT = "emu-schedule 1"


class ScheduleError(Exception):
    """A file holds no schedule that can be run; the message is one line."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run.

    Attributes:
        bounds: the machine. segments: of the run. visible: offsets of the places at which stores wait in a buffer.
        violation: what it came to. mutant: the bug that was in the source, or None. source: key of the source.
        policy: key of the policy's text, or None.
    """

    bounds: Bounds
    segments: tuple[Segment, ...]
    visible: tuple[int, ...]
    violation: Violation
    mutant: str | None
    source: str
    policy: str | None = None

    @staticmethod
    def of(bounds: Bounds, found: Found, base: int, mutant: str | None, policy: str | None = None) -> Schedule:
        """What a search has found, in a segment that begins at `base`."""
        return Schedule(
            bounds,
            found.segments,
            tuple(place - base for place in found.visible),
            found.violation,
            mutant,
            source_key(),
            policy,
        )

    def script(self) -> Script:
        """Has a world do the same again."""
        return Script(self.segments)

    def write(self, path: Path, interleaving: list[str]) -> None:
        """Keep it, and beside it how it reads.

        Raises:
            OSError: the file cannot be written.
        """
        data = {
            "format": _FORMAT,
            "violation": asdict(self.violation),
            "mutant": self.mutant,
            "policy": self.policy,
            "bounds": asdict(self.bounds),
            "segments": [_written(segment) for segment in self.segments],
            "visible": list(self.visible),
            "source": self.source,
            "interleaving": interleaving,
        }
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_schedule(path: Path) -> Schedule:
    """Read what `Schedule.write` wrote.

    Raises:
        ScheduleError: it is no such file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScheduleError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ScheduleError(f"{path} is no schedule; --save writes one") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ScheduleError(f"{path} is no schedule of this version ({_FORMAT}); --save writes one")
    try:
        return Schedule(
            _bounds(data["bounds"]),
            tuple(_read(item) for item in data["segments"]),
            tuple(int(offset) for offset in data["visible"]),
            Violation(str(data["violation"]["kind"]), str(data["violation"]["text"])),
            data["mutant"],
            str(data["source"]),
            data.get("policy"),
        )
    except (KeyError, TypeError, ValueError, IndexError, BoundsError) as error:
        raise ScheduleError(f"{path} is a damaged schedule: {error!r}") from None


def _bounds(data: dict[str, Any]) -> Bounds:
    programs = tuple(tuple(program) for program in data.pop("programs"))
    return Bounds(programs, **{**data, "bugs": tuple(data["bugs"]), "ordering": Ordering(data["ordering"])})


def _written(segment: Segment) -> dict[str, int]:
    flush = flush_of(segment[0])
    if flush is None:
        return {"cpu": segment[0], "until": segment[1]}
    return {"flush_of_cpu": flush[0], "entry": flush[1]}


def _read(item: dict[str, int]) -> Segment:
    if "cpu" in item:
        return int(item["cpu"]), int(item["until"])
    return name_of_flush(int(item["flush_of_cpu"]), int(item["entry"])), 0
