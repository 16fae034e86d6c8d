"""What was printed is what is read: generated traces, as each tool prints them, in any pieces, cut off anywhere."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.capture.events import MAP, UNMAP, CaptureError
from emu.capture.ftrace import Capture, read_capture
from emu.capture.lines import blocks_of_lines
from emu.capture.parser import Parser
from emu.capture.scanner import LONGEST_LINE_BYTES

PAGE = 4096
SOME = settings(max_examples=25, derandomize=True, deadline=None)
TOOLS = ("tracefs", "trace-cmd report", "perf script")

events = st.tuples(
    st.sampled_from([MAP, UNMAP]),
    st.integers(0, 9999),  # CPU
    st.booleans(),  # in an interrupt
    st.integers(0, 9_000_000_000 - 1),  # seconds
    st.integers(0, 999_999),  # microseconds
    st.integers(0, (1 << 50) - 1),  # first page
    st.integers(1, 1 << 28),  # pages
    st.text(st.characters(exclude_characters="\n\r[", exclude_categories=["Cs"]), min_size=1, max_size=15),  # task
)
traces = st.lists(events, min_size=1, max_size=20)


def printed(tool: str, trace: list[tuple]) -> bytes:
    """A trace as one of the tools prints it."""
    lines = ["cpus=2" if tool == "trace-cmd report" else "# tracer: nop"]
    for kind, cpu, irq, seconds, micros, page, pages, task in trace:
        name = "map" if kind == MAP else "unmap"
        start, end, size = page * PAGE, (page + pages) * PAGE, pages * PAGE
        what = f"IOMMU: iova=0x{start:016x} - 0x{end:016x} "
        what += f"paddr=0x{start:016x} size={size}" if kind == MAP else f"size={size} unmapped_size={size}"
        flags, stamp = "d.h2." if irq else ".....", f"{seconds:5}.{micros:06}"
        lines.append(
            {
                "tracefs": f"{task:>16}-182   [{cpu:03}] {flags} {stamp}: {name}: {what}",
                "trace-cmd report": f"{task:>16}-182   [{cpu:03}] {flags} {stamp}: {name}:               {what}",
                "perf script": f"{task:>16}   182 [{cpu:03}] {stamp}: iommu:{name}: {what}",
            }[tool]
        )
    return ("\n".join(lines) + "\n").encode()


def read_in_pieces(pieces: list[bytes], path: Path) -> tuple:
    """What a parser makes of bytes that come in these pieces, as out of a pipe."""

    class Pipe(io.RawIOBase):
        name = "pipe"

        def readable(self):
            return True

        def fileno(self):
            return descriptor.fileno()

        def readinto(self, buffer):
            if not pieces:
                return 0
            given, pieces[0] = pieces[0][: len(buffer)], pieces[0][len(buffer) :]
            if not pieces[0]:
                del pieces[0]
            buffer[: len(given)] = given
            return len(given)

    parser = Parser(physical=True)
    with path.open("rb") as descriptor:
        for block in blocks_of_lines(io.BufferedReader(Pipe()), parser.report, None):
            parser.feed(block)
    return parser.events().tolist(), parser.report, parser.marks, parser.devices, parser.highest_cpu


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % len(data) for cut in cuts} - {0})
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def conserves(capture: Capture) -> bool:
    """Whether every map event is in just one mapping, and every unmap event has ended some or is said to match none."""
    maps = np.flatnonzero(capture.events["kind"] == MAP)
    ended = capture.mappings[(capture.mappings["unmap_event"] >= 0) & ~capture.mappings["supplied"]]
    return (
        sorted(capture.chunks.tolist()) == maps.tolist()
        and int(capture.mappings["nents"].sum()) == len(maps)
        and len(np.unique(ended["unmap_event"])) + capture.report.unmatched_unmaps == capture.report.unmap_events
    )


@pytest.mark.parametrize("tool", TOOLS)
@SOME
@given(trace=traces)
def test_what_a_tool_prints_is_what_is_read(tmp_path_factory, tool, trace):
    path = tmp_path_factory.getbasetemp() / "generated.trace"
    path.write_bytes(printed(tool, trace))
    parser = Parser()
    with path.open("rb") as file:
        for block in blocks_of_lines(file, parser.report, None):
            parser.feed(block)
    fields = ["kind", "irq", "cpu", "time_ns", "start", "end"]
    assert parser.events()[fields].tolist() == [
        (
            kind,
            irq and tool != "perf script",
            cpu,
            (seconds * 1_000_000 + micros) * 1000,
            page * PAGE,
            (page + pages) * PAGE,
        )
        for kind, cpu, irq, seconds, micros, page, pages, _ in trace
    ]
    assert parser.report.tool == tool
    assert parser.report.broken_lines == 0


@SOME
@given(
    trace=traces, tool=st.sampled_from(TOOLS), packed=st.booleans(), cuts=st.lists(st.integers(0, 1 << 20), max_size=9)
)
def test_it_does_not_matter_in_which_pieces_a_trace_comes(tmp_path_factory, trace, tool, packed, cuts):
    path = tmp_path_factory.getbasetemp() / "pieces.trace"
    text = printed(tool, trace)
    data = gzip.compress(text, 1, mtime=0) if packed else text
    path.write_bytes(data)
    assert read_in_pieces(in_pieces(data, cuts), path) == read_in_pieces([text], path)


def test_a_pipe_may_give_the_first_byte_of_a_packed_trace_alone(tmp_path):
    text = printed("tracefs", [(MAP, 0, False, 1, 0, 4, 1, "kw")])
    (tmp_path / "x").write_bytes(text)
    data = gzip.compress(text)
    assert read_in_pieces([data[:1], data[1:]], tmp_path / "x")[0] == read_in_pieces([text], tmp_path / "x")[0]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("length", [LONGEST_LINE_BYTES, LONGEST_LINE_BYTES + 1, 3 * LONGEST_LINE_BYTES])
def test_an_endless_line_is_cut_at_the_same_places_however_it_comes(tmp_path, length, ending):
    path, line = tmp_path / "x", printed("tracefs", [(MAP, 0, False, 1, 0, 4, 1, "kw")])
    data = line + b"x" * length + ending
    path.write_bytes(data)
    once = read_in_pieces([data], path)
    assert once == read_in_pieces(in_pieces(data, [70_000, 90_000, 100_001]), path)
    assert once == read_in_pieces(in_pieces(data, list(range(0, len(data), 1000))), path)
    assert len(once[0]) == 1


@SOME
@given(trace=traces, tool=st.sampled_from(TOOLS), packed=st.booleans(), cut=st.integers(0, 1 << 20))
def test_a_trace_that_is_cut_off_is_used_as_far_as_it_goes(tmp_path_factory, trace, tool, packed, cut):
    path = tmp_path_factory.getbasetemp() / "cut.trace"
    text = printed(tool, trace)
    data = gzip.compress(text, mtime=0) if packed else text
    path.write_bytes(data[: cut % len(data)])
    try:
        capture = read_capture(path)
    except CaptureError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is fine
    else:
        assert conserves(capture)
        assert len(capture.events) <= len(trace)


@SOME
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([MAP, UNMAP]), st.integers(0, 1), st.booleans(), st.integers(0, 12), st.integers(1, 4)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_every_map_is_in_one_mapping_and_every_unmap_ends_some_or_is_counted(tmp_path_factory, steps):
    path = tmp_path_factory.getbasetemp() / "steps.trace"
    trace = [(kind, cpu, irq, 1, at, page, pages, "kw") for at, (kind, cpu, irq, page, pages) in enumerate(steps)]
    path.write_bytes(printed("tracefs", [(MAP, 0, False, 0, 0, 50, 1, "kw"), *trace]))
    assert conserves(read_capture(path))
