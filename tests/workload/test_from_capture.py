"""A replayed capture does what the kernel did, counts what the kernel counted, and always comes to its end."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.capture.counters import read_counters
from emu.capture.events import MAP, CaptureError
from emu.capture.ftrace import Capture, read_capture
from emu.workload.from_capture import capture_workload
from emu.workload.program import OP_MAP, OP_MARK, OP_UNMAP, Workload

CAPTURES = Path(__file__).parents[3] / "shared" / "captures"
PAGE = 4096


def line(event: str, cpu: int, seconds: float) -> str:
    return f"          kw-182     [{cpu:03}] ..... {seconds:12.6f}: {event}\n"


def mapped(page: int, pages: int = 1, cpu: int = 0, seconds: float = 1) -> str:
    start, end = page * PAGE, (page + pages) * PAGE
    return line(f"map: IOMMU: iova=0x{start:016x} - 0x{end:016x} paddr=0x{0:016x} size={end - start}", cpu, seconds)


def unmapped(page: int, pages: int = 1, cpu: int = 0, seconds: float = 1) -> str:
    start, end, size = page * PAGE, (page + pages) * PAGE, pages * PAGE
    event = f"unmap: IOMMU: iova=0x{start:016x} - 0x{end:016x} size={size} unmapped_size={size}"
    return line(event, cpu, seconds)


def mark(text: str) -> str:
    return line(f"tracing_mark_write: {text}", 0, 1)


@pytest.fixture
def workload_of(tmp_path):
    """The workload of a synthetic trace."""

    def make(trace: str, cpus: int | None = None) -> Workload:
        (tmp_path / "synthetic.trace").write_text(trace)
        return capture_workload(read_capture(tmp_path / "synthetic.trace"), cpus)

    return make


def ops(workload: Workload, cpu: int, *fields: str) -> list[tuple[int, ...]]:
    """Some fields of a CPU's operations, the opening mark left out."""
    return workload.programs[cpu].ops[["code", *fields]].tolist()[1:]


@dataclass
class Counted:
    """What was done in one phase, all CPUs together."""

    maps: int = 0
    unmaps: int = 0
    mapped_pages: int = 0
    unmapped_pages: int = 0


@dataclass
class Replay:
    """Runs programs in one thread: CPU after CPU, some operations each, a CPU that must wait loses its turn."""

    workload: Workload
    turn: int
    phases: dict[str, Counted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.phases = {name: Counted() for name in self.workload.phases}
        self._pages_in = [0] * self.workload.slots
        self._rest = [iter(p.ops[["code", "slot", "pages", "arg"]].tolist()) for p in self.workload.programs]
        self._here = [Counted()] * len(self._rest)
        self._run()

    @property
    def live(self) -> int:
        return sum(pages > 0 for pages in self._pages_in)

    def total(self, what: str) -> int:
        return sum(getattr(counted, what) for counted in self.phases.values())

    def _run(self) -> None:
        following = [next(rest, None) for rest in self._rest]
        moved = True
        while moved:
            moved = False
            for cpu, rest in enumerate(self._rest):
                for _ in range(self.turn):
                    if following[cpu] is None or not self._do(cpu, *following[cpu]):
                        break
                    following[cpu] = next(rest, None)
                    moved = True
        assert not any(following), "the programs wait for each other for ever"

    def _do(self, cpu: int, code: int, slot: int, pages: int, arg: int) -> bool:
        if code == OP_MARK:
            self._here[cpu] = self.phases[self.workload.phases[arg]]
            return True
        held, here = self._pages_in[slot], self._here[cpu]
        if (held > 0) != (code == OP_UNMAP):
            return False
        self._pages_in[slot] = pages
        if code == OP_MAP:
            here.maps += 1
            here.mapped_pages += pages
        else:
            here.unmaps += 1
            here.unmapped_pages += held
        return True


# Synthetic traces


def test_each_cpu_does_its_own_events_in_trace_order(workload_of):
    workload = workload_of(mapped(4, 2, cpu=0) + mapped(9, cpu=1) + unmapped(4, 2, cpu=1) + unmapped(9, cpu=0))
    assert ops(workload, 0, "slot", "pages") == [(OP_MAP, 0, 2), (OP_UNMAP, 1, 0)]
    assert ops(workload, 1, "slot", "pages") == [(OP_MAP, 1, 1), (OP_UNMAP, 0, 0)]
    assert (workload.slots, workload.max_pages, workload.name) == (2, 2, "synthetic")
    assert not any(program.repeats for program in workload.programs)


def test_a_scatter_gather_call_is_one_op_with_its_segments(workload_of):
    text = mapped(20) + mapped(4, 1) + mapped(5, 3) + mapped(8, 2) + unmapped(4, 6)
    workload = workload_of(text + mapped(30, 2) + mapped(32) + unmapped(30, 3))
    assert ops(workload, 0, "nents", "pages", "arg")[1] == (OP_MAP, 3, 6, 0)
    assert ops(workload, 0, "nents", "pages", "arg")[3] == (OP_MAP, 2, 3, 3)
    assert workload.segments.tolist() == [1, 3, 2, 2, 1]
    assert workload.segments.dtype == np.int32


def test_slots_are_used_again_the_oldest_first(workload_of):
    text = mapped(1) + mapped(3) + unmapped(3) + unmapped(1) + mapped(5) + mapped(7) + mapped(9)
    workload = workload_of(text + unmapped(5) + unmapped(7) + unmapped(9))
    assert [slot for code, slot in ops(workload, 0, "slot") if code == OP_MAP] == [0, 1, 1, 0, 2]
    assert workload.slots == 3


def test_a_slot_is_used_again_only_between_the_same_two_cpus(workload_of):
    # If both mappings shared a slot, CPU 1 could run ahead and unmap the first, and CPU 0 would wait for ever.
    text = mapped(1, cpu=0) + unmapped(1, cpu=0) + mapped(3, cpu=0) + unmapped(3, cpu=1)
    workload = workload_of(text + mapped(5, cpu=0) + unmapped(5, cpu=1))
    assert [slot for code, slot in ops(workload, 0, "slot") if code == OP_MAP] == [0, 1, 1]


def test_every_cpu_enters_every_phase_at_its_place_in_the_trace(workload_of):
    text = mapped(1, cpu=0) + mark("K p.begin") + mapped(3, cpu=1) + mapped(5, cpu=0) + mark("K p.end")
    workload = workload_of(text + unmapped(3, cpu=1))
    assert workload.phases == ["(before)", "p", "(after p)"]
    codes = [[(code, arg) for code, arg in program.ops[["code", "arg"]].tolist()] for program in workload.programs]
    begin, phase, after = (OP_MARK, 0), (OP_MARK, 1), (OP_MARK, 2)
    assert codes[0] == [begin, (OP_MAP, 0), phase, (OP_MAP, 0), after]
    assert codes[1] == [begin, phase, (OP_MAP, 0), after, (OP_UNMAP, 0)]


def test_times_count_from_the_first_event_and_no_two_events_have_the_same(workload_of):
    workload = workload_of(
        mapped(1, seconds=5) + mapped(3, seconds=5.5) + mapped(5, seconds=5.25) + mapped(7, seconds=6)
    )
    assert workload.programs[0].ops["at_ns"].tolist() == [0, 0, 500_000_000, 500_000_001, 1_000_000_000]


def test_unmaps_from_before_the_capture_are_left_out_and_said_so(workload_of):
    workload = workload_of(unmapped(9) + mapped(1) + unmapped(1))
    assert ops(workload, 0) == [(OP_MAP,), (OP_UNMAP,)]
    assert workload.notes == ["1 unmaps of mappings older than the capture are left out."]


def test_a_lost_unmap_is_supplied_before_the_new_map_on_its_cpu(workload_of):
    workload = workload_of(mapped(1, cpu=0) + mapped(1, cpu=1) + unmapped(1, cpu=0))
    assert ops(workload, 0, "slot") == [(OP_MAP, 0), (OP_UNMAP, 1)]
    assert ops(workload, 1, "slot") == [(OP_UNMAP, 0), (OP_MAP, 1)]
    assert workload.notes == ["1 lost unmaps are supplied, each before the next map there."]


def test_a_lost_unmap_is_supplied_before_the_whole_call_that_took_its_place(workload_of):
    workload = workload_of(mapped(5, cpu=0) + mapped(4, cpu=1) + mapped(5, cpu=1) + unmapped(4, 2, cpu=1))
    assert ops(workload, 1, "pages") == [(OP_UNMAP, 0), (OP_MAP, 2), (OP_UNMAP, 0)]


def test_a_lost_unmap_is_never_supplied_before_its_own_map(workload_of):
    workload = workload_of(mapped(4, cpu=1) + mapped(5, cpu=0) + mapped(5, cpu=1) + unmapped(4, 2, cpu=1))
    assert Replay(workload, turn=1).live == 0


def test_fewer_cpus_take_over_the_others_in_trace_order(workload_of):
    text = "".join(mapped(2 * cpu, cpu=cpu) for cpu in range(5)) + "".join(
        unmapped(2 * cpu, cpu=cpu) for cpu in range(5)
    )
    workload = workload_of(text, cpus=2)
    assert ops(workload, 1, "slot") == [(OP_MAP, 1), (OP_MAP, 3), (OP_UNMAP, 1), (OP_UNMAP, 3)]
    assert workload.notes == ["The 5 CPUs of the capture are folded onto 2."]


def test_more_cpus_than_recorded_stay_idle(workload_of):
    workload = workload_of(mapped(1), cpus=3)
    assert [len(program.ops) for program in workload.programs] == [2, 1, 1]
    assert workload.notes == []


@pytest.mark.parametrize("cpus", [0, -1])
def test_no_cpus_are_refused(workload_of, cpus):
    with pytest.raises(ValueError, match="cpus must be positive"):
        workload_of(mapped(1), cpus)


def test_a_mapping_no_op_can_hold_is_refused(workload_of):
    tebibyte = 1 << 28
    with pytest.raises(CaptureError, match="no replay can hold it"):
        workload_of("".join(mapped(number * tebibyte, tebibyte) for number in range(9)))


PAGES = st.integers(0, 12)
CPUS = st.integers(0, 2)
LINES = st.one_of(
    st.builds(mapped, PAGES, st.integers(1, 4), CPUS),
    st.builds(unmapped, PAGES, st.integers(1, 6), CPUS),
    st.builds(mark, st.sampled_from(["K p.begin", "K p.end"])),
)


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINES, max_size=40), cpus=st.integers(1, 4), turn=st.integers(1, 9))
def test_whatever_is_recorded_can_be_replayed(tmp_path_factory, lines, cpus, turn):
    path = tmp_path_factory.getbasetemp() / "lines.trace"
    path.write_text(mapped(40) + "".join(lines))
    capture = read_capture(path)
    replay = Replay(capture_workload(capture, cpus), turn)
    is_live = capture.mappings["unmap_event"] < 0
    assert replay.total("maps") == len(capture.mappings)
    assert replay.total("unmapped_pages") == capture.mappings["pages"][~is_live].sum()
    assert replay.live == np.count_nonzero(is_live)


# Real captures


def usable_captures() -> list[Path]:
    return sorted(path for path in CAPTURES.glob("*.trace.gz") if "6.1-" not in path.name)


NO_CAPTURES = pytest.param(None, marks=pytest.mark.skip(reason=f"no real captures in {CAPTURES}"))


@pytest.fixture(
    scope="module", params=usable_captures() or [NO_CAPTURES], ids=lambda path: path.name if path else "none"
)
def capture(request) -> Capture:
    return read_capture(request.param)


@pytest.fixture(scope="module")
def replay(capture) -> Replay:
    return Replay(capture_workload(capture), turn=1)


@pytest.fixture(scope="module")
def description(capture) -> dict[str, Any]:
    return json.loads((CAPTURES / f"{capture.name}.json").read_bytes())


@pytest.mark.captures
def test_a_real_capture_is_flawless(capture):
    assert [said for said in capture.report.sentences() if "queue_iova" not in said] == []


@pytest.mark.captures
def test_the_replay_counts_what_the_kernel_counted(capture, replay):
    counters = read_counters(capture.path)
    if not counters.totals:
        pytest.skip("this kernel does not count")
    expected, names = counters.comparable, counters.comparable_phases
    phases = [
        counted for name, counted in replay.phases.items() if not names or name.removesuffix(" (settling)") in names
    ]
    assert sum(counted.mapped_pages for counted in phases) == expected["Mapped pages"]
    assert sum(counted.unmapped_pages for counted in phases) == expected["Unmapped pages"]
    assert sum(counted.maps for counted in phases) == expected["Sync Map RPCITs"]


@pytest.mark.captures
def test_each_phase_counts_what_the_kernel_counted_in_it(capture, replay):
    for phase in read_counters(capture.path).phases:
        if phase.delta:
            ran, settled = replay.phases[phase.name], replay.phases[f"{phase.name} (settling)"]
            assert ran.mapped_pages + settled.mapped_pages == phase.delta["Mapped pages"]
            assert ran.unmapped_pages + settled.unmapped_pages == phase.delta["Unmapped pages"]
            assert ran.maps + settled.maps == phase.delta["Sync Map RPCITs"]
            assert phase.delta["Sync RPCITs"] in (0, ran.unmaps + settled.unmaps)


@pytest.mark.captures
def test_each_phase_holds_the_chunks_and_unmaps_its_description_says(capture, replay, description):
    chunks = phase_of_events(capture, np.flatnonzero(capture.events["kind"] == MAP))
    for name, said in description.get("phases", {}).items():
        assert chunks[name] + chunks[f"{name} (settling)"] == said["trace"]["map"]
        assert replay.phases[name].unmaps + replay.phases[f"{name} (settling)"].unmaps == said["trace"]["unmap"]


def phase_of_events(capture: Capture, events: np.ndarray) -> Counter[str]:
    """How many of some events are in each phase."""
    starts = [change.event for change in capture.phase_changes]
    names = ["(before)", *(change.name for change in capture.phase_changes)]
    return Counter(names[number] for number in np.searchsorted(starts, events, side="right").tolist())


@pytest.mark.captures
def test_calls_and_what_stays_mapped_agree_with_the_description(capture, description):
    pairing = description.get("trace_summary", {}).get("unmap_pairing")
    if not pairing:
        pytest.skip("the description has no summary")
    is_live = capture.mappings["unmap_event"] < 0
    chunks = capture.mappings["nents"]
    assert np.count_nonzero(chunks[~is_live] == 1) == pairing["exact_one_map"]
    assert np.count_nonzero(chunks[~is_live] > 1) == pairing["several_maps"]
    assert chunks[is_live].sum() == description["trace_summary"]["live_maps_at_end"]


@pytest.mark.captures
def test_with_caching_mode_every_call_and_every_unmap_invalidates_once(capture, description):
    if "cachingmode" not in capture.name:
        pytest.skip("not a caching-mode run")
    invalidations = description["qemu_invalidations"]["total"]["vtd_inv_desc_iotlb_pages"]
    assert len(capture.mappings) + capture.report.unmap_events == invalidations


@pytest.mark.captures
def test_a_real_replay_ends_with_what_was_never_unmapped(capture, replay):
    assert replay.live == np.count_nonzero(capture.mappings["unmap_event"] < 0)


@pytest.mark.captures
def test_a_real_capture_replays_to_its_end_on_another_number_of_cpus(capture):
    assert Replay(capture_workload(capture, cpus=3), turn=1000).total("maps") == len(capture.mappings)
