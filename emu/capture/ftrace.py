"""Kernel traces in ftrace's text form: what was mapped and unmapped, on which CPU, in which order.

A trace says less than one would like. A scatter-gather mapping is one `map` line for each physically contiguous chunk
and *one* later `unmap` line, so which chunks belong to one map call has to be worked out. A trace may begin in the
middle of the machine's life, lose events when its buffer overflows, or be cut off. None of that is fatal: what cannot
be used is counted in the `CaptureReport`, and `CaptureError` is raised only where nothing usable is left.

The lines are those of tracefs `trace`; `trace-cmd report` and `perf script` print nearly the same, which is read too.
Tracepoints `map` and `unmap`: `include/trace/events/iommu.h`; a scatter-gather map call: `iommu_map_sg()` in
`drivers/iommu/iommu.c`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from os import PathLike, fstat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emu.capture.events import (
    FLUSH,
    MAP,
    MARK,
    OTHER,
    PAGE_SHIFT,
    QUEUED,
    RPCIT,
    SYNC_MAP,
    TIMER,
    UNMAP,
    CaptureError,
    CaptureReport,
    event_t,
)
from emu.capture.mappings import group_mappings
from emu.capture.phases import PhaseChange, domain_types_in, phase_changes_in, phases_begun

_Indices = npt.NDArray[np.int64]
_Progress = Callable[[int, int], None]

_BLOCK_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 1 << 16
_LARGEST_CHUNK_BYTES = 1 << 40
_ADDRESS_LIMIT = 1 << 62
_IN_INTERRUPT = frozenset(b"hHszZ")

_KINDS = {
    b"map": MAP,
    b"unmap": UNMAP,
    b"tracing_mark_write": MARK,
    b"rpcit": RPCIT,
    b"s390_iotlb_sync_map": SYNC_MAP,
    b"s390_flush_iotlb_all": FLUSH,
    b"intel_flush_iotlb_all": FLUSH,
    b"viommu_flush_iotlb_all": FLUSH,
    b"fl_in": FLUSH,
    b"fq_flush_timeout": TIMER,
    b"timer": TIMER,
    b"q": QUEUED,
}

# The numbers of a range are checked later, for a whole block at once: `.{16}` matches much faster than digits do.
_LINE = re.compile(
    rb"""(?mx)
    \[([0-9]{1,4})\]\ +                       # [CPU]; before it TASK-PID, where a task's name may hold anything
    (?:(\S{1,16})\ +)?                        # flags
    ([0-9]{1,9})\.([0-9]{6,9}):\ +            # seconds.fraction
    (\w+(?::\w+)?):\ *                        # event; perf puts its group before it
    (?:IOMMU:\ iova=0x(.{16})\ -\ 0x(.{16})\ (?:paddr=.{18}\ )?size=(.*)
     |(.*))$
    """
)
_SIZE = re.compile(rb"([0-9]{1,15})(?: unmapped_size=[0-9]+)?\s*")
_LOST = re.compile(rb"CPU: ?[0-9]+ \[LOST (?:([0-9]{1,18}) )?EVENTS\]\s*$")
_BUFFER_HEADER = re.compile(rb"# entries-in-buffer/entries-written: ([0-9]{1,18})/([0-9]{1,18})")
_CPUS_HEADER = re.compile(rb"(?:#.* #P:|cpus=)([0-9]{1,4})\s*$")
_RANGES = {
    RPCIT: (re.compile(rb"\baddr=0x([0-9a-f]{1,16}) range=0x([0-9a-f]{1,16})\b"), 16, 0),
    SYNC_MAP: (re.compile(rb"\biova=0x([0-9a-f]{1,16}) size=([0-9]{1,16})\b"), 10, 0),
    QUEUED: (re.compile(rb"\bpfn=0x([0-9a-f]{1,16}) pages=([0-9]{1,16})\b"), 10, PAGE_SHIFT),
}
"""For each kind whose range is in a kprobe's arguments: where, the base of the length, and the shift to bytes."""

_NIBBLES = np.array([int(chr(code), 16) if chr(code) in "0123456789abcdef" else 255 for code in range(256)], np.uint8)


@dataclass(slots=True)
class Capture:
    """A kernel trace, read.

    Attributes:
        name: see `capture_name`.
        path: the file.
        cpus: CPUs of the traced machine: the header's count, more if an event names a higher one.
        events: all events used, in trace order, shape (n,), dtype `event_t`.
        marks: texts that `MARK` events refer to.
        mappings: the map calls, in the order of their first chunk, shape (m,), dtype `mapping_t`.
        chunks: indices into `events`, mapping after mapping, each in the order of addresses, shape (map events,).
        phases: the names in `NAME.begin` marks, each once.
        phase_changes: where the phase changes, see `phase_changes_in`.
        domain_types: (time_ns, type) wherever the domain's type is known to change, in sysfs' words; empty when the
            trace does not say, see `domain_types_in`.
        report: what could not be used.
    """

    name: str
    path: Path
    cpus: int
    events: npt.NDArray[np.void]
    marks: list[str]
    mappings: npt.NDArray[np.void]
    chunks: npt.NDArray[np.int64]
    phases: list[str]
    phase_changes: list[PhaseChange]
    domain_types: list[tuple[int, str]]
    report: CaptureReport


def read_capture(path: str | PathLike[str], progress: _Progress | None = None) -> Capture:
    """Read a kernel trace.

    Args:
        path: ftrace text, plain or gzip'd (told by its content, not its name).
        progress: called now and then with the bytes of the file consumed and their total.

    Raises:
        CaptureError: it cannot be read, or holds no map event.
    """
    path = Path(path)
    parser = _Parser()
    with _opened(path) as file:
        for block in _blocks_of_lines(_content(file, parser.report, progress)):
            parser.feed(block)
    events, report = parser.events(), parser.report
    if not report.map_events:
        raise CaptureError(_why_useless(path, events, report))
    mappings, chunks = group_mappings(events, report)
    return Capture(
        name=capture_name(path),
        path=path,
        cpus=max(parser.header_cpus, int(events["cpu"].max()) + 1),
        events=events,
        marks=parser.marks,
        mappings=mappings,
        chunks=chunks,
        phases=phases_begun(parser.marks),
        phase_changes=phase_changes_in(events, parser.marks),
        domain_types=domain_types_in(events, parser.marks),
        report=report,
    )


def capture_name(path: Path) -> str:
    """The file's name without `.gz`, and without `.trace` or `.txt` before it."""
    return re.sub(r"(?:\.trace|\.txt)?(?:\.gz)?$", "", path.name, count=1) or path.name


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        message = f"{path}: no such capture; give the path of an ftrace text file, plain or gzip'd"
        raise CaptureError(message) from error
    except IsADirectoryError as error:
        raise CaptureError(f"{path} is a directory; name one capture in it, such as NAME.trace.gz") from error
    except (OSError, ValueError) as error:
        raise CaptureError(f"{path!s:.200} cannot be opened ({error}); check the path and its permissions") from error


def _why_useless(path: Path, events: npt.NDArray[np.void], report: CaptureReport) -> str:
    if report.truncated:
        return f"{path} is a damaged gzip file with no map event before the damage; copy it again"
    if not report.lines:
        return f"{path} is empty; record a trace with the events iommu:map and iommu:unmap"
    found = [f"{report.lines} lines"]
    found += [f"{n} RPCITs" for n in [np.count_nonzero(events["kind"] == RPCIT)] if n]
    found += [f"{n} unmaps" for n in [report.unmap_events] if n]
    found += [f"{n} broken lines" for n in [report.broken_lines] if n]
    what_to_do = "record with iommu:map and iommu:unmap (s390x: Linux 6.7 or later)"
    return f"{path} has no map events ({', '.join(found)}); {what_to_do}"


def _content(file: BufferedReader, report: CaptureReport, progress: _Progress | None) -> Iterator[bytes]:
    """The decompressed bytes of a file, in pieces, as far as they can be had."""
    total_bytes = fstat(file.fileno()).st_size
    try:
        stream = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
        while piece := stream.read1(_BLOCK_BYTES):
            yield piece
            if progress:
                progress(min(file.tell(), total_bytes), total_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        report.truncated = True
    except OSError as error:
        raise CaptureError(f"{file.name} cannot be read ({error.strerror}); check the file system it is on") from error


def _blocks_of_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of whole lines, each ended by a newline.

    An endless line (not a text file) is cut, so that memory stays bounded.
    """
    rest = b""
    for piece in pieces:
        whole, newline, begun = piece.rpartition(b"\n")
        if newline:
            yield rest + whole + newline
            rest = begun
        else:
            rest += piece
        if len(rest) > _LONGEST_LINE_BYTES:
            yield rest + b"\n"
            rest = b""
    if rest:
        yield rest + b"\n"


class _Parser:
    """Turns blocks of lines into arrays of events, counting what it cannot use."""

    def __init__(self) -> None:
        self.report = CaptureReport()
        self.marks: list[str] = []
        self.header_cpus = 0
        self._parts: list[npt.NDArray[np.void]] = []
        self._lost_by_header = 0
        self._lost_by_line = 0

    def feed(self, block: bytes) -> None:
        """Take in whole lines."""
        rows = _LINE.findall(block)
        lines = block.count(b"\n")
        self.report.lines += lines
        if len(rows) != lines:
            self._take_other_lines(line for line in block.split(b"\n")[:-1] if not _LINE.search(line))
        if rows:
            self._take_events(rows)

    def events(self) -> npt.NDArray[np.void]:
        """Everything taken in so far, in trace order; brings the report's counts up to date."""
        events = np.concatenate([np.zeros(0, event_t), *self._parts])
        kinds, report = events["kind"], self.report
        if not np.any(kinds == UNMAP) and np.any(kinds == QUEUED):
            kinds[kinds == QUEUED] = UNMAP
            report.queued_as_unmaps = True
        report.map_events = int(np.count_nonzero(kinds == MAP))
        report.unmap_events = int(np.count_nonzero(kinds == UNMAP))
        report.late_events = int(np.count_nonzero(np.diff(events["time_ns"]) < 0))
        report.lost_events = max(self._lost_by_header, self._lost_by_line)
        return events

    def _take_other_lines(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if header := _CPUS_HEADER.match(line):
                self.header_cpus = max(self.header_cpus, int(header[1]))
            if header := _BUFFER_HEADER.match(line):
                self._lost_by_header = max(self._lost_by_header, int(header[2]) - int(header[1]))
            elif lost := _LOST.match(line):
                self._lost_by_line += int(lost[1] or 1)
            elif line.strip() and not line.startswith((b"#", b"cpus=")):
                self.report.broken_lines += 1

    def _take_events(self, rows: list[tuple[bytes, ...]]) -> None:
        cpus, flags, seconds, fractions, names, starts, ends, sizes, texts = zip(*rows, strict=True)
        events = np.zeros(len(rows), event_t)
        events["kind"] = _converted(names, lambda name: _KINDS.get(name.rpartition(b":")[2], OTHER))
        events["irq"] = _converted(flags, lambda letters: not _IN_INTERRUPT.isdisjoint(letters))
        events["cpu"] = _converted(cpus, int)
        events["time_ns"] = _converted(seconds, int) * 1_000_000_000 + _nanoseconds(fractions)
        self._take_ranges(events, starts, ends, sizes)
        self._take_texts(events, texts)
        used = events["kind"] != OTHER
        self.report.other_events += int(np.count_nonzero(~used))
        self._parts.append(events[used])

    def _take_ranges(
        self, events: npt.NDArray[np.void], starts: Sequence[bytes], ends: Sequence[bytes], sizes: Sequence[bytes]
    ) -> None:
        """Read the addresses of map and unmap events; drop those whose size is not what the addresses say."""
        start, end = _hexadecimal(starts), _hexadecimal(ends)
        sound = (end - start == _converted(sizes, _size_in).astype(np.uint64)) & _is_mappable(start, end)
        chunky = (events["kind"] == MAP) | (events["kind"] == UNMAP)
        self._drop(events, chunky & ~sound)
        events["start"][sound] = start[sound]
        events["end"][sound] = end[sound]

    def _take_texts(self, events: npt.NDArray[np.void], texts: Sequence[bytes]) -> None:
        """Read the events whose payload is words."""
        for index in np.flatnonzero(events["kind"] == MARK).tolist():
            events["start"][index] = len(self.marks)
            self.marks.append(texts[index].decode("utf-8", "replace").strip())
        for kind in _RANGES:
            where = np.flatnonzero(events["kind"] == kind)
            ranges = [_range_in(texts[index], kind) for index in where.tolist()]
            events["start"][where], events["end"][where] = np.array(ranges, np.int64).reshape(-1, 2).T
            self._drop(events, (events["kind"] == kind) & (events["end"] == 0))

    def _drop(self, events: npt.NDArray[np.void], broken: npt.NDArray[np.bool_]) -> None:
        dropped = int(np.count_nonzero(broken))
        events["kind"][broken] = OTHER
        self.report.broken_lines += dropped
        self.report.other_events -= dropped


def _size_in(text: bytes) -> int:
    """The bytes in what follows `size=`, 0 if it is not well-formed."""
    found = _SIZE.fullmatch(text)
    return int(found[1]) if found else 0


def _converted(words: Sequence[bytes], value: Callable[[bytes], int]) -> npt.NDArray[np.int64]:
    """The value of each word, computed once for each distinct one: in these columns few are."""
    values = {word: value(word) for word in set(words)}
    return np.fromiter(map(values.__getitem__, words), np.int64, len(words))


def _range_in(text: bytes, kind: int) -> tuple[int, int]:
    """The byte range in a kprobe's arguments, (0, 0) if there is none."""
    pattern, base_of_length, shift = _RANGES[kind]
    found = pattern.search(text)
    if not found:
        return 0, 0
    start, length = int(found[1], 16) << shift, int(found[2], base_of_length) << shift
    return (start, start + length) if length > 0 and start + length <= _ADDRESS_LIMIT else (0, 0)


def _is_mappable(start: npt.NDArray[np.uint64], end: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether [start, end) is whole pages, not empty and of a size that a machine has, elementwise."""
    page_offsets = (start | end) & np.uint64((1 << PAGE_SHIFT) - 1)
    in_order = (start < end) & (end <= _ADDRESS_LIMIT)
    sound: npt.NDArray[np.bool_] = in_order & (page_offsets == 0) & (end - start <= _LARGEST_CHUNK_BYTES)
    return sound


def _hexadecimal(words: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Values of words of 16 hexadecimal digits; the highest of all for words that are not."""
    nibbles = _NIBBLES[np.array(words, "S16").view(np.uint8).reshape(-1, 16)]
    octets = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
    octets[nibbles.max(axis=1) > 15] = 255
    return octets.view(">u8")[:, 0].astype(np.uint64)


def _nanoseconds(fractions: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Nanoseconds of the digits after the point, six to nine of them."""
    digits = np.array(fractions, "S9").view(np.uint8).reshape(-1, 9) & 15
    return digits @ (10 ** np.arange(8, -1, -1, dtype=np.int64))
