"""The same events in the words of `trace-cmd report` and of `perf script` are the same capture.

The converter below prints what those tools print for the events of a tracefs text:

- trace-cmd 3.x, `tracecmd/trace-read.c`: `%16s-%-5d [%03d]`, in later ones the flags, ` seconds.fraction:`, the name
  padded to 20 columns; a mark is the event `print`; a probe's place is its address.
- perf, `tools/perf/builtin-script.c`: `%16s %7d [%03d] %12s: ` (`%5lu.%09llu: ` with --ns), the event with its group,
  right-aligned to the longest name; it has neither flags nor marks.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from emu.capture.events import MAP, MARK, UNMAP, CaptureError
from emu.capture.ftrace import read_capture
from emu.capture.shipped import find_capture

LINE = re.compile(
    r" *(?P<task>.+)-(?P<pid>\d+) +\[(?P<cpu>\d+)\] (?P<flags>\S+) +(?P<time>[\d.]+): (?P<event>\w+): (?P<payload>.*)"
)
TRACEPOINTS = ("map", "unmap", "attach_device_to_domain", "io_page_fault")
SYMBOL = re.compile(r"[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+")


def address_of(payload: str) -> str:
    """Probes' places as these tools print them: `(%lx)`, of a return `(%lx <- %lx)`."""
    return re.sub(r"<- \w+\)", "<- c0de0000)", SYMBOL.sub("ffffffff81d45350", payload))


def as_trace_cmd(found: re.Match[str], *, with_flags: bool, nanoseconds: bool) -> str:
    event, payload = found["event"], address_of(found["payload"])
    if event == "tracing_mark_write":
        event, payload = "print", f"tracing_mark_write: {payload}"
    # libtraceevent knows no NMI inside an interrupt.
    flags = f" {found['flags'].replace('Z', 'H').replace('z', 'h')}" if with_flags else ""
    time = f"{found['time']}000" if nanoseconds else found["time"]
    task = f"{found['task']:>16}-{found['pid']:<5} [{found['cpu']}]"
    return f"{task}{flags} {time:>12}: {event}: {' ' * max(0, 20 - len(event))}{payload}\n"


def as_perf(found: re.Match[str], *, nanoseconds: bool, width: int) -> str:
    group = "iommu" if found["event"] in TRACEPOINTS else "emu_capture"
    time = f"{found['time']}000" if nanoseconds else found["time"]
    event = f"{group}:{found['event']}"
    task = f"{found['task']:>16} {found['pid']:>7} [{found['cpu']}]"
    return f"{task} {time:>12}: {event:>{width}}: {address_of(found['payload'])}\n"


def converted(text: str, tool: str) -> str:
    """A tracefs text as a tool prints it."""
    lines = [found for line in text.splitlines() if (found := LINE.fullmatch(line))]
    if tool.startswith("perf"):
        nanoseconds = tool == "perf script --ns"
        width = max(len(found["event"]) + len("emu_capture:") for found in lines)
        kept = [found for found in lines if found["event"] != "tracing_mark_write"]
        return "".join(as_perf(found, nanoseconds=nanoseconds, width=width) for found in kept)
    options = {"with_flags": "with flags" in tool, "nanoseconds": tool.endswith("-t")}
    return "cpus=2\n" + "".join(as_trace_cmd(found, **options) for found in lines)


def read_both(path, tmp_path, tool):
    """The capture, and the same in a tool's words."""
    text = gzip.decompress(path.read_bytes()).decode()
    (tmp_path / "other.txt").write_text(converted(text, tool))
    return read_capture(path), read_capture(tmp_path / "other.txt")


def assert_equal_but_for(names, ours, theirs):
    for name in ours.dtype.names:
        if name not in names:
            assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("tool", ["trace-cmd report, with flags", "trace-cmd report, with flags -t"])
@pytest.mark.parametrize("name", ["s390x-lazy-nvme", "s390x-strict-nvme"])
def test_what_trace_cmd_reports_is_the_same_capture(name, tool, tmp_path):
    ours, theirs = read_both(find_capture(Path(name)), tmp_path, tool)
    assert_equal_but_for([], ours.events, theirs.events)
    assert_equal_but_for([], ours.mappings, theirs.mappings)
    assert (theirs.marks, theirs.phases, theirs.cpus) == (ours.marks, ours.phases, ours.cpus)
    assert (theirs.report.broken_lines, theirs.report.tool) == (0, "trace-cmd report")


def test_older_trace_cmd_does_not_tell_of_interrupts(tmp_path):
    ours, theirs = read_both(find_capture(Path("s390x-lazy-nvme")), tmp_path, "trace-cmd report, without")
    assert_equal_but_for(["irq"], ours.events, theirs.events)
    assert not theirs.events["irq"].any()
    assert theirs.report.broken_lines == 0


@pytest.mark.parametrize("tool", ["perf script", "perf script --ns"])
@pytest.mark.parametrize("name", ["s390x-lazy-nvme", "s390x-strict-nvme"])
def test_what_perf_prints_is_the_same_but_for_marks_and_interrupts(name, tool, tmp_path):
    ours, theirs = read_both(find_capture(Path(name)), tmp_path, tool)
    events = ours.events[ours.events["kind"] != MARK]
    assert_equal_but_for(["irq"], events, theirs.events)
    assert_equal_but_for(["map_event", "unmap_event"], ours.mappings, theirs.mappings)
    assert (theirs.report.broken_lines, theirs.report.tool) == (0, "perf script")


@pytest.mark.captures
@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("s390x-6.12-switch-nvme-2cpu", "trace-cmd report, with flags -t"),
        ("s390x-6.12-switch-nvme-2cpu", "perf script"),
        ("x86-6.12-strict-nvme-2cpu", "perf script"),
        ("x86-6.12-lazy-vblk-8cpu-overrun", "trace-cmd report, with flags -t"),
    ],
)
def test_every_probe_of_the_real_captures_is_understood_in_their_words(name, tool, captures_dir, tmp_path):
    ours, theirs = read_both(captures_dir / f"{name}.trace.gz", tmp_path, tool)
    kept = ours.events if "trace-cmd" in tool else ours.events[ours.events["kind"] != MARK]
    assert_equal_but_for(["irq"], kept, theirs.events)
    assert_equal_but_for(["event"], ours.ring_states, theirs.ring_states)
    assert (theirs.owners, theirs.devices) == (ours.owners, ours.devices)


PAGE = "iova=0x0000000000001000 - 0x0000000000002000 paddr=0x0000000000002000 size=4096"
TRACE_CMD_LINE = f"            kw-182   [001] d.h2.    12.147347: map:                  IOMMU: {PAGE}\n"
PERF_LINE = f"              kw     182 [001]    12.147347:       iommu:map: IOMMU: {PAGE}\n"


@pytest.fixture
def reading(tmp_path):
    def read(text):
        (tmp_path / "text").write_text(text)
        return read_capture(tmp_path / "text")

    return read


@pytest.mark.parametrize(
    ("lost_lines", "lost"),
    [
        ("CPU:1 [7 EVENTS DROPPED]\nCPU:0 [2 EVENTS DROPPED]\n", 9),
        ("CPU:1 [EVENTS DROPPED]\n", 1),
        ("CPU:1 [LOST 7 EVENTS]\nCPU:0 [LOST EVENTS]\n", 8),
    ],
)
def test_what_trace_cmd_dropped_is_lost(reading, lost_lines, lost):
    report = reading(f"cpus=2\n{TRACE_CMD_LINE}{lost_lines}").report
    assert (report.lost_events, report.broken_lines) == (lost, 0)


@pytest.mark.parametrize(
    "line",
    [
        "              kw     182 [001]    12.147350: PERF_RECORD_LOST lost 5\n",
        "PERF_RECORD_LOST lost 5\n",
        "              kw     182 [001]    12.147350: PERF_RECORD_LOST_SAMPLES lost 5\n",
    ],
)
def test_what_perf_lost_is_lost(reading, line):
    report = reading(PERF_LINE + line).report
    assert (report.lost_events, report.broken_lines) == (5, 0)


def test_call_chains_are_passed_over(reading):
    chain = "\tffffffff81d41960 iommu_map+0x0 ([kernel.kallsyms])\n\t    7f70537a8ad8 main+0x18 (/usr/bin/kw)\n\n"
    report = reading(
        PERF_LINE + chain + PERF_LINE.replace("1000 -", "3000 -").replace("2000 paddr", "4000 paddr")
    ).report
    assert (report.map_events, report.broken_lines) == (2, 0)


def test_trace_cmds_remarks_are_no_broken_lines(reading):
    assert reading(f"version = 6\nCPU 3 is empty\ncpus=4\n{TRACE_CMD_LINE}").report.broken_lines == 0


def test_before_linux_5_14_the_end_of_a_range_was_not_printed(reading):
    line = TRACE_CMD_LINE.replace(" - 0x0000000000002000", "")
    unmap = line.replace(" map: ", " unmap: ").replace(
        "paddr=0x0000000000002000 size=4096", "size=4096 unmapped_size=4096"
    )
    capture = reading(line + unmap)
    assert capture.events[["kind", "start", "end"]].tolist() == [(MAP, 4096, 8192), (UNMAP, 4096, 8192)]


def test_a_probe_that_perf_made_on_a_return_is_the_end_of_the_call(reading):
    line = PERF_LINE.partition("iommu:map")[0] + "probe:fq_flush_timeout__return: (ffffffff81d45350 <- ffffffff8110)\n"
    assert reading(PERF_LINE + line).report.other_events == 0


@pytest.mark.parametrize(
    ("magic", "what_to_do"),
    [
        (b"\x17\x08\x44tracing6\0", "trace-cmd report"),
        (b"PERFILE2\x68\0", "perf script"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "gzip"),
        (b"\xfd7zXZ\x00\x00\x04", "gzip"),
        (b"BZh91AY", "gzip"),
        (b"PK\x03\x04\x14", "gzip"),
    ],
)
def test_files_that_people_take_for_the_text_are_told_what_to_do(tmp_path, magic, what_to_do):
    (tmp_path / "trace.dat").write_bytes(magic + bytes(100))
    with pytest.raises(CaptureError, match=rf"trace\.dat is .*; .*{what_to_do}") as refusal:
        read_capture(tmp_path / "trace.dat")
    assert "\n" not in str(refusal.value)
