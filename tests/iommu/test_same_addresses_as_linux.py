"""The same calls, in the same order and on the same CPUs, get the addresses that real kernels gave.

What a trace leaves open, and what is done about it:

- The line of a map call is written after its address was allocated. When an interrupt, or another CPU, came between the
  two, the trace shows them in the wrong order. Where the addresses prove that, the call is moved up, to before the
  event named in `moved`; that no call is moved over one of its own CPU is a test below.
- The frees after a timer's flush have no line. They are made as late as the trace allows, before the timer's CPU does
  anything else; what other CPUs unmap meanwhile is stamped by the flush's start.
- The depot workers have no lines. They run when armed by the emulated kernel, as the timer wheel rounds 100 ms.
- The device's reach has no line. On s390 the aperture is known: 2 GiB, the guest's memory, from 4 GiB. On x86 addresses
  are taken from below 4 GiB first, of which two ranges are reserved; which ones is read off a capture that fills all
  around them (last test).

With two CPUs the unknown orders pile up; each capture is followed as far as `moved` was worked out.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest

from emu.capture.events import MAP, QUEUED, TIMER, UNMAP
from emu.capture.ftrace import read_capture
from emu.native.timer import TIMER_IDLE
from tests.iommu.harness import History

pytestmark = pytest.mark.captures

S390 = {"aperture_start": 1 << 32, "aperture_mb": 2048}
PCI_WINDOW, MSI_WINDOW = (0xC0000000, 0xFEBFFFFF), (0xFEE00000, 0xFEEFFFFF)
X86 = {"aperture_start": 0, "aperture_mb": 4096, "reserved": [PCI_WINDOW, MSI_WINDOW]}
HZ_S390, HZ_X86 = 100, 250
DEPOT_DELAY_NS = 100_000_000

CALL, FLUSH_BEGINS, FLUSH_ENDS = range(3)


@dataclass(frozen=True)
class Replay:
    """How far a capture is replayed.

    Attributes:
        phase: the last phase of which every address is the kernel's, or None when that is not a whole phase.
        maps: map calls until then.
        in_order: map calls before the first phase on two CPUs.
        moved: event of a map call: event before which it had its address; only kinds from MAP to QUEUED are counted.
    """

    name: str
    domain: str
    hz: int
    options: dict
    phase: str | None
    maps: int
    in_order: int
    moved: dict = field(default_factory=dict)


REPLAYS = [
    Replay(
        "s390x-6.12-strict-nvme-2cpu", "DMA", HZ_S390, S390, "p2-qd4-4k-randread-2cpu", 10020, 2020,
        {9066: 9054, 12058: 12054, 13608: 13602, 17071: 17065, 17125: 17121, 17427: 17419, 19768: 19766, 23138: 23126,
         27510: 27496, 32714: 32710, 33170: 33160, 33674: 33660, 37109: 37107, 37305: 37293, 37377: 37365,
         37629: 37617, 37749: 37737},
    ),
    Replay("s390x-6.12-lazy-nvme-2cpu", "DMA-SQ", HZ_S390, S390, "p1-qd1-4k-read-cpu0", 2020, 2020),
    Replay(
        "s390x-6.12-switch-nvme-2cpu", "DMA", HZ_S390, S390, "s1-boot-type", 3020, 47,
        {298: 283, 3489: 3465, 4447: 4443, 5207: 5177, 5484: 5465, 5654: 5622, 6620: 6606, 6640: 6632, 6668: 6652,
         6749: 6742, 7281: 7254, 9826: 9822, 11026: 11019, 11250: 11238, 11503: 11501, 11529: 11520, 15303: 15282,
         17114: 17094, 17766: 17752, 17866: 17855, 22147: 22141},
    ),
    Replay("s390x-6.12-lazy-vblk-2cpu", "DMA-SQ", HZ_S390, S390, None, 4974, 4974),
    Replay(
        "x86-6.12-strict-nvme-2cpu", "DMA", HZ_X86, X86, "p2-qd4-4k-randread-2cpu", 5022, 1022,
        {2080: 2074, 2123: 2122, 2199: 2196, 2364: 2359, 3055: 3048, 3503: 3496, 4771: 4770, 4841: 4840, 4955: 4953,
         5018: 5014, 5032: 5030, 5343: 5339, 5365: 5362, 5693: 5686, 6233: 6232, 6686: 6682, 7605: 7603, 9317: 9310},
    ),
    Replay(
        "x86-6.12-cachingmode-nvme-2cpu", "DMA", HZ_X86, X86, "p2-qd4-4k-randread-2cpu", 4022, 822,
        {1754: 1752, 1827: 1820, 1993: 1990, 2002: 1997, 2238: 2226, 2253: 2252, 3078: 3075, 3281: 3277, 4192: 4191,
         4679: 4673, 4831: 4827, 4875: 4868, 4981: 4974, 5118: 5114, 5123: 5121, 5359: 5354, 5395: 5389, 6760: 6757,
         6955: 6950, 7403: 7397, 7877: 7876, 7973: 7972},
    ),
    Replay(
        "x86-6.12-lazy-nvme-2cpu", "DMA-FQ", HZ_X86, X86, "p1-qd1-4k-read-cpu0", 2022, 2022,
        {1283: 1280, 2467: 2464, 3081: 3078, 3155: 3152, 4025: 4022},
    ),
]  # fmt: skip


@pytest.fixture(scope="module", params=REPLAYS, ids=lambda replay: replay.name)
def replay(request):
    return request.param


@pytest.fixture(scope="module")
def capture(replay, captures_dir):
    return read_capture(captures_dir / f"{replay.name}.trace.gz")


@pytest.fixture(scope="module")
def moved(capture, replay):
    """`Replay.moved` in indices of the capture's events."""
    counted = np.flatnonzero((capture.events["kind"] >= MAP) & (capture.events["kind"] <= QUEUED)).tolist()
    return {counted[event]: counted[before] for event, before in replay.moved.items()}


def steps_in_trace_order(capture):
    """(what, event); a timer's frees come right before the next call on its CPU."""
    steps, flushing = [], {}
    for i, (kind, cpu) in enumerate(zip(capture.events["kind"].tolist(), capture.events["cpu"].tolist(), strict=True)):
        if kind not in (MAP, UNMAP, TIMER):
            continue
        if cpu in flushing:
            steps.append((FLUSH_ENDS, flushing.pop(cpu)))
        if kind == TIMER:
            flushing[cpu] = i
        steps.append((FLUSH_BEGINS if kind == TIMER else CALL, i))
    return steps


def steps_of(capture, moved):
    """The steps in the order in which they happened: map calls cut short are moved up."""
    steps = steps_in_trace_order(capture)
    for event, before in moved.items():
        at = steps.index((CALL, event))
        to = next(i for i, step in enumerate(steps) if step[1] == before)
        steps.insert(to, steps.pop(at))
    return steps


class Depots:
    """The depot workers' time: armed by the history, run when due."""

    def __init__(self, history, hz):
        self.history = history
        self.tick_ns = 1_000_000_000 // hz
        self.due_ns = {}

    def arm(self, now_ns):
        for order in self.history.pending_depot_works():
            if order not in self.due_ns:
                delay = -(-DEPOT_DELAY_NS // self.tick_ns)
                # So short a timer fires at the tick after its jiffies have passed.
                self.due_ns[order] = (now_ns // self.tick_ns + delay + 1) * self.tick_ns

    def run_until(self, now_ns):
        while self.due_ns and min(self.due_ns.values()) <= now_ns:
            order = min(self.due_ns, key=self.due_ns.get)
            at_ns = self.due_ns.pop(order)
            self.history.run_depot_work(order)
            self.arm(at_ns)


def addresses(capture, replay, moved):
    """(emu's, the kernel's) pfn of every map call that is replayed."""
    mappings = capture.mappings
    mapped_by = {int(m["map_event"]): i for i, m in enumerate(mappings)}
    unmapped_by = {int(m["unmap_event"]): i for i, m in enumerate(mappings) if m["unmap_event"] >= 0}
    pfns, pairs, now_ns = {}, [], 0
    with History(replay.domain, cpus=capture.cpus, **replay.options) as history:
        depots = Depots(history, replay.hz)
        for what, event in steps_of(capture, moved):
            cpu = int(capture.events["cpu"][event])
            now_ns = max(now_ns, int(capture.events["time_ns"][event]))
            depots.run_until(now_ns)
            if what == FLUSH_BEGINS:
                history.domain.cookie.fq_timer_on.counter = 0
                history.domain.cookie.fq_timer.state = TIMER_IDLE
                history.begin_flush()
            elif what == FLUSH_ENDS:
                history.end_flush()
                history.free_rings(cpu)
            elif event in mapped_by:
                mapping = mappings[mapped_by[event]]
                pfns[mapped_by[event]] = history.map(int(mapping["pages"]), cpu)
                pairs.append((pfns[mapped_by[event]], int(mapping["start"]) >> 12))
            elif event in unmapped_by:
                history.unmap(pfns[unmapped_by[event]], int(mappings[unmapped_by[event]]["pages"]), cpu)
            depots.arm(now_ns)
            if len(pairs) == replay.maps:
                break
        assert history.ctrs.violations == 0
    return pairs


def maps_before(capture, event):
    return int((capture.mappings["map_event"] < event).sum())


def end_of_phase(capture, name):
    return next(change.event for change in capture.phase_changes if change.name == f"(after {name})")


def test_every_address_is_the_kernels(capture, replay, moved):
    pairs = addresses(capture, replay, moved)
    assert len(pairs) == replay.maps
    assert [hex(ours) for ours, _ in pairs] == [hex(kernels) for _, kernels in pairs]


def test_they_are_whole_phases(capture, replay):
    wanted = maps_before(capture, end_of_phase(capture, replay.phase)) if replay.phase else replay.maps
    assert replay.maps == wanted


def test_a_call_is_moved_only_over_interrupts_of_its_cpu_and_over_other_cpus(capture, moved):
    events = capture.events
    for event, before in moved.items():
        passed = events[before:event]
        passed = passed[(passed["kind"] == MAP) | (passed["kind"] == UNMAP)]
        assert (passed["irq"] | (passed["cpu"] != events["cpu"][event])).all()


def test_where_one_cpu_works_without_a_short_timer_the_order_is_that_of_the_trace(capture, replay, moved):
    if replay.domain != "DMA-FQ":
        assert maps_before(capture, min(moved, default=len(capture.events))) >= replay.in_order


def test_the_reserved_ranges_are_those_that_a_filled_aperture_leaves_out(captures_dir):
    mappings = read_capture(captures_dir / "x86-6.12-lazy-vblk-8cpu-overrun.trace.gz").mappings
    used = np.zeros(1 << 20, bool)
    for start, pages in zip(mappings["start"].tolist(), mappings["pages"].tolist(), strict=True):
        used[start >> 12 : (start >> 12) + pages] = True
    for first, last in (PCI_WINDOW, MSI_WINDOW):
        assert not used[first >> 12 : (last >> 12) + 1].any()
        assert used[(first >> 12) - 1]
        assert used[(last >> 12) + 1]
