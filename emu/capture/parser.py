"""Blocks of lines to arrays of events: feeds the compiled scanner, and reads itself what only few lines say."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.capture.events import ATTACH, CaptureReport, event_t, ring_state_t
from emu.capture.scanner import (
    ARGUMENT_OF,
    ARGUMENTS,
    KIND_OF,
    LONGEST_LINE_BYTES,
    MOST_CPUS,
    MOST_OWNERS,
    OWNER_SLOTS,
    PHYSICAL_WORD,
    TAGS_OF_A_CPU,
    WORD_SLOTS,
    odd_line_t,
    owner_slot_t,
    scan_lines,
    scan_t,
    tag_t,
    word_hash,
    word_t,
)
from emu.native.compile import compile_entries

_ROWS_AT_ONCE = 1 << 14
_GROWTH = 3
_POINTER_MASK = (1 << 64) - 1

_LOST = re.compile(
    rb"CPU: ?[0-9]+ \[(?:LOST )?(?:([0-9]{1,18}) )?EVENTS(?: DROPPED)?\]\s*$"
    rb"|.*PERF_RECORD_LOST(?:_SAMPLES)? lost ([0-9]{1,18})\s*$"
)
_BUFFER_HEADER = re.compile(rb"# entries-in-buffer/entries-written: ([0-9]{1,18})/([0-9]{1,18})")
_CPUS_HEADER = re.compile(rb"(?:#.* #P:|cpus=)([0-9]{1,4})\s*$")
_WRITTEN_BY = re.compile("^(?:tracing_mark_write|0x[0-9a-f]+): ")
"""trace-cmd says which function wrote a mark; tracefs says it in the event's name."""
_PASSED_OVER = re.compile(rb"#|cpus=|version = |CPU [0-9]+ is empty|(?: => |\t\s*[0-9a-f]{4,16} )|\s*$")
"""Headers, and the lines of call chains: ftrace's ` => function`, perf's tab, address and symbol."""


def _table(meanings: dict[str, int]) -> npt.NDArray[np.void]:
    """The table in which the scanner looks words up."""
    table = np.zeros(WORD_SLOTS, word_t)
    for word, meaning in meanings.items():
        number = word_hash(word)
        slot = number % WORD_SLOTS
        while table[slot]["word"]:
            slot = (slot + 1) % WORD_SLOTS
        table[slot] = number, meaning
    return table


_NAMES = _table(KIND_OF)
_WORDS = _table(ARGUMENT_OF)
_WORDS_BUT_PHYSICAL = _table({word: means for word, means in ARGUMENT_OF.items() if word != PHYSICAL_WORD})


class GrowingArray:
    """An array of records that grows in place: where the system can move pages, growing copies nothing."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._rows: npt.NDArray[Any] = np.empty(0, dtype)

    def reserve(self, rows: int) -> int:
        """Make room for so many rows in all; the address of the first."""
        if rows > len(self._rows):
            self._resize(max(rows, len(self._rows) + (len(self._rows) >> _GROWTH), _ROWS_AT_ONCE))
        return int(self._rows.ctypes.data)

    def __getitem__(self, row: int) -> Any:
        return self._rows[row]

    def cut(self, rows: int) -> npt.NDArray[Any]:
        """Give back what is not used; the array is the caller's from then on."""
        self._resize(rows)
        return self._rows

    def _resize(self, rows: int) -> None:
        # Nobody else has the array before cut() has returned it, so there is no reference to check for.
        self._rows.resize(rows, refcheck=False)


class Parser:
    """Turns blocks of lines into arrays of events, counting what it cannot use.

    Attributes:
        report: complete after `events`, but for what is about mappings.
        marks: see `Capture.marks`.
        header_cpus: CPUs that the trace's header tells of, 0 if it does not.
    """

    def __init__(self, *, physical: bool = False) -> None:
        compile_entries([scan_lines])
        self.report = CaptureReport()
        self.marks: list[str] = []
        self.header_cpus = 0
        self._device_numbers: dict[str, int] = {}
        self._lost_by_header = 0
        self._lost_by_line = 0
        self._is_trace_cmd = False
        self._events = GrowingArray(event_t)
        self._ring_states = GrowingArray(ring_state_t)
        self._odd_lines = GrowingArray(odd_line_t)
        self._paddrs = GrowingArray(np.dtype(np.int64)) if physical else None
        self._owners = np.zeros(MOST_OWNERS, np.int64)
        self._tables = {
            "names": _NAMES,
            "words": _WORDS if physical else _WORDS_BUT_PHYSICAL,
            "owners": self._owners,
            "owner_slots": np.zeros(OWNER_SLOTS, owner_slot_t),
            "tags": np.zeros(MOST_CPUS * TAGS_OF_A_CPU, tag_t),
            "arguments": np.zeros(ARGUMENTS, np.int64),
        }
        self._scan = np.zeros(1, scan_t)
        self._scan["owner_count"] = 1
        for name, table in self._tables.items():
            self._scan[name] = table.ctypes.data

    @property
    def devices(self) -> list[str]:
        """See `Capture.devices`."""
        return list(self._device_numbers)

    @property
    def highest_cpu(self) -> int:
        """The highest number of a CPU that an event names."""
        return self._said("highest_cpu")

    @property
    def has_address_spaces(self) -> bool:
        """Whether the trace tells apart what several domains mapped."""
        return bool(self._said("several_owners"))

    def feed(self, block: bytes) -> None:
        """Take in whole lines, the last ended by a newline."""
        scan, lines = self._scan, block.count(b"\n") + len(block) // LONGEST_LINE_BYTES
        scan["text"] = np.frombuffer(block, np.uint8).ctypes.data
        scan["events"] = self._events.reserve(self._said("event_count") + lines)
        scan["ring_states"] = self._ring_states.reserve(self._said("ring_state_count") + lines)
        scan["odd_lines"] = self._odd_lines.reserve(lines)
        if self._paddrs:
            scan["paddrs"] = self._paddrs.reserve(self._said("map_events") + lines)
        scan["odd_line_count"] = 0
        scan_lines(scan.ctypes.data, len(block))
        for row in range(self._said("odd_line_count")):
            begin, stop, event = self._odd_lines[row].item()
            if event < 0:
                self._take_other_line(block[begin:stop])
            else:
                self._take_text(event, block[begin:stop])

    def events(self) -> npt.NDArray[np.void]:
        """Everything taken in, in trace order; brings the report up to date. Nothing may be fed afterwards."""
        report = self.report
        report.lines = self._said("line_count")
        report.map_events = self._said("map_events")
        report.unmap_events = self._said("unmap_events")
        report.other_events = self._said("other_events")
        report.broken_lines += self._said("broken_lines")
        report.late_events = self._said("late_events")
        report.lost_events = max(self._lost_by_header, self._lost_by_line)
        if self._is_trace_cmd:
            report.tool = "trace-cmd report"
        elif self._said("grouped"):
            report.tool = "perf script"
        return self._events.cut(self._said("event_count"))

    def ring_states(self) -> npt.NDArray[np.void]:
        """What probes in the flush queue said. Nothing may be fed afterwards."""
        return self._ring_states.cut(self._said("ring_state_count"))

    def paddrs(self) -> npt.NDArray[np.int64] | None:
        """Which memory each `MAP` event maps, if that was asked for. Nothing may be fed afterwards."""
        return self._paddrs.cut(self._said("map_events")) if self._paddrs else None

    def owners(self) -> list[int]:
        """The pointers that events belong to; the first stands for none."""
        return [owner & _POINTER_MASK for owner in self._owners[: self._said("owner_count")].tolist()]

    def _said(self, name: str) -> int:
        return int(self._scan[name][0])

    def _take_text(self, index: int, text: bytes) -> None:
        """Read an event whose payload is words."""
        event = self._events[index]
        said = text.decode("utf-8", "replace").strip()
        if event["kind"] == ATTACH:
            event["start"] = self._device(said)
        else:
            event["start"] = len(self.marks)
            self.marks.append(_WRITTEN_BY.sub("", said))

    def _device(self, said: str) -> int:
        return self._device_numbers.setdefault(said.rpartition("device=")[2], len(self._device_numbers))

    def _take_other_line(self, line: bytes) -> None:
        if header := _CPUS_HEADER.match(line):
            self.header_cpus = max(self.header_cpus, int(header[1]))
            self._is_trace_cmd |= line.startswith(b"cpus=")
        if header := _BUFFER_HEADER.match(line):
            self._lost_by_header = max(self._lost_by_header, int(header[2]) - int(header[1]))
        elif lost := _LOST.match(line):
            self._lost_by_line += int(lost[1] or lost[2] or 1)
        elif not _PASSED_OVER.match(line):
            self.report.broken_lines += 1
