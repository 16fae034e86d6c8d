"""From the steps of a run to lines that a kernel developer can follow: source lines, by CPU, with what they changed."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.explore.machine import Machine
from emu.explore.world import Step
from emu.report.interleaving import Line

_SMALL = 1 << 32
"""What is above is an address, and tells nobody anything."""
_UNTOLD = ("_ns", ".armed_by")
_HELPERS = "/emu/native/"
_FOLLOWED = "flush_queue.py"
"""Of this file every line is told that changes anything; of others only what another CPU could notice."""


@dataclass(frozen=True, slots=True)
class _Watched:
    """A word whose value stands beside every line."""

    title: str
    address: int
    code: str


def _named(record: Any, prefix: str) -> Iterator[tuple[int, str]]:
    for name, (form, offset, *_) in record.dtype.fields.items():
        if form.names and name != "lock":
            for address, inner in _named(getattr(record, name), name):
                yield address, inner if inner != f"{name}.counter" else name
        else:
            yield record.address + offset, f"{prefix}.{name}"


class Telling:
    """Tells the runs of one machine.

    Args:
        machine: whose run it was.
        every_line: every line that touches shared memory, not only those that others could notice.
    """

    def __init__(self, machine: Machine, *, every_line: bool = False) -> None:
        self.machine = machine
        self.every_line = every_line
        self._names: dict[int, str] = dict(_named(machine.domain.cookie, "cookie"))
        self._watched = self._counters()
        self._rings = self._find_rings()
        self._ends: dict[int, int] = {}
        one = len(self._rings) == 1
        self.titles = [watched.title for watched in self._watched]
        self.titles += ["ring" if one else f"ring {i}" for i in range(len(self._rings))]

    def _counters(self) -> list[_Watched]:
        cookie = self.machine.domain.cookie
        return [
            _Watched("start", cookie.fq_flush_start_cnt.address, "q"),
            _Watched("finish", cookie.fq_flush_finish_cnt.address, "q"),
        ]

    def _find_rings(self) -> list[tuple[int, int, int]]:
        """(address of head, address of tail, mask) of every ring, whose fields get their names."""
        rings = self.machine.books.rings()
        found = []
        for i, ring in enumerate(rings):
            self._names |= dict(_named(ring, "ring" if len(rings) == 1 else f"ring {i}"))
            head, tail = (ring.address + ring.places[end][0] for end in ("head", "tail"))
            found.append((head, tail, ring.mod_mask))
        return found

    def lines(self) -> list[Line]:
        """What the world has written down, line by line."""
        told: list[Line] = []
        self._ends = {address: self._first(address, "i") for ring in self._rings for address in ring[:2]}
        values = [*(self._first(watched.address, watched.code) for watched in self._watched), *self._depths()]
        at = {watched.address: i for i, watched in enumerate(self._watched)}
        last: tuple[Any, ...] = ()
        for step in self.machine.world.log or ():
            changes = step.what in ("store", "atomic", "flush")
            if changes and not self._waits(step):
                if step.address in at:
                    values[at[step.address]] = step.value
                elif step.address in self._ends:
                    self._ends[step.address] = step.value
                    values[len(self._watched) :] = self._depths()
            if not self._is_told(step):
                continue
            place = self._place(step)
            key = (step.cpu, *place[:3])
            note = self._note(step)
            if step.what not in ("event", "flush") and key == last:
                told[-1] = told[-1].and_also(note, tuple(values))
            else:
                told.append(Line(step.cpu, *place, (note,) if note else (), tuple(values)))
            last = key if step.what not in ("event", "flush") else ()
        return told

    def _first(self, address: int, code: str) -> int:
        return self.machine.world.memory.at_first(address, code)

    def _depths(self) -> list[int]:
        """Entries on each ring, by its ends."""
        return [(self._ends[tail] - self._ends[head]) & mask for head, tail, mask in self._rings]

    def _waits(self, step: Step) -> bool:
        """Whether a store has only reached its CPU's buffer."""
        world = self.machine.world
        return step.what == "store" and world.ordering != "sc" and world.places.is_visible(step.address)

    def _is_told(self, step: Step) -> bool:
        if step.what in ("event", "flush") or self.every_line:
            return True
        if self.machine.world.places.is_visible(step.address):
            return True
        path = self._frame(step)[0]
        return path.endswith(_FOLLOWED) and step.what in ("store", "atomic") and step.address in self._names

    @staticmethod
    def _frame(step: Step) -> tuple[str, int, str]:
        return next((frame for frame in step.frames if _HELPERS not in frame[0]), ("", 0, ""))

    def _place(self, step: Step) -> tuple[str, int, str, str]:
        """(file, line, function, source) of a step; of an event its text stands for the source."""
        if step.what == "event":
            return "", 0, "", step.text
        if step.what == "flush":
            return "", 0, "", f"the store {self._name(step.address)} = {self._value(step)} becomes visible"
        path, number, function = self._frame(step)
        return Path(path).name, number, function, linecache.getline(path, number).strip()

    def _name(self, address: int) -> str:
        return self._names.get(address, "")

    def _value(self, step: Step) -> str:
        return str(step.value) if 0 <= step.value < _SMALL else f"{step.value & (1 << 64) - 1:#x}"

    def _note(self, step: Step) -> str:
        name = self._name(step.address)
        if step.what in ("event", "flush") or not name or not 0 <= step.value < _SMALL or name.endswith(_UNTOLD):
            return ""
        if step.what in ("load", "store", "atomic"):
            arrow = {"load": "is", "store": "=", "atomic": "becomes"}[step.what]
            return f"{name} {arrow} {step.value}" + (", in its buffer" if self._waits(step) else "")
        return ""
