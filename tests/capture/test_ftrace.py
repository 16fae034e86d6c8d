"""What the trace reader must understand, survive and say."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.capture.events import (
    ATTACH,
    FAULT,
    FLUSH,
    FLUSH_END,
    FQ_INIT_END,
    FREED,
    MAP,
    MARK,
    QUEUED,
    RING_FLUSHED,
    RING_FREE,
    RING_FULL,
    RPCIT,
    RPCIT_END,
    SYNC,
    TIMER,
    UNMAP,
    CaptureError,
)
from emu.capture.ftrace import Capture, read_capture

CAPTURES = Path(__file__).parents[3] / "shared" / "captures"
PAGE = 4096
HEADER = "# tracer: nop\n#\n# entries-in-buffer/entries-written: {0}/{1}   #P:{2}\n#\n"


def line(event: str, *, cpu: int = 0, flags: str = ".....", seconds: float = 1.0, task: str = "kw-182") -> str:
    return f"{task:>16}      [{cpu:03}] {flags} {seconds:12.6f}: {event}\n"


def mapped(page: int, pages: int = 1, **where: object) -> str:
    start, end = page * PAGE, (page + pages) * PAGE
    event = f"map: IOMMU: iova=0x{start:016x} - 0x{end:016x} paddr=0x{start:016x} size={pages * PAGE}"
    return line(event, **where)


def unmapped(page: int, pages: int = 1, **where: object) -> str:
    start, end, size = page * PAGE, (page + pages) * PAGE, pages * PAGE
    return line(f"unmap: IOMMU: iova=0x{start:016x} - 0x{end:016x} size={size} unmapped_size={size}", **where)


def rpcit(page: int, pages: int = 1, **where: object) -> str:
    event = (
        f"rpcit: (zpci_refresh_trans+0x0/0x1d0) fn=0x8002000000000000 addr=0x{page * PAGE:x} range=0x{pages * PAGE:x}"
    )
    return line(event, **where)


def mark(text: str, **where: object) -> str:
    return line(f"tracing_mark_write: {text}", **where)


@pytest.fixture
def reading(tmp_path):
    """Reads a trace given as text or bytes."""

    def read(content: str | bytes) -> Capture:
        path = tmp_path / "synthetic.trace"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_capture(path)

    return read


def sizes_of_calls(capture: Capture) -> list[int]:
    return capture.mappings["nents"].tolist()


def test_a_map_line_gives_its_cpu_time_and_range(reading):
    capture = reading(mapped(5, 2, cpu=3, seconds=12.147347))
    event = capture.events[0]
    assert (event["kind"], event["cpu"], event["time_ns"]) == (MAP, 3, 12_147_347_000)
    assert (event["start"], event["end"]) == (5 * PAGE, 7 * PAGE)


def test_nanoseconds_of_other_clocks_are_kept(reading):
    capture = reading(mapped(1).replace("1.000000", "1.000000123"))
    assert capture.events["time_ns"].tolist() == [1_000_000_123]


@pytest.mark.parametrize(("seconds", "maps"), [("1700000000", 2), ("9223372037", 1), ("99999999999", 1)])
def test_clocks_may_count_from_1970_but_not_further_than_64_bits(reading, seconds, maps):
    text = mapped(1) + mapped(2).replace("1.000000:", f"{seconds}.000000:")
    assert reading(text).report.map_events == maps


def test_a_value_without_a_name_means_nothing(reading):
    capture = reading(line(f"map: =0x5000 IOMMU: iova=0x{PAGE:016x} - 0x{2 * PAGE:016x} size=4096"))
    assert capture.events["start"].tolist() == [PAGE]


def test_high_addresses_are_read_exactly(reading):
    capture = reading(mapped(0xFFFFFFFFFF))
    assert capture.mappings["start"].tolist() == [0xFFFFFFFFFF000]


@pytest.mark.parametrize(
    ("flags", "in_interrupt"),
    [
        (".....", False),
        ("d....", False),
        ("d.h2.", True),
        ("..s..", True),
        ("d.H2", True),
        ("dNZff1.+", True),
        ("p", False),
    ],
)
def test_interrupts_are_told_by_flags_of_any_width(reading, flags, in_interrupt):
    assert reading(mapped(1, flags=flags)).events["irq"].tolist() == [in_interrupt]


@pytest.mark.parametrize(
    "task", ["<idle>-0", "kworker/u10:2-83", "a b c-1", "[x]-2", "x [000] y-3", "a-b-c-4", "map: x-5", "é-6"]
)
def test_task_names_may_hold_anything(reading, task):
    capture = reading(mapped(1, task=task, cpu=1))
    assert capture.events["cpu"].tolist() == [1]
    assert capture.report.broken_lines == 0


@pytest.mark.parametrize(
    "text",
    [
        "cpus=2\n     kworker-83    [001]    12.147347: map:                  IOMMU: iova={}\n",
        "kworker/u10:2-83    83 [001]    12.147347: iommu:map: IOMMU: iova={}\n",
        " kw-182     (    180) [001] d.h2.    12.147347: map: IOMMU: iova={}\n",
    ],
    ids=["trace-cmd", "perf script", "tgid column"],
)
def test_other_tools_print_nearly_the_same(reading, text):
    capture = reading(text.format("0x0000000000001000 - 0x0000000000002000 paddr=0x0000000000002000 size=4096"))
    assert (capture.cpus, capture.report.map_events, capture.report.broken_lines) == (2, 1, 0)


def test_windows_line_ends_and_a_missing_last_one_do_not_matter(reading):
    text = HEADER.format(3, 3, 2) + mark("KCMARK p.begin") + mapped(1) + unmapped(1)
    capture = reading(text.replace("\n", "\r\n").rstrip())
    assert (capture.report.map_events, capture.report.unmap_events, capture.report.broken_lines) == (1, 1, 0)
    assert (capture.cpus, capture.phases) == (2, ["p"])


def test_gzip_is_told_by_content_not_by_name(reading):
    assert reading(gzip.compress(mapped(1).encode())).report.map_events == 1


def test_gzip_files_may_be_strung_together(reading):
    both = gzip.compress(mapped(1).encode()) + gzip.compress(mapped(2).encode())
    assert reading(both).report.map_events == 2


def test_lines_across_blocks_are_whole(reading):
    capture = reading("".join(mapped(page) for page in range(30_000)))
    assert (capture.report.map_events, capture.report.broken_lines) == (30_000, 0)
    assert capture.events["start"].tolist() == [page * PAGE for page in range(30_000)]


@pytest.mark.parametrize(("header_cpus", "last_cpu", "cpus"), [(8, 1, 8), (2, 5, 6)])
def test_cpus_are_the_headers_or_more_if_a_higher_one_appears(reading, header_cpus, last_cpu, cpus):
    assert reading(HEADER.format(1, 1, header_cpus) + mapped(1, cpu=last_cpu)).cpus == cpus


@pytest.mark.parametrize(
    ("file", "name"),
    [("run.trace.gz", "run"), ("a.b.trace", "a.b"), ("t.txt", "t"), ("x.gz", "x"), (".trace", ".trace")],
)
def test_a_capture_is_named_after_its_file(tmp_path, file, name):
    (tmp_path / file).write_text(mapped(1))
    assert read_capture(tmp_path / file).name == name


@pytest.mark.interpreted
def test_flushes_timers_and_rpcits_are_kept_and_others_counted(reading):
    text = mapped(1) + line("fq_flush_timeout: (fq_flush_timeout+0x0/0x108)", flags="..s..")
    text += line("s390_flush_iotlb_all: (s390_iommu_flush_iotlb_all+0x0/0xa0) dom=0x281e000") + rpcit(0, 100)
    text += line("fq_ring_free: (fq_ring_free+0x0/0x88)") + line("sched_switch: prev_comm=kw ==> next_comm=init")
    capture = reading(text)
    assert capture.events["kind"].tolist() == [MAP, TIMER, FLUSH, RPCIT, RING_FREE]
    assert capture.events["end"][3] == 100 * PAGE
    assert capture.report.other_events == 1


# What probes say


@pytest.mark.interpreted
def test_a_flush_has_a_beginning_and_an_end_and_counts(reading):
    text = mapped(1) + line("fl_in: (fq_flush_iotlb+0x0/0x40) start=8 finish=7")
    capture = reading(text + line("fl_out: (fq_flush_iotlb+0x2d/0x40) start=9 finish=8"))
    assert capture.events["kind"].tolist() == [MAP, FLUSH, FLUSH_END]
    assert capture.ring_states.tolist() == [(1, -1, -1, -1, 8, 7), (2, -1, -1, -1, 9, 8)]


@pytest.mark.parametrize(
    ("name", "kind"), [("intel_flush_iotlb_all_ret", FLUSH_END), ("smmu_flush_iotlb_all__return", FLUSH_END)]
)
def test_the_return_of_a_flush_is_its_end(reading, name, kind):
    text = line(f"{name}: (fq_flush_timeout+0x20/0x40 <- flush_iotlb_all)")
    assert reading(mapped(1) + text).events["kind"].tolist() == [MAP, kind]


@pytest.mark.interpreted
def test_an_append_to_a_full_ring_is_told_with_the_rings_state(reading):
    fq = "fq=0xffd1ffffffa85020"
    text = line(f"full: (__iommu_dma_unmap+0x29e/0x2d0) {fq} head=105 tail=104 mask=255 start=9 finish=9")
    text += line(f"after: (queue_iova+0x2b1/0x2d0) {fq} head=105 tail=104 mask=255 start=10 finish=9 pfn=0xa pages=2")
    text += line(f"q: (__iommu_dma_unmap+0x1cb/0x2d0) {fq} head=105 tail=105 pfn=0xa pages=2 cnt=10")
    text += line("fr: (free_iova_fast+0x4/0x140) pfn=0xc pages=3")
    capture = reading(mapped(1) + unmapped(1) + text)
    assert capture.events["kind"].tolist()[2:] == [RING_FULL, RING_FLUSHED, QUEUED, FREED]
    ranges = [(0, 0), (10 * PAGE, 12 * PAGE), (10 * PAGE, 12 * PAGE), (12 * PAGE, 15 * PAGE)]
    assert capture.events[["start", "end"]].tolist()[2:] == ranges
    assert capture.ring_states.tolist() == [
        (2, 105, 104, 255, 9, 9), (3, 105, 104, 255, 10, 9), (4, 105, 105, -1, 10, -1),
    ]  # fmt: skip
    assert [capture.owners[owner] for owner in capture.events["owner"]] == [0, 0, *[0xFFD1FFFFFFA85020] * 3, 0]


def test_a_strict_flush_has_its_range_unless_nothing_was_gathered(reading):
    probe = "s390_iotlb_sync: (s390_iommu_iotlb_sync+0x0/0xb0) dom=0x764b00"
    text = mapped(1) + line(f"{probe} start=0x17fffd000 end=0x17fffdfff")
    capture = reading(text + line(f"{probe} start=0xffffffffffffffff end=0x0"))
    assert capture.events["kind"].tolist() == [MAP, SYNC, SYNC]
    assert capture.events[["start", "end"]].tolist()[1:] == [(0x17FFFD000, 0x17FFFE000), (0, 0)]
    assert capture.owners == [0, 0x764B00]


@pytest.mark.parametrize(
    ("event", "kind", "value"),
    [
        ("rpcit_ret: (s390_iommu_iotlb_sync_map+0x9c/0xf0 <- zpci_refresh_trans) ret=-12", RPCIT_END, -12),
        ("iommu_dma_init_fq_ret: (iommu_group_store_type+0x1a8/0x228 <- iommu_dma_init_fq) ret=0", FQ_INIT_END, 0),
        ("io_page_fault: IOMMU:nvme 0001:00:00.0 iova=0x0000000000005000 flags=0x0000", FAULT, 5 * PAGE),
    ],
)
def test_what_a_call_returned_and_where_a_device_faulted_is_told(reading, event, kind, value):
    assert reading(mapped(1) + line(event)).events[["kind", "start"]].tolist()[1] == (kind, value)


def test_devices_that_are_attached_have_their_names(reading):
    attached = "attach_device_to_domain: IOMMU: device="
    text = mapped(1) + "".join(
        line(f"{attached}{device}") for device in ("0001:00:00.0", "0002:00:00.0", "0001:00:00.0")
    )
    capture = reading(text)
    assert capture.events[["kind", "start"]].tolist()[1:] == [(ATTACH, 0), (ATTACH, 1), (ATTACH, 0)]
    assert (capture.devices, capture.marks) == (["0001:00:00.0", "0002:00:00.0"], [])


def tag(probe: str, domain: int, page: int, **where: object) -> str:
    return line(f"{probe}: ({probe}+0x0/0x80) dom=0x{domain:x} iova=0x{page * PAGE:x}", **where)


def test_a_probe_before_it_says_whose_a_mapping_is(reading):
    text = tag("iommu_map_sg", 0xA000, 4) + tag("iommu_map", 0xB000, 9, flags="..s1.") + mapped(9, flags="..s1.")
    text += mapped(4) + mapped(5) + mapped(7) + tag("iommu_unmap_fast", 0xA000, 4) + unmapped(4, 2)
    capture = reading(text)
    assert [capture.owners[owner] for owner in capture.events["owner"]] == [0xB000, 0xA000, 0xA000, 0, 0xA000]
    assert capture.report.other_events == 3


@pytest.mark.interpreted
def test_domains_have_address_spaces_of_their_own(reading):
    text = tag("iommu_map", 0xA000, 4) + mapped(4) + tag("iommu_map", 0xB000, 4) + mapped(4)
    text += tag("iommu_unmap_fast", 0xA000, 4) + unmapped(4) + tag("iommu_unmap_fast", 0xB000, 4) + unmapped(4)
    capture = reading(text)
    assert capture.mappings[["map_event", "unmap_event", "supplied"]].tolist() == [(0, 2, False), (1, 3, False)]


def test_a_missed_tag_in_the_only_domain_does_not_matter(reading):
    capture = reading(tag("iommu_map", 0xA000, 4) + mapped(4) + unmapped(4))
    assert capture.mappings["unmap_event"].tolist() == [1]


@pytest.mark.captures
def test_the_ring_overruns_of_a_real_kernel_are_in_its_capture(captures_dir):
    capture = read_capture(captures_dir / "x86-6.12-lazy-vblk-8cpu-overrun.trace.gz")
    described = json.loads((captures_dir / "x86-6.12-lazy-vblk-8cpu-overrun.json").read_text())
    states = capture.ring_states
    queued = states[capture.events["kind"][states["event"]] == UNMAP]  # it has no unmap events but these
    assert int((queued["head"] == queued["tail"]).sum()) == described["counts"]["ring_overruns"]
    kinds = capture.events["kind"]
    assert np.count_nonzero(kinds == FLUSH) == np.count_nonzero(kinds == FLUSH_END) == 549
    assert np.count_nonzero(kinds == FREED) == 207_099
    assert capture.report.other_events == 0


# Size


def test_the_text_is_never_held(tmp_path):
    pairs = 150_000
    path = tmp_path / "long.trace.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(mapped(page) + unmapped(page) for page in range(pairs))
    read_capture(path)
    tracemalloc.start()
    capture = read_capture(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(array.nbytes for array in (capture.events, capture.mappings, capture.chunks))
    assert kept == pairs * (2 * 32 + 48 + 8)
    assert peak_bytes < kept + pairs * 16 + (16 << 20) < pairs * len(mapped(0) + unmapped(0))


def test_progress_ends_at_the_size_of_the_file(tmp_path):
    path = tmp_path / "big.trace.gz"
    path.write_bytes(gzip.compress("".join(mapped(page) for page in range(20_000)).encode()))
    seen: list[tuple[int, int]] = []
    read_capture(path, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


# Which chunks are one map call


def test_chunks_inside_one_unmap_are_one_call(reading):
    capture = reading(mapped(4, 1, seconds=1) + mapped(5, 2, seconds=2) + mapped(7, 1, seconds=3) + unmapped(4, 4))
    assert sizes_of_calls(capture) == [3]
    assert capture.mappings[["map_event", "unmap_event", "start", "pages"]].tolist() == [(0, 3, 4 * PAGE, 4)]
    assert capture.chunks.tolist() == [0, 1, 2]


def test_a_softirq_in_the_middle_of_a_call_does_not_split_it(reading):
    soft = {"flags": "..s1."}
    text = mapped(20) + mapped(4) + unmapped(20, **soft) + mapped(9, **soft) + mapped(5) + unmapped(9) + unmapped(4, 2)
    assert sizes_of_calls(reading(text)) == [1, 2, 1]


def test_another_cpu_in_the_middle_of_a_call_does_not_split_it(reading):
    text = mapped(4, cpu=0) + mapped(6, cpu=1) + mapped(5, cpu=0) + mapped(7, cpu=1) + unmapped(4, 2) + unmapped(6, 2)
    assert sizes_of_calls(reading(text)) == [2, 2]


def test_adjacent_mappings_with_their_own_unmaps_stay_apart(reading):
    assert sizes_of_calls(reading(mapped(4) + mapped(5) + unmapped(4) + unmapped(5))) == [1, 1]


def test_never_unmapped_chunks_are_one_call_when_a_sync_spans_them(reading):
    preempted = mapped(4) + mapped(8) + rpcit(8) + mapped(5) + rpcit(4, 2)
    assert sizes_of_calls(reading(preempted)) == [2, 1]


def test_a_sync_of_the_whole_aperture_ends_no_call(reading):
    text = mapped(4) + rpcit(0, 1000, flags="..s..") + mapped(5) + rpcit(4, 2)
    assert sizes_of_calls(reading(text)) == [2]


def test_never_unmapped_chunks_are_one_call_when_adjacent_and_undisturbed(reading):
    assert sizes_of_calls(reading(mapped(4) + mapped(9, flags="..s..") + mapped(5) + mapped(6, cpu=1))) == [2, 1, 1]


def test_never_unmapped_chunks_with_an_event_between_are_two_calls(reading):
    assert sizes_of_calls(reading(mapped(9) + mapped(4) + unmapped(9) + mapped(5))) == [1, 1, 1]


def test_a_call_is_ordered_by_address_and_placed_at_its_first_chunk(reading):
    capture = reading(mapped(5, seconds=1) + mapped(4, seconds=2) + unmapped(4, 2))
    assert capture.mappings[["map_event", "start", "nents"]].tolist() == [(0, 4 * PAGE, 2)]
    assert capture.chunks.tolist() == [1, 0]


def test_an_address_range_can_be_used_again(reading):
    capture = reading((mapped(4, 2) + unmapped(4, 2)) * 3)
    assert capture.mappings["unmap_event"].tolist() == [1, 3, 5]
    assert capture.report.sentences() == []


def test_queue_iova_probes_stand_in_for_missing_unmaps(reading):
    text = mapped(0xFFFAA) + line(
        "q: (__iommu_dma_unmap+0x1cb/0x2d0) fq=0xffd1 head=32 tail=33 pfn=0xfffaa pages=1 cnt=8"
    )
    capture = reading(text)
    assert capture.mappings["unmap_event"].tolist() == [1]
    assert capture.report.sentences() == ["1 unmaps are taken from queue_iova probes."]


def test_queue_iova_probes_are_not_counted_beside_unmaps(reading):
    probe = line("q: (__iommu_dma_unmap+0x1cb/0x2d0) fq=0xffd1 head=32 tail=33 pfn=0x4 pages=1 cnt=8")
    capture = reading(mapped(4) + unmapped(4) + probe)
    assert (capture.report.unmap_events, capture.report.unmatched_unmaps) == (1, 0)


# What went wrong while recording


def test_unmaps_from_before_the_capture_are_counted(reading):
    capture = reading(unmapped(7) + mapped(4) + unmapped(4))
    assert capture.report.unmatched_unmaps == 1
    assert len(capture.mappings) == 1


def test_a_map_over_a_live_range_shows_a_lost_unmap(reading):
    capture = reading(mapped(4, 2) + mapped(5) + unmapped(5))
    assert capture.mappings[["unmap_event", "supplied"]].tolist() == [(1, True), (2, False)]
    assert capture.report.supplied_unmaps == 1


@pytest.mark.parametrize(
    "unmap", [unmapped(4), unmapped(3, 3), unmapped(5, 2), unmapped(4, 3)], ids=["part", "more", "shifted", "beyond"]
)
def test_an_unmap_that_does_not_fit_ends_the_mapping_and_is_counted(reading, unmap):
    capture = reading(mapped(4, 2) + unmap)
    assert capture.mappings["unmap_event"].tolist() == [1]
    assert (capture.report.partial_unmaps, capture.report.unmatched_unmaps) == (1, 0)


def test_lost_events_of_the_lines_and_of_the_header_are_the_same_loss(reading):
    text = HEADER.format(10, 15, 2) + "CPU:0 [LOST 2 EVENTS]\n" + mapped(1) + "CPU:1 [LOST 1 EVENTS]\n"
    assert reading(text).report.lost_events == 5
    assert reading(text + "CPU:1 [LOST 9 EVENTS]\n").report.lost_events == 12


@pytest.mark.parametrize(
    "broken",
    [
        mapped(2).replace("size=4096", "size=8192"),
        mapped(2).replace("size=4096", "size="),
        mapped(2).replace("iova=0x0000", "iova=0xzzzz"),
        mapped(2).replace("2000 - 0x", "2001 - 0x"),
        mapped(2)[:60] + "\n",
        unmapped(2).replace("0x0000000000003000", "0x0000000000002000").replace("size=4096", "size=0"),
        mapped(2).replace("0x0000000000002000 -", "0xffffffffffffe000 -"),
        "\x00\x01\x02\x7f\n",
        "nothing of the kind\n",
        rpcit(2).replace("range=0x1000", "range="),
    ],
)
def test_a_broken_line_is_counted_and_left_out(reading, broken):
    capture = reading(HEADER.format(1, 1, 1) + mapped(1) + broken + unmapped(1))
    assert (capture.report.broken_lines, capture.report.other_events) == (1, 0)
    assert capture.mappings["unmap_event"].tolist() == [1]


def test_bytes_that_are_no_text_are_survived(reading):
    capture = reading(
        mapped(1).encode()
        + bytes(range(128, 256))
        + b"\n"
        + mark("KCMARK \udcff.begin").encode("utf-8", "surrogateescape")
    )
    assert (capture.report.map_events, capture.report.broken_lines) == (1, 1)
    assert capture.phases == ["\ufffd"]


def test_a_torn_line_followed_by_a_whole_one_loses_only_the_torn_one(reading):
    assert reading(mapped(1)[:40] + mapped(2) + unmapped(2)).mappings["start"].tolist() == [2 * PAGE]


def test_times_that_go_backwards_are_counted(reading):
    assert reading(mapped(1, seconds=2) + mapped(3, seconds=1)).report.late_events == 1


def test_a_cut_gzip_is_used_as_far_as_it_goes(tmp_path):
    whole = gzip.compress("".join(mapped(page) for page in range(20_000)).encode())
    (tmp_path / "cut.trace.gz").write_bytes(whole[: len(whole) // 2])
    capture = read_capture(tmp_path / "cut.trace.gz")
    assert capture.report.truncated
    assert 1_000 < capture.report.map_events < 20_000
    assert np.array_equal(capture.events["start"], np.arange(capture.report.map_events) * PAGE)


def test_garbage_after_a_gzip_does_not_spoil_it(reading):
    capture = reading(gzip.compress(mapped(1).encode()) + b"not gzip at all")
    assert (capture.report.map_events, capture.report.truncated) == (1, True)


# Phases and types


def test_a_phase_ends_at_its_end_or_where_its_counters_were_read_again(reading):
    text = mark("KCMARK drivers.begin") + mapped(1) + mark("KCMARK drivers.end")
    text += mark("KCSNAP p1.before begin") + mark("KCMARK p1.begin") + mark("KCMARK p1.end")
    text += mark("KCSNAP p1.settled begin") + mark("KCSNAP p1.settled end") + mark("KCMARK all.end")
    capture = reading(text)
    assert capture.phases == ["drivers", "p1"]
    assert [(change.event, change.name) for change in capture.phase_changes] == [
        (0, "drivers"),
        (2, "(after drivers)"),
        (4, "p1"),
        (5, "p1 (settling)"),
        (6, "(after p1)"),
    ]


def test_marks_of_other_tools_make_phases_too(reading):
    capture = reading(mark("LK round 1 begin") + mapped(1) + mark("LK round 1 end") + mark("hello"))
    assert [change.name for change in capture.phase_changes] == ["round 1", "(after round 1)"]
    assert capture.marks == ["LK round 1 begin", "LK round 1 end", "hello"]
    assert capture.events["kind"].tolist() == [MARK, MAP, MARK, MARK]


def test_a_type_stated_before_any_switch_holds_from_the_start(reading):
    text = mapped(1, seconds=1) + mark("KCTYPE DMA", seconds=2) + mark("KCSWITCH want DMA-FQ", seconds=3)
    text += mark("KCTYPE DMA-FQ", seconds=4) + mark("KCSWITCH want DMA", seconds=5) + mark("KCTYPE DMA-FQ", seconds=6)
    assert reading(text).domain_types == [(1_000_000_000, "DMA"), (4_000_000_000, "DMA-FQ")]


def test_a_type_first_stated_after_a_switch_holds_from_there(reading):
    text = mapped(1, seconds=1) + mark("KCSWITCH want DMA-FQ", seconds=3) + mark("KCTYPE DMA-FQ", seconds=4)
    assert reading(text).domain_types == [(4_000_000_000, "DMA-FQ")]


def test_a_trace_that_says_nothing_of_types_has_none(reading):
    assert reading(mapped(1)).domain_types == []


# Captures that cannot be used


def no_file(folder: Path) -> Path:
    return folder / "missing.trace"


def a_folder(folder: Path) -> Path:
    return folder


def with_content(content: bytes):
    def make(folder: Path) -> Path:
        (folder / "x.trace").write_bytes(content)
        return folder / "x.trace"

    return make


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (no_file, "no such capture"),
        (a_folder, "is a directory"),
        (lambda folder: folder / "a\0b", "cannot be opened"),
        (lambda folder: folder / ("x" * 5000), "cannot be opened"),
        (with_content(b""), "is empty"),
        (with_content(gzip.compress(b"")), "is empty"),
        (with_content(HEADER.encode()), "has no map events"),
        (with_content(rpcit(1, flags="d.h1.").encode()), "has no map events (1 lines, 1 RPCITs)"),
        (with_content(unmapped(1).encode()), "has no map events (1 lines, 1 unmaps)"),
        (with_content(b"\x7fELF" * 100), "has no map events (1 lines, 1 broken lines)"),
        (with_content(bytes(3 << 20)), "has no map events"),
        (with_content(gzip.compress(mapped(1).encode())[:20]), "damaged gzip"),
        (with_content(b"\x1f\x8b\x00"), "damaged gzip"),
    ],
)
def test_a_useless_capture_is_refused_in_one_line_that_says_what_to_do(tmp_path, make, what):
    path = make(tmp_path)
    with pytest.raises(CaptureError) as refusal:
        read_capture(path)
    message = str(refusal.value)
    assert what in message
    assert str(path)[:80] in message
    assert "; " in message
    assert "\n" not in message


# Whatever is in the file

PAGES = st.integers(0, 12)
LINES = st.one_of(
    st.builds(mapped, PAGES, st.integers(0, 4), cpu=st.integers(0, 2), flags=st.sampled_from([".....", "..s.."])),
    st.builds(unmapped, PAGES, st.integers(0, 6), cpu=st.integers(0, 2)),
    st.builds(rpcit, PAGES, st.integers(0, 4), cpu=st.integers(0, 2)),
    st.builds(mark, st.sampled_from(["K p.begin", "K p.end", "KCSNAP p.settled begin", "KCTYPE DMA"])),
    st.sampled_from(["CPU:1 [LOST 3 EVENTS]\n", "# comment\n", "\n", "torn [000] d"]),
)


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=400), st.binary(max_size=100).map(lambda rest: b"\x1f\x8b\x08" + rest)))
def test_no_bytes_raise_anything_but_a_capture_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.trace"
    path.write_bytes(content)
    with contextlib.suppress(CaptureError):
        read_capture(path)


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINES, max_size=40))
def test_every_chunk_is_in_one_call_and_every_unmap_after_its_map(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "lines.trace"
    path.write_text("".join(lines))
    try:
        capture = read_capture(path)
    except CaptureError:
        return
    events, mappings = capture.events, capture.mappings
    assert sorted(capture.chunks.tolist()) == np.flatnonzero(events["kind"] == MAP).tolist()
    assert mappings["pages"].sum() == ((events["end"] - events["start"])[events["kind"] == MAP]).sum() // PAGE
    assert np.all(np.diff(mappings["map_event"]) > 0)
    ended = mappings[mappings["unmap_event"] >= 0]
    assert np.all(ended["unmap_event"] > ended["map_event"])
    kinds_at_end = np.where(ended["supplied"], MAP, UNMAP)
    assert np.array_equal(events["kind"][ended["unmap_event"]], kinds_at_end)


# Hostile traces: what grows with the square of a trace's length hangs on a long one


def growth(reading, trace, shorter: int = 4000) -> float:
    """How many times as long a trace takes that is four times as long: 4 where every line costs the same, 16 where each
    costs as much as there are before it. Of two tries the quicker, of CPU time: other programs make both longer.
    What is put in order is bounded, and before the bound it does grow with the square: the shorter one is beyond it.
    """

    def seconds(lines: int) -> float:
        text = trace(lines)
        tries = []
        for _ in range(2):
            before = time.process_time()
            with contextlib.suppress(CaptureError):
                reading(text)
            tries.append(time.process_time() - before)
        return min(tries)

    return seconds(4 * shorter) / seconds(shorter)


TOO_MUCH = 9.0


def test_synchronisations_that_end_in_the_midst_of_a_chunk_are_not_followed_for_ever(reading):
    def trace(lines):
        sync = line(f"s390_iotlb_sync_map: (x) dom=0x1 iova=0x1000 size=0x{lines * PAGE - 1:x}")
        return "".join(mapped(page + 1) for page in range(lines)) + sync * lines

    assert growth(reading, trace) < TOO_MUCH


def test_mappings_a_gigabyte_apart_are_found_as_fast_as_others(reading):
    def trace(lines):
        return "".join(mapped(page << 18) for page in range(1, lines)) + mapped(1)

    assert growth(reading, trace, 10_000) < TOO_MUCH


def test_rpcits_of_ever_lower_addresses_are_put_in_order_in_time(reading):
    def trace(lines):
        return "".join(rpcit(lines - nth) for nth in range(lines)) + rpcit(0, 1 << 30)

    assert growth(reading, trace) < TOO_MUCH


def test_a_trace_may_name_as_many_devices_as_it_likes(reading):
    def trace(lines):
        return mapped(1) + "".join(line(f"attach_device_to_domain: IOMMU: device={nth}") for nth in range(lines))

    assert growth(reading, trace) < TOO_MUCH
