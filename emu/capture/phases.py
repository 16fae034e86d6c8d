"""Phases of a traced workload, and the domain's type over time, from the lines that were written into the trace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emu.capture.events import MARK

_PHASE = re.compile(r"(?!KCSNAP )\w+ (.+)[. ](begin|end)")
_SETTLED = re.compile(r"KCSNAP (.+)\.settled begin")


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """From event `event` on, the phase is `name`."""

    event: int
    name: str


def phase_changes_in(events: npt.NDArray[np.void], marks: Sequence[str]) -> list[PhaseChange]:
    """Where the phases begin and end.

    `X NAME.begin` enters the phase `NAME`. `X NAME.end` enters `NAME (settling)` where the counters were read again
    after things had settled (a mark `KCSNAP NAME.settled begin`, which then enters `(after NAME)`), and
    `(after NAME)` at once where they were not. An end without its beginning changes nothing.
    """
    settles = {found[1] for mark in marks if (found := _SETTLED.fullmatch(mark))}
    changes: list[PhaseChange] = []
    current = ""
    for event in np.flatnonzero(events["kind"] == MARK).tolist():
        mark = marks[events["start"][event]]
        previous = current
        if found := _PHASE.fullmatch(mark):
            current = _after_mark(found[1], found[2], current, settles)
        elif (found := _SETTLED.fullmatch(mark)) and current == f"{found[1]} (settling)":
            current = f"(after {found[1]})"
        if current != previous:
            changes.append(PhaseChange(event, current))
    return changes


def _after_mark(name: str, edge: str, current: str, settles: set[str]) -> str:
    if edge == "begin":
        return name
    if current != name:
        return current
    return f"{name} (settling)" if name in settles else f"(after {name})"


def phases_begun(marks: Sequence[str]) -> list[str]:
    """Names of the phases that begin somewhere, each once, in their order."""
    begun = [found[1] for mark in marks if (found := _PHASE.fullmatch(mark)) and found[2] == "begin"]
    return list(dict.fromkeys(begun))


def domain_types_in(events: npt.NDArray[np.void], marks: Sequence[str]) -> list[tuple[int, str]]:
    """When the domain's type is known to be what, from the marks `KCTYPE type` and `KCSWITCH want type`.

    Returns:
        (time_ns, type in sysfs' words) for each change. A type stated before any switch was asked for holds from the
        trace's first event.
    """
    types: list[tuple[int, str]] = []
    switches = False
    for event in events[events["kind"] == MARK]:
        word, _, rest = marks[event["start"]].partition(" ")
        switches |= word == "KCSWITCH"
        if word == "KCTYPE" and (not types or types[-1][1] != rest):
            since = event if types or switches else events[0]
            types.append((int(since["time_ns"]), rest))
    return types
