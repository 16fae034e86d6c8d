"""Binary events: the files of recorded runs, and the rings that they are emptied from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from emu.native import events
from emu.native.compile import compile_entries, entry
from emu.native.events import EventFile, EventFileError, drain_ring, emit, event_ring_t, event_t, init_ring, read_events
from emu.native.record import deref
from fuzzing.memory import Checked, Memory
from fuzzing.target import Target, WrongError

_MOST_STEPS = 4096
_OF_RINGS = ("_fill", "_has_room", "emit", "drain", "init_ring")


class EventFiles(Target):
    """Reads `events-cpuN.bin`."""

    name = "events"
    modules = ("emu.native.events",)
    leaves_out = ("EventFile", "_header", *_OF_RINGS)
    refusals = (EventFileError,)

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="emu-fuzz-")
        self._file = Path(self._folder.name) / "events-cpu0.bin"

    def close(self) -> None:
        self._folder.cleanup()

    def seeds(self) -> list[bytes]:
        some = np.zeros(3, event_t)
        some["ticks"], some["a"] = (1, 2, 3), (-1, 7, 1 << 62)
        with EventFile(self._file.parent, "cpu0") as file:
            file.append(some)
        little = self._file.read_bytes()
        header = little.partition(b"\n")[0] + b"\n"
        return [
            little,
            header,
            header.replace(b"<", b">") + some.astype(event_t.newbyteorder(">")).tobytes(),
            little[:-5],
        ]

    def words(self) -> list[bytes]:
        kinds = ("O", "V0", "V", "S9", "U4", "M8[ns]", "(2,)<i8", "<f8", "<c16", "a,,b", "i8,(", "|b1", "<i8" * 3)
        names = event_t.names or ()
        fields = [f'["{name}", "{kind}"], '.encode() for name in names for kind in kinds]
        return [
            *fields,
            *(f'"{kind}"'.encode() for kind in kinds),
            b"emu-events 1 ",
            b"[" * 900,
            b"]",
            b"null",
            b"{}",
            b"\n",
            b"\xff",
        ]

    def feed(self, data: bytes) -> None:
        self._file.write_bytes(data)
        found = read_events(self._file)
        body = data.partition(b"\n")[2]
        if found.dtype != event_t or len(found) != len(body) // event_t.itemsize:
            raise WrongError(f"{len(found)} events out of {len(body)} bytes")


@entry
def emit_many(ring_address: int, first: int, count: int) -> int:
    """Append events `first`, `first` + 1 and so on."""
    ring = deref(event_ring_t, ring_address)
    for nth in range(first, first + count):
        emit(ring, nth & 0x7F, nth & 3, nth, -nth, nth)
    return 0


class Rings(Target):
    """Fills and empties a ring as an input says, and holds it against a queue: its first byte says how large.

    Of the others each appends as many events as its low five bits say, or with bit 7 empties the ring.
    """

    name = "rings"
    modules = ("emu.native.events",)
    leaves_out = ("EventFile", "_header", "read_events", "_record_form")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        compile_entries([emit_many, drain_ring])
        take: object = memory
        events.np = take  # type: ignore[assignment]
        self._ring, self._slots = (np.zeros(n, form) for n, form in ((1, event_ring_t), (64, event_t)))
        if isinstance(memory, Checked):
            events.deref, events.element = memory.deref, memory.element
            globals()["deref"] = memory.deref

    def seeds(self) -> list[bytes]:
        return [
            bytes([0, 1, 128, 2, 128]),
            bytes([3, 9, 128, 200, 7, 4, 255]),
            bytes([0x85, 31, 31, 31, 128, 5, 128]),
            bytes(9),
        ]

    def words(self) -> list[bytes]:
        return [bytes([byte]) for byte in (0, 1, 7, 8, 16, 31, 128)]

    def feed(self, data: bytes) -> None:
        self._memory.begin()
        shape = data[0] if data else 0
        size = 1 << shape % 7
        ring, slots = self._memory.zeros(1, event_ring_t), self._memory.zeros(size, event_t)
        address = int(ring.__array_interface__["data"][0])
        init_ring(ring.view(np.recarray)[0], int(slots.__array_interface__["data"][0]), size)
        # Positions only grow: they may be anywhere.
        ring["head"] = ring["tail"] = ring["cached_head"] = shape << 50
        number, lost = 0, 0
        waiting: list[int] = []
        for byte in (*data[1:_MOST_STEPS], 128):
            if byte & 128:
                self._empty(ring, waiting)
                waiting = []
                continue
            count = byte & 31
            emit_many(address, number, count)
            kept = min(count, size - len(waiting))
            waiting += range(number, number + kept)
            lost += count - kept
            number += count
        if int(ring["lost"][0]) != lost:
            raise WrongError(f"{ring['lost'][0]} events are counted as lost, not {lost}")

    def _empty(self, ring: np.ndarray, waiting: list[int]) -> None:
        drained = events.drain(ring.view(np.recarray)[0])
        if drained["a"].tolist() != waiting or drained["b"].tolist() != [-each for each in waiting]:
            raise WrongError(f"{drained['a'].tolist()} came out, not {waiting}")
