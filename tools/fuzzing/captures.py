"""Captures: text of tracefs, trace-cmd and perf script, plain, gzip'd or from a pipe, and all that is read from it."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from emu.capture import attempts, flushes, ftrace, lines, mappings, parser, queue_probes, scanner
from emu.capture.events import MAP, CaptureError
from emu.native import rbtree
from emu.native.compile import compile_entries
from emu.workload.from_capture import capture_workload, recorded_times
from fuzzing.memory import Checked, Memory
from fuzzing.target import Target, WrongError

_PAGE = 4096
_PIECES = (1, 7, 64, 3, 1000, 17)
"""How many bytes a slow pipe gives at a time."""


class Captures(Target):
    """Reads a capture as `emu replay --verify` does, up to the load made of it.

    Args:
        memory: where the arrays of the compiled scanner lie.
    """

    name = "captures"
    modules = (
        "emu.capture.scanner", "emu.capture.parser", "emu.capture.lines", "emu.capture.mappings", "emu.capture.ftrace",
        "emu.capture.rpcits", "emu.capture.phases", "emu.capture.flushes", "emu.capture.attempts",
        "emu.capture.queue_probes",
    )  # fmt: skip
    refusals = (CaptureError,)

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # Before its modules get another NumPy, which is nothing that can be compiled.
        compile_entries(ftrace.ENTRIES)
        _install(memory)
        self._file = os.memfd_create("capture")
        self._path = Path(f"/proc/self/fd/{self._file}")

    def close(self) -> None:
        os.close(self._file)

    def seeds(self) -> list[bytes]:
        text = _trace()
        rpcits = _old_s390_trace()
        return [
            text,
            *(_as_trace_cmd(each) for each in (text, rpcits)),
            *(_as_perf_script(each) for each in (text, rpcits)),
            rpcits,
            _probed_queue(),
            _virtio_requests(),
            _two_domains(),
            gzip.compress(text, mtime=0),
            gzip.compress(rpcits, mtime=0)[:-9],
            b"TRACE".join((text, b"\n")),
            text.replace(b"\n", b"\r\n"),
            _HEADER + b"CPU:0 [LOST 2 EVENTS]\n" + _mapped(1),
            _mapped(1) * 3 + b" => iommu_map\n\t    ffff8000 iommu_map+0x0 ([kernel])\n",
        ]

    def words(self) -> list[bytes]:
        names = [f"{name}: ".encode() for name in scanner.KIND_OF]
        arguments = [f" {word}=0x1000 ".encode() for word in scanner.ARGUMENT_OF]
        return [*names, *arguments, *_WORDS, _mapped(3), _unmapped(3), _mapped(3, cpu=9999)]

    def feed(self, data: bytes) -> None:
        self._memory.begin()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, data, 0)
        which = zlib.crc32(data) % 8
        if which == 0:
            self._feed_in_pieces(data)
        capture = ftrace.read_capture(self._path, physical=which != 1)
        _check(capture)
        if which > 4:
            _follow(capture)

    def _feed_in_pieces(self, data: bytes) -> None:
        """A pipe gives the same text as a file, in whatever pieces it comes."""
        whole = self._parsed(lines.opened(self._path))
        pieces = self._parsed(io.BufferedReader(_SlowPipe(data, self._file)))
        if whole != pieces:
            raise WrongError(f"read in pieces it is {pieces[1]}, as a whole {whole[1]}")

    def _parsed(self, file: io.BufferedReader) -> tuple[bytes, Any, list[str]]:
        self._memory.begin()
        reading = parser.Parser(physical=True)
        with file:
            try:
                for block in lines.blocks_of_lines(file, reading.report, None):
                    reading.feed(block)
            except CaptureError:
                return b"", "refused", []
        return reading.events().tobytes() + reading.ring_states().tobytes(), reading.report, reading.marks


class _SlowPipe(io.RawIOBase):
    """A pipe whose writer writes a few bytes at a time."""

    def __init__(self, data: bytes, descriptor: int) -> None:
        self._data = memoryview(data)
        self._pieces = cycle(_PIECES)
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    @property
    def name(self) -> str:
        return "pipe"

    def readinto(self, buffer: Any) -> int:
        count = min(next(self._pieces), len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def _check(capture: ftrace.Capture) -> None:
    """What holds of every capture that is read."""
    events, found, report = capture.events, capture.mappings, capture.report
    maps = np.flatnonzero(events["kind"] == MAP)
    if len(maps) != report.map_events or sorted(capture.chunks.tolist()) != maps.tolist():
        raise WrongError("the chunks are not the map events")
    if int(found["nents"].sum()) != len(capture.chunks):
        raise WrongError("not every chunk is in one mapping")
    ended = found[found["unmap_event"] >= 0]
    if (ended["unmap_event"] <= ended["map_event"]).any():
        raise WrongError("something was unmapped before it was mapped")
    if int(events["cpu"].max()) >= capture.cpus or int(events["owner"].max()) >= len(capture.owners):
        raise WrongError("an event has a CPU or an owner that there is not")
    if capture.paddrs is not None and not report.from_rpcits and len(capture.paddrs) != len(maps):
        raise WrongError("not every map has its memory")


def _follow(capture: ftrace.Capture) -> None:
    """What is worked out from a capture afterwards."""
    report = capture.report
    report.sentences()
    found = flushes.flushes_in(capture.events)
    flushes.cost_of_freeing_ns(found, capture.events)
    flushes.jiffies_start_ns(found["timer_ns"], flushes.jiffies_granule_ns(10_000_000, 4_000_000))
    recorded_times(capture)
    queue_probes.recorded_full_rings(capture)
    queue_probes.recorded_overruns(capture)
    if capture.paddrs is not None and not report.from_rpcits:
        attempts.find_attempts(capture)
    for as_probed in (False, True):
        capture_workload(capture, 2, as_probed=as_probed)


def _install(memory: Memory) -> None:
    """Have the arrays of scanner and tree come out of this memory, none larger than it must be."""
    take: Any = memory
    for module in (parser, mappings):
        module.np = take
    parser._ROWS_AT_ONCE = 1
    parser._GROWTH = 62
    parser.GrowingArray.__init__ = _begin_array  # type: ignore[method-assign]
    parser.GrowingArray._resize = _resize  # type: ignore[method-assign]
    _ARRAYS_IN.append(memory)
    if isinstance(memory, Checked):
        for module in (scanner, mappings, rbtree):
            module.deref, module.element = memory.deref, memory.element  # type: ignore[attr-defined]
        scanner.byte_at = memory.byte_at
        feed, group = parser.Parser.feed, mappings.group_mappings

        def feed_known(self: parser.Parser, block: bytes) -> None:
            for table in (*self._tables.values(), self._scan):
                memory.know(table)
            feed(self, block)

        def group_known(events: Any, *arguments: Any, **options: Any) -> Any:
            return group(memory.know(events), *arguments, **options)

        parser.Parser.feed = feed_known  # type: ignore[method-assign]
        ftrace.group_mappings = group_known


_ARRAYS_IN: list[Memory] = []


def _begin_array(self: parser.GrowingArray, dtype: Any) -> None:
    self._rows = np.empty(0, dtype)


def _resize(self: parser.GrowingArray, rows: int) -> None:
    before, self._rows = self._rows, _ARRAYS_IN[-1].zeros(rows, self._rows.dtype)
    kept = min(rows, len(before))
    self._rows[:kept] = before[:kept]


# --- inputs to begin with -------------------------------------------------------------------------------------------

_HEADER = b"# tracer: nop\n#\n# entries-in-buffer/entries-written: 9/12   #P:4\n#\n"
_WORDS = [
    b"cpus=4\n", b"[LOST 3 EVENTS]", b"CPU:1 [5 EVENTS DROPPED]\n", b"PERF_RECORD_LOST lost 7\n", b"\t ffff8000 ",
    b" => ",
    b"tracing_mark_write: KCMARK p1.begin\n", b"KCMARK p1.end", b"KCSNAP p1.settled begin", b"KCTYPE DMA-FQ",
    b"KCSWITCH DMA",
    b" [001] d.h2. ", b" [9999] ..s.. ", b" 9000000000.999999999: ", b" 1.000000: ", b"iommu:", b"_ret: ",
    b"__return: ",
    b"attach_device_to_domain: IOMMU: device=0001:00:00.0", b"\r\n", b"\x1f\x8b", b"\0", b"\xff\xfe", b"-1", b" - 0x",
]  # fmt: skip


def _line(event: str, cpu: int = 0, flags: str = ".....", at_us: int = 0) -> bytes:
    stamp = f"{12 + at_us // 1_000_000}.{at_us % 1_000_000:06}"
    return f"      kworker/u8:1-83      [{cpu:03}] {flags} {stamp}: {event}\n".encode()


def _mapped(page: int, pages: int = 1, paddr: int = 7, **where: Any) -> bytes:
    start, end = page * _PAGE, (page + pages) * _PAGE
    event = f"map: IOMMU: iova=0x{start:016x} - 0x{end:016x} paddr=0x{paddr * _PAGE:016x} size={end - start}"
    return _line(event, **where)


def _unmapped(page: int, pages: int = 1, **where: Any) -> bytes:
    start, end = page * _PAGE, (page + pages) * _PAGE
    event = f"unmap: IOMMU: iova=0x{start:016x} - 0x{end:016x} size={end - start} unmapped_size={end - start}"
    return _line(event, **where)


def _trace() -> bytes:
    mark = "tracing_mark_write: "
    return _HEADER + b"".join(
        (
            _line(f"{mark}KCTYPE DMA-FQ"),
            _line("attach_device_to_domain: IOMMU: device=0001:00:00.0"),
            _line(f"{mark}KCMARK p1.begin"),
            _mapped(4, 2, at_us=5),
            _mapped(6, at_us=6),
            _line("s390_iotlb_sync_map: (x+0x0/0x8) dom=0xa0 iova=0x4000 size=0x3000", at_us=7),
            _unmapped(4, 3, flags="d.h2.", at_us=9),
            _mapped(8, cpu=1, at_us=10),
            _mapped(9, cpu=1, at_us=11),
            _line("fq_flush_timeout: (fq_flush_timeout+0x0/0x108)", flags="..s..", at_us=15),
            _line("fq_flush_iotlb: (x+0x0/0x8)", flags="..s..", at_us=16),
            _line("s390_flush_iotlb_all: (x+0x0/0xa0) dom=0x281e000", flags="..s..", at_us=17),
            _line("rpcit: (x+0x0/0x1d0) fn=0x8002000000000000 addr=0x0 range=0xffffff000", flags="..s..", at_us=18),
            _line("rpcit_ret: (x+0x9c/0xf0 <- zpci_refresh_trans) ret=-12", flags="..s..", at_us=19),
            _line("fq_ring_free: (fq_ring_free+0x0/0x88)", flags="..s..", at_us=20),
            _line("fr: (free_iova_fast+0x4/0x140) pfn=0xc pages=3", at_us=21),
            _line("s390_iotlb_sync: (x+0x0/0xb0) dom=0x764b00 start=0x8000 end=0x8fff", at_us=22),
            _line("io_page_fault: IOMMU:nvme 0001:00:00.0 iova=0x5000 flags=0x0000", at_us=23),
            _line("sched_switch: prev_comm=kw ==> next_comm=init", at_us=24),
            _line(f"{mark}KCMARK p1.end", at_us=30),
            _line(f"{mark}KCSNAP p1.settled begin", at_us=40),
            _mapped(8, cpu=1, at_us=50),
        )
    )


def _old_s390_trace() -> bytes:
    """Linux 6.1 on s390: nothing but RPCITs."""
    probe = "rpcit: (zpci_refresh_trans+0x0/0x1d0) fn=0x8002000000000000"
    text = _line("tracing_mark_write: KCMARK p1.begin")
    for page, flags in ((4, "....."), (5, "....."), (4, "d.h2."), (9, "....."), (5, "d.h2."), (8, ".....")):
        text += _line(f"{probe} addr=0x{page * _PAGE:x} range=0x1000", flags=flags, at_us=page * 3)
        text += _line("rpcit_ret: (x <- zpci_refresh_trans) ret=0", flags=flags, at_us=page * 3 + 1)
    return text + _line(f"{probe} addr=0x0 range=0xffff000", at_us=100)


def _probed_queue() -> bytes:
    """A ring that is appended to, found full, flushed and overrun."""
    fq = "fq=0xffd1ffffffa85020"
    text = b"".join(_mapped(page, at_us=page) for page in range(10, 14))
    for tail in (1, 2):
        text += _line(f"q: (x) {fq} head=0 tail={tail} pfn=0x{9 + tail:x} pages=1 cnt=5", at_us=30 + tail)
    text += _line(f"full: (x) {fq} head=0 tail=3 mask=3 start=5 finish=5", at_us=40)
    text += _line("fl_in: (x) start=5 finish=5", at_us=41) + _line("fl_out: (x) start=6 finish=6", at_us=45)
    text += _line(f"after: (x) {fq} head=2 tail=3 mask=3 start=6 finish=6 pfn=0xc pages=1", at_us=46)
    text += _line(f"q: (x) {fq} head=2 tail=2 pfn=0xc pages=1 cnt=6", at_us=47)
    text += _line("timer: (fq_flush_timeout)", cpu=1, at_us=60)
    text += _line("fl_in: (x) start=6 finish=6", cpu=1, at_us=61)
    text += _line("fl_out: (x) start=7 finish=7", cpu=1, at_us=65)
    return text + _line(f"q: (x) {fq} head=0 tail=3 pfn=0xd pages=1 cnt=7", at_us=70)


def _virtio_requests() -> bytes:
    """One request of virtio-blk that is served, and one that is taken back."""
    text = b""
    for at, (page, paddr) in enumerate(((4, 1), (5, 20), (6, 1), (7, 30))):
        text += _mapped(page, paddr=paddr, at_us=at * 3)
    for at, page in enumerate((7, 4, 5, 6)):
        text += _unmapped(page, flags="d.h2.", at_us=20 + at)
    text += _mapped(4, paddr=1, at_us=30) + _mapped(5, paddr=20, at_us=32)
    return text + _unmapped(4, at_us=34) + _unmapped(5, at_us=36)


def _two_domains() -> bytes:
    text = b""
    for domain in ("a000", "b000"):
        text += _line(f"iommu_map: (x) dom=0x{domain} iova=0x4000") + _mapped(4)
    for domain in ("a000", "b000"):
        text += _line(f"iommu_unmap_fast: (x) dom=0x{domain} iova=0x4000") + _unmapped(4)
    return text


def _as_trace_cmd(text: bytes) -> bytes:
    body = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
    return b"cpus=4\n" + body.replace(b"tracing_mark_write:", b"print: tracing_mark_write:").replace(
        b": IOMMU", b":      IOMMU"
    )


def _as_perf_script(text: bytes) -> bytes:
    body = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
    for flags in (b" .....", b" d.h2.", b" ..s.."):
        body = body.replace(flags, b"")
    return (
        body.replace(b": map:", b": iommu:map:")
        .replace(b": unmap:", b": iommu:unmap:")
        .replace(b": rpcit", b": probe:rpcit")
    )
