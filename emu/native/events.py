"""What happened on each CPU, in binary: rings in the segment that one process fills and the supervisor empties.

A ring has one producer and one consumer. Its positions only grow; the low bits name the slot. The producer keeps a copy
of the consumer's position and looks at the real one only when the ring seems full, so that the two rarely fight for a
cache line. A full ring never blocks: the new event is counted as lost and dropped. A producer that is killed leaves a
whole ring behind, for an event exists once `tail` has passed it.

Emptying is a compiled entry too: NumPy's loads and stores come in the machine's own order, which is strong enough on
x86_64 and not elsewhere.

On disk they are files `events-NAME.bin`: one line of text that describes the records, then the records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emu.native.atomics import smp_load_acquire, smp_store_release, write_once
from emu.native.compile import entry, inline, slow
from emu.native.full_disk import fill_disk_of
from emu.native.record import deref, element, pointer_to, struct

event_t = struct(ticks="i8", code="i2", slot="i2", cpu="i4", a="i8", b="i8")
"""`slot` is the process that saw it, `cpu` the emulated CPU on whose behalf it happened; `a` and `b` mean what the code
says."""

event_ring_t = struct(
    lines=("head", "tail"),
    head="i8",
    tail="i8",
    cached_head="i8",
    mask="i8",
    events="i8",
    lost="i8",
)
"""`head` is the consumer's, the rest the producer's. `events` is the address of `mask` + 1 event_t, a power of two."""

MAGIC = "emu-events"
VERSION = 2


class EventFileError(Exception):
    """A file holds no events that this version can read; the message is one line."""


@inline
def _fill(event: Any, at_ticks: int, code: int, slot: int, cpu_id: int, a: int, b: int) -> None:
    event.ticks = at_ticks
    event.code = code
    event.slot = slot
    event.cpu = cpu_id
    event.a = a
    event.b = b


@slow
def _has_room(ring: Any, tail: int) -> bool:
    """Look where the consumer is now."""
    # Acquire: the consumer has read the slots that are written next. Pairs with the release of head in drain_ring().
    ring.cached_head = smp_load_acquire(ring, "head")
    return bool(tail - ring.cached_head <= ring.mask)


@inline
def emit(cpu: Any, code: int, a: int, b: int, at_ticks: int) -> None:
    """Append an event to the ring of the caller, which has one (`cpu.events`); when that is full, count it as lost."""
    ring = deref(event_ring_t, cpu.events)
    tail = ring.tail
    if tail - ring.cached_head > ring.mask and not _has_room(ring, tail):
        write_once(ring, "lost", ring.lost + 1)
        return
    _fill(element(event_t, ring.events, tail & ring.mask), at_ticks, code, cpu.slot, cpu.id, a, b)
    # Release: whoever sees the new tail sees the event. Pairs with the acquire of tail in drain_ring().
    smp_store_release(ring, "tail", tail + 1)


@entry
def drain_ring(ring_address: int, to: int, most: int) -> int:
    """Move up to `most` events from a ring to the array at `to`; returns how many."""
    ring = deref(event_ring_t, ring_address)
    head = ring.head
    # Acquire: all events below tail are whole. Pairs with the release of tail in emit().
    count = min(smp_load_acquire(ring, "tail") - head, most)
    for i in range(count):
        event = element(event_t, ring.events, (head + i) & ring.mask)
        _fill(element(event_t, to, i), event.ticks, event.code, event.slot, event.cpu, event.a, event.b)
    # Release: the slots have been read before the producer writes them again. Pairs with the acquire of head in
    # _has_room().
    smp_store_release(ring, "head", head + count)
    return int(count)


def init_ring(ring: Any, events: int, count: int) -> None:
    """Make a ring empty, with room for `count` events, a power of two, at the address `events`.

    Raises:
        ValueError: when `count` is not a power of two.
    """
    if count < 1 or count & (count - 1):
        raise ValueError(f"an event ring cannot have {count} slots: they must be a power of two")
    ring.head = ring.tail = ring.cached_head = ring.lost = 0
    ring.mask = count - 1
    ring.events = events


def drain(ring: Any) -> npt.NDArray[np.void]:
    """Take what a ring holds now.

    Args:
        ring: its record, event_ring_t; nobody else may drain it at the same time.

    Returns:
        A private copy, oldest first, shape (n,), dtype event_t.
    """
    events = np.empty(int(ring.mask) + 1, event_t)
    return events[: drain_ring(pointer_to(ring), events.ctypes.data, len(events))]


class EventFile:
    """`events-NAME.bin` in a folder, written chunk by chunk; read it with `read_events`.

    Raises:
        OSError: also from `append`, after which the file must not be appended to any more.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"events-{name}.bin"
        self._file = self.path.open("wb")
        self._file.write(_header())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, events: npt.NDArray[np.void]) -> None:
        """Write a chunk through to the system, so that a crash of this process loses nothing before it."""
        self._file.write(events.view(np.uint8).data)
        self._file.flush()

    def fill_disk(self) -> None:
        """From now on the system refuses every write to the file, as on a disk that is full."""
        fill_disk_of(self._file)

    def close(self) -> None:
        """Close the file; more than once is fine."""
        self._file.close()


def _header() -> bytes:
    return f"{MAGIC} {VERSION} {json.dumps(event_t.descr)}\n".encode()


def read_events(path: Path) -> npt.NDArray[np.void]:
    """Read a file of events; a last record that was cut off is left out.

    Args:
        path: written by EventFile, on a machine of any byte order.

    Returns:
        Shape (n,), dtype event_t.

    Raises:
        EventFileError: when it is no such file, or of another version.
        OSError: when it cannot be read.
    """
    chunks = list(event_chunks(path))
    return np.concatenate(chunks) if chunks else np.empty(0, event_t)


def event_chunks(path: Path, most: int = 1 << 20) -> Iterator[npt.NDArray[np.void]]:
    """The same, `most` events at a time, for files that are larger than memory; arguments and errors as of read_events.

    Yields:
        Shape (n,), dtype event_t, in the file's order.
    """
    with path.open("rb") as file:
        form = _record_form(path, file.readline(1024))
        while records := file.read(most * form.itemsize):
            yield np.frombuffer(records, form, len(records) // form.itemsize).astype(event_t, copy=False)


def chosen_events(path: Path, codes: Sequence[int], most: int = 1 << 16) -> Iterator[npt.NDArray[np.void]]:
    """Those of some kinds; arguments and errors as of event_chunks, `most` being how many are looked at at a time.

    Files of any size pass through one buffer that fits a cache; only what is chosen is kept.

    Yields:
        Shape (n,), dtype event_t, in the file's order.
    """
    with path.open("rb") as file:
        buffer = np.empty(most, _record_form(path, file.readline(1024)))
        as_bytes = memoryview(buffer.view(np.uint8))  # type: ignore[arg-type]
        while size := file.readinto(as_bytes):
            records = buffer[: size // buffer.itemsize]
            yield records[is_any_of(records["code"], codes)].astype(event_t, copy=False)


def is_any_of(found: npt.NDArray[np.int16], codes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which codes are among a few; several times faster than np.isin."""
    packed = np.ascontiguousarray(found)
    chosen = np.zeros(len(packed), np.bool_)
    for code in codes:
        chosen |= packed == code
    return chosen


def _record_form(path: Path, header: bytes) -> np.dtype[np.void]:
    magic, _, rest = header.decode("ascii", "replace").partition(" ")
    version, _, description = rest.partition(" ")
    if magic != MAGIC or not version.isdecimal() or not header.endswith(b"\n"):
        raise EventFileError(f"{path}: not a file of events")
    if version != str(VERSION):
        raise EventFileError(f"{path}: events of version {version:.20}, but this emu reads version {VERSION}")
    try:
        said = [tuple(field) for field in json.loads(description)]
    except (TypeError, ValueError, RecursionError):
        raise EventFileError(f"{path}: damaged header; copy the file again") from None
    # Never NumPy's reading of the description: that of a damaged one may be an object, or of no size.
    for form in (event_t.newbyteorder("<"), event_t.newbyteorder(">")):
        if said == form.descr:
            return form
    raise EventFileError(f"{path}: records of another kind than those of version {VERSION}; copy the file again")
