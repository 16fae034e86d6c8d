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

OTHER = 0
MAP = 1
"""One chunk was mapped: [`start`, `end`)."""
UNMAP = 2
"""A whole mapping was unmapped: [`start`, `end`)."""
MARK = 3
"""Somebody wrote a line into the trace: `start` is its index in `Capture.marks`."""
RPCIT = 4
"""s390: one call of `zpci_refresh_trans()` over [`start`, `end`)."""
SYNC_MAP = 5
"""s390: `iotlb_sync_map()` over [`start`, `end`), the end of a map call."""
FLUSH = 6
"""A domain-wide `flush_iotlb_all()` began."""
TIMER = 7
"""The flush queue's timer fired; its flush follows."""
QUEUED = 8
"""`queue_iova()` appended [`start`, `end`): stands in for `UNMAP` in a trace that has none."""

event_t = np.dtype(
    [("kind", "i1"), ("irq", "?"), ("cpu", "i4"), ("time_ns", "i8"), ("start", "i8"), ("end", "i8")], align=True
)
"""One event. `time_ns` is the trace clock's, `start` and `end` are byte addresses, `irq` says that it happened in a
hard or soft interrupt (never set where the trace does not tell)."""

mapping_t = np.dtype(
    [
        ("map_event", "i8"),
        ("unmap_event", "i8"),
        ("first_chunk", "i8"),
        ("start", "i8"),
        ("pages", "i8"),
        ("nents", "i4"),
        ("supplied", "?"),
    ],
    align=True,
)
"""One map call. `map_event` is the index of its first chunk's event; its chunks are the events
`Capture.chunks[first_chunk : first_chunk + nents]`; `start` is its lowest byte address. `unmap_event` is the index of
its unmap, -1 if it was never unmapped; with `supplied` the unmap was lost, and `unmap_event` is the event of the later
map that proves it, before which it must have happened."""

PAGE_SHIFT = 12
"""Sizes are counted in pages of 4 KiB, the smallest that the IOMMUs here map."""

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

_PHASE = re.compile(r"(?!KCSNAP )\w+ (.+)[. ](begin|end)")
_SETTLED = re.compile(r"KCSNAP (.+)\.settled begin")


class CaptureError(Exception):
    """A capture that cannot be used. The message is one line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(slots=True)
class CaptureReport:
    """What a capture held, and what of it could not be used.

    Attributes:
        lines: lines read, headers included.
        map_events: `map` lines used, one for each chunk.
        unmap_events: `unmap` lines used (or `queue_iova()` probes, see `queued_as_unmaps`).
        other_events: well-formed lines of events that say nothing about mappings.
        broken_lines: torn lines, binary garbage, `map` and `unmap` lines whose numbers make no sense.
        lost_events: events the kernel says it overwrote: the `[LOST n EVENTS]` lines or the buffer's header, whichever
            says more, since both tell of the same loss.
        unmatched_unmaps: unmaps of what no map event had mapped: the capture began in the middle.
        supplied_unmaps: mappings whose unmap was lost, known from a later map over a range still live.
        partial_unmaps: unmaps that cover some chunk only in part, or more than the chunks known.
        late_events: events with a time before that of the line above.
        queued_as_unmaps: the trace has no `unmap` events and its `queue_iova()` probes were taken for them.
        truncated: the gzip stream is cut off or damaged; what came before was used.
    """

    lines: int = 0
    map_events: int = 0
    unmap_events: int = 0
    other_events: int = 0
    broken_lines: int = 0
    lost_events: int = 0
    unmatched_unmaps: int = 0
    supplied_unmaps: int = 0
    partial_unmaps: int = 0
    late_events: int = 0
    queued_as_unmaps: bool = False
    truncated: bool = False

    def sentences(self) -> list[str]:
        """What a reader of results must know, one sentence each; nothing for a flawless capture."""
        said = [
            (self.truncated, "The gzip file is cut off or damaged; it is used as far as it goes."),
            (self.lost_events, f"The kernel lost {self.lost_events} events while it recorded."),
            (self.broken_lines, f"{self.broken_lines} lines could not be read and are left out."),
            (self.unmatched_unmaps, f"{self.unmatched_unmaps} unmaps of mappings older than the capture are left out."),
            (self.supplied_unmaps, f"{self.supplied_unmaps} lost unmaps are supplied, each before the next map there."),
            (self.partial_unmaps, f"{self.partial_unmaps} unmaps do not cover exactly what was mapped."),
            (self.late_events, f"{self.late_events} events have a time before that of the line above."),
            (self.queued_as_unmaps, f"{self.unmap_events} unmaps are taken from queue_iova probes."),
        ]
        return [sentence for applies, sentence in said if applies]


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """From event `event` on, the phase is `name`."""

    event: int
    name: str


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
        phases=_phases_begun(parser.marks),
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


def group_mappings(
    events: npt.NDArray[np.void], report: CaptureReport
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """Find which chunks were mapped by one call, and when each mapping was unmapped.

    The chunks inside the range of one unmap are one mapping, whatever happened between them: other CPUs map at the
    same time, and an interrupt may unmap and map on the very CPU. Those never unmapped are one mapping when a
    `SYNC_MAP` or `RPCIT` on their CPU spans exactly them, or else when they are adjacent and nothing else happened
    between them on that CPU in that context.

    Args:
        events: in trace order, shape (n,), dtype `event_t`.
        report: its counts of unmatched, supplied and partial unmaps are filled in.

    Returns:
        The mappings in the order of their first chunk, shape (m,), dtype `mapping_t`, and the chunks' event indices,
        mapping after mapping.
    """
    ended_by = _ended_by(events, report)
    is_unmapped = (ended_by >= 0) & (events["kind"][ended_by] == UNMAP)
    chunks = np.flatnonzero(events["kind"] == MAP)
    never_unmapped = len(events) + _calls_never_unmapped(events, ~is_unmapped)
    call, first_of_call = _numbered_by_first(np.where(is_unmapped, ended_by, never_unmapped)[chunks])
    map_events = chunks[first_of_call]
    chunks = chunks[np.lexsort((events["start"][chunks], call))]
    mappings = _measured(events, chunks, np.bincount(call))
    mappings["map_event"] = map_events
    mappings["unmap_event"] = _first_end(ended_by[chunks], mappings["first_chunk"])
    mappings["supplied"] = (mappings["unmap_event"] >= 0) & ~is_unmapped[map_events]
    report.supplied_unmaps = int(np.count_nonzero(mappings["supplied"]))
    return mappings, chunks


def _ended_by(events: npt.NDArray[np.void], report: CaptureReport) -> _Indices:
    """For every event, if it maps a chunk: the unmap that ended it, or the later map that shows its unmap was lost."""
    steps = np.flatnonzero((events["kind"] == MAP) | (events["kind"] == UNMAP))
    start, end, is_map = events["start"][steps], events["end"][steps], events["kind"][steps] == MAP
    step_after = _follow_live_chunks(start, end, is_map)
    _count_odd_unmaps(start, end, is_map, step_after, report)
    ended_by = np.full(len(events), -1)
    ended_by[steps] = np.where(step_after >= 0, steps[step_after], -1)
    return ended_by


def _measured(events: npt.NDArray[np.void], chunks: _Indices, nents: _Indices) -> npt.NDArray[np.void]:
    """Mappings with their size and place, from the chunks in mapping order and their number in each mapping."""
    mappings = np.zeros(len(nents), mapping_t)
    mappings["nents"] = nents
    mappings["first_chunk"] = np.cumsum(nents) - nents
    mappings["start"] = events["start"][chunks[mappings["first_chunk"]]]
    pages = (events["end"] - events["start"])[chunks] >> PAGE_SHIFT
    mappings["pages"] = np.add.reduceat(pages, mappings["first_chunk"])
    return mappings


def _first_end(ended_by: _Indices, first_chunk: _Indices) -> _Indices:
    """The first event that ended any chunk of each mapping, -1 if none did."""
    never = np.iinfo(np.int64).max
    first = np.minimum.reduceat(np.where(ended_by >= 0, ended_by, never), first_chunk)
    return np.where(first == never, -1, first)


def _numbered_by_first(labels: _Indices) -> tuple[_Indices, _Indices]:
    """Number the distinct labels 0, 1, … as they first appear: every element's number, and where each appears first."""
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    number = np.empty_like(by_first)
    number[by_first] = np.arange(len(by_first))
    return number[label], first[by_first]


def _follow_live_chunks(start: _Indices, end: _Indices, is_map: npt.NDArray[np.bool_]) -> _Indices:
    """For every step that maps a chunk: the next step, map or unmap, that touches any of it; -1 if there is none.

    The address space is cut into cells at every address where something begins or ends, so that each step covers whole
    cells, usually one; a list of the cells' owners is followed through the trace.
    """
    borders = np.unique(np.concatenate([start, end]))
    lows: list[int] = np.searchsorted(borders, start).tolist()
    highs: list[int] = np.searchsorted(borders, end).tolist()
    owner = [-1] * len(borders)
    ended_by = [-1] * len(start)
    for step, (maps, low, high) in enumerate(zip(is_map.tolist(), lows, highs, strict=True)):
        for chunk in {owner[low]} if high - low == 1 else set(owner[low:high]):
            if chunk >= 0:
                ended_by[chunk] = step
                owner[lows[chunk] : highs[chunk]] = [-1] * (highs[chunk] - lows[chunk])
        if maps:
            owner[low:high] = [step] * (high - low)
    return np.array(ended_by, np.int64)


def _count_odd_unmaps(
    start: _Indices, end: _Indices, is_map: npt.NDArray[np.bool_], ended_by: _Indices, report: CaptureReport
) -> None:
    """Count the unmaps that ended no chunk, and those that ended others than exactly the chunks of their range."""
    chunks = np.flatnonzero(ended_by >= 0)
    by = ended_by[chunks]
    ended_bytes, inside = np.zeros_like(start), np.ones(len(start), bool)
    np.add.at(ended_bytes, by, (end - start)[chunks])
    np.logical_and.at(inside, by, (start[by] <= start[chunks]) & (end[chunks] <= end[by]))
    unmatched = ~is_map & (ended_bytes == 0)
    partial = ~is_map & ~unmatched & ~(inside & (ended_bytes == end - start))
    report.unmatched_unmaps = int(np.count_nonzero(unmatched))
    report.partial_unmaps = int(np.count_nonzero(partial))


def _calls_never_unmapped(events: npt.NDArray[np.void], is_left: npt.NDArray[np.bool_]) -> _Indices:
    """For every event, if it maps a chunk and is left: the first chunk of its call, as event indices."""
    left = (events["kind"] == MAP) & is_left
    call = np.full(len(events), -1)
    for spanned in _calls_by_sync(events, left):
        call[spanned] = min(spanned)
        left[spanned] = False
    chunks, first = _calls_by_adjacency(events, left)
    call[chunks] = first
    return call


def _calls_by_sync(events: npt.NDArray[np.void], left: npt.NDArray[np.bool_]) -> Iterator[list[int]]:
    """Chunks of `left` that a later synchronisation on the same CPU spans exactly, call by call."""
    is_sync = np.isin(events["kind"], [RPCIT, SYNC_MAP]) & np.isin(events["start"], events["start"][left])
    pending: dict[tuple[int, int], int] = {}
    for index in np.flatnonzero(left | is_sync).tolist():
        event = events[index]
        cpu, address = int(event["cpu"]), int(event["start"])
        if event["kind"] == MAP:
            pending[cpu, address] = index
            continue
        chunks = []
        while address < event["end"] and (cpu, address) in pending:
            chunks.append(pending[cpu, address])
            address = int(events["end"][chunks[-1]])
        if address == event["end"]:
            for chunk in chunks:
                del pending[cpu, int(events["start"][chunk])]
            yield chunks


def _calls_by_adjacency(events: npt.NDArray[np.void], left: npt.NDArray[np.bool_]) -> tuple[_Indices, _Indices]:
    """Chunks of `left`, and for each the first chunk of the run of adjacent ones it belongs to."""
    events_seen = np.flatnonzero(np.isin(events["kind"], [MAP, UNMAP, RPCIT, SYNC_MAP]))
    context = events["cpu"].astype(np.int64) * 2 + events["irq"]
    order = events_seen[np.argsort(context[events_seen], kind="stable")]
    here, before = order[1:], order[:-1]
    joins = left[here] & left[before] & (context[here] == context[before])
    joins &= events["start"][here] == events["end"][before]
    begins = np.concatenate([np.ones(len(order) - len(here), bool), ~joins])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return order[left[order]], first[left[order]]


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


def _phases_begun(marks: Sequence[str]) -> list[str]:
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
