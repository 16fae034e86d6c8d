"""The same calls, in the same order and on the same CPUs, get the addresses that real kernels gave."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from emu.addresses import steps
from emu.addresses.allocator import Allocator
from emu.addresses.aperture import S390_START, X86_RESERVED, Aperture, aperture_of
from emu.addresses.compare import compare_addresses
from emu.addresses.depots import Depots
from emu.addresses.log import Log, order_of
from emu.addresses.peek import NOWHERE
from emu.addresses.reasons import FLUSHING, INFERRED, UNEXPLAINED, VERIFIED, WORKER
from emu.addresses.replay import Replay
from emu.capture.counters import read_counters
from emu.capture.ftrace import read_capture
from emu.capture.shipped import find_capture, shipped_captures
from emu.iommu.iova import IOVA_MAG_SIZE, IOVA_RANGE_CACHE_MAX_SIZE, iova_magazine, iova_t
from emu.native.record import deref
from tests.conftest import CAPTURES

TICK_NS = 4_000_000
"""All these kernels are built with HZ 250: their timers fire at the same place of every 4 ms."""


@dataclass(frozen=True)
class Expected:
    """Of one capture.

    Attributes:
        domain: its type. in_order: allocations before the first that another CPU or the queue's short timer can
        disturb. share: how many of all are identical, in %, a little less than measured.
    """

    domain: str
    in_order: int
    share: float


EXPECTED = {
    "s390x-6.12-strict-nvme-2cpu": Expected("DMA", 2020, 99.4),
    "s390x-6.12-switch-nvme-2cpu": Expected("DMA", 47, 98.8),
    "s390x-6.12-lazy-nvme-2cpu": Expected("DMA-SQ", 2020, 98.5),
    "s390x-6.12-lazy-vblk-2cpu": Expected("DMA-SQ", 4974, 99.0),
    "s390x-6.12-lazy-vblk-smallaperture-2cpu": Expected("DMA-SQ", 6, 94.5),
    "x86-6.12-strict-nvme-2cpu": Expected("DMA", 1022, 99.4),
    "x86-6.12-cachingmode-nvme-2cpu": Expected("DMA", 822, 99.2),
    "x86-6.12-lazy-nvme-2cpu": Expected("DMA-FQ", 22, 98.0),
}
ON_ONE_CPU = ("s390x-6.12-strict-nvme-2cpu", "s390x-6.12-lazy-nvme-2cpu", "x86-6.12-strict-nvme-2cpu",
              "x86-6.12-cachingmode-nvme-2cpu")  # fmt: skip
"""Those with a phase in which only one CPU works, and no short timer."""


@cache
def capture_of(name):
    return read_capture(CAPTURES / f"{name}.trace.gz")


@cache
def compared(name):
    return compare_addresses(capture_of(name), EXPECTED[name].domain, TICK_NS)


@cache
def shipped(name):
    return read_capture(find_capture(Path(name)))


def share(found):
    return 100 * found.identical / found.maps


@pytest.fixture(params=EXPECTED)
def name(request, captures_dir):  # noqa: ARG001 - skips without them
    return request.param


@pytest.mark.captures
def test_while_the_order_is_known_every_address_is_the_kernels(name):
    assert compared(name).identical_from_the_start >= EXPECTED[name].in_order


@pytest.mark.captures
@pytest.mark.parametrize("on_one_cpu", ON_ONE_CPU)
def test_every_address_is_the_kernels_up_to_the_first_phase_on_two_cpus(on_one_cpu, captures_dir):  # noqa: ARG001
    phases = compared(on_one_cpu).phases
    first = next(i for i, (phase, _, _) in enumerate(phases) if phase.endswith("2cpu"))
    assert first == 2
    assert all(identical == maps for _, maps, identical in phases[:first])
    assert compared(on_one_cpu).identical_from_the_start >= sum(maps for _, maps, _ in phases[:first])


@pytest.mark.captures
def test_nearly_all_addresses_are_the_kernels_to_the_end(name):
    assert share(compared(name)) >= EXPECTED[name].share


@pytest.mark.captures
def test_every_other_allocation_has_a_reason(name):
    found = compared(name)
    assert found.identical + sum(found.others.values()) == found.maps == len(capture_of(name).mappings)
    assert set(found.others) <= {*VERIFIED, *INFERRED, *UNEXPLAINED}
    assert [sum(maps for _, maps, _ in found.phases), sum(same for _, _, same in found.phases)] == [
        found.maps,
        found.identical,
    ]


@pytest.mark.captures
def test_no_page_is_handed_out_twice_however_much_is_put_right(name):
    assert compared(name).violations == 0


@pytest.mark.captures
def test_where_no_repair_looks_ahead_next_to_nothing_is_unexplained(captures_dir):  # noqa: ARG001
    for name in ("s390x-6.12-strict-nvme-2cpu", "s390x-6.12-lazy-nvme-2cpu", "s390x-6.12-lazy-vblk-2cpu"):
        assert compared(name).as_dict()["unexplained"] <= 10, name


@pytest.mark.captures
def test_the_aperture_is_read_off_the_addresses(captures_dir):  # noqa: ARG001
    guest_memory = {"s390x-6.12-lazy-vblk-smallaperture-2cpu": 256 << 20}
    for name in EXPECTED:
        space = Aperture(S390_START, S390_START + guest_memory.get(name, 2 << 30))
        if name.startswith("x86"):
            space = Aperture(0, 1 << 32, X86_RESERVED)
        assert aperture_of(capture_of(name)) == space


@pytest.mark.captures
def test_the_reserved_ranges_are_those_that_a_filled_aperture_leaves_out(captures_dir):  # noqa: ARG001
    mappings = capture_of("x86-6.12-lazy-vblk-8cpu-overrun").mappings
    used = np.zeros(1 << 20, bool)
    for start, pages in zip(mappings["start"].tolist(), mappings["pages"].tolist(), strict=True):
        used[start >> 12 : (start >> 12) + pages] = True
    for first, last in X86_RESERVED:
        assert not used[first >> 12 : (last >> 12) + 1].any()
        assert used[(first >> 12) - 1]
        assert used[(last >> 12) + 1]


@pytest.mark.captures
def test_a_capture_that_begins_in_use_is_compared_to_its_end_all_the_same(captures_dir):  # noqa: ARG001
    capture = capture_of("x86-6.12-lazy-vblk-8cpu-overrun")
    found = compare_addresses(capture, "DMA-FQ", TICK_NS)
    assert found.identical_from_the_start == 0
    assert found.identical + sum(found.others.values()) == found.maps == len(capture.mappings)


WITHOUT_VOTES = {
    "s390x-6.12-strict-nvme-2cpu": 99.4,
    "s390x-6.12-switch-nvme-2cpu": 90,
    "s390x-6.12-lazy-nvme-2cpu": 98.5,
    "s390x-6.12-lazy-vblk-smallaperture-2cpu": 70,
    "x86-6.12-lazy-nvme-2cpu": 85,
}


@pytest.mark.captures
@pytest.mark.parametrize("name", WITHOUT_VOTES)
def test_most_are_the_kernels_without_repairs_by_its_later_addresses_too(name, captures_dir, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr("emu.addresses.repair.MAJORITY", 99)
    found = compare_addresses(capture_of(name), EXPECTED[name].domain, TICK_NS)
    assert share(found) >= WITHOUT_VOTES[name]
    assert found.violations == 0


# --- the captures of the package ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_captures())
def test_the_captures_of_the_package_have_the_kernels_addresses(name):
    domain = "DMA-SQ" if read_counters(find_capture(Path(name))).is_lazy else "DMA"
    done = []
    found = compare_addresses(shipped(name), domain, TICK_NS, on_progress=done.append)
    assert share(found) >= 98.5
    assert found.identical_from_the_start >= 2020
    assert found.identical + sum(found.others.values()) == found.maps == len(shipped(name).mappings)
    assert found.violations == 0
    assert done[0] == 0
    assert done[-1] == 1


def ranges_of(allocator):
    """(first pfn, pages) of every allocated range that is not reserved."""
    address = int(allocator.cookie.iovad.anchor.node.prev)
    while address:
        iova = deref(iova_t, address)
        if (int(iova.pfn_lo) << 12) not in [first for first, _ in X86_RESERVED]:
            yield int(iova.pfn_lo), int(iova.pfn_hi - iova.pfn_lo + 1)
        address = int(iova.node.prev)


def cached_in(allocator, cpus):
    """How many ranges lie in magazines and depots."""
    own = allocator.layout.segment["cpu_rcaches"][: IOVA_RANGE_CACHE_MAX_SIZE * cpus]
    magazines = [int(address) for name in ("loaded", "prev") for address in own[name]]
    in_depots = sum(allocator.depot_size(order) for order in range(IOVA_RANGE_CACHE_MAX_SIZE)) * IOVA_MAG_SIZE
    return in_depots + sum(int(deref(iova_magazine, address)["count"]) for address in magazines)


@pytest.mark.captures
@pytest.mark.parametrize("name", ["s390x-6.12-lazy-vblk-smallaperture-2cpu", "x86-6.12-lazy-nvme-2cpu"])
def test_every_range_is_in_just_one_place_after_thousands_of_repairs(name, captures_dir):  # noqa: ARG001
    capture, domain = capture_of(name), EXPECTED[name].domain
    log = Log(capture)
    live = {pfn for pfn, event in zip(log.pfn, log.unmap_event, strict=True) if event < 0}
    with Replay(log, lambda: Allocator(domain, capture.cpus, aperture_of(capture)), TICK_NS, [(0, domain)]) as replay:
        replay.run()
        allocator, places = replay.state.allocator, Counter()
        for pfn, pages in ranges_of(allocator):
            queued = sum(allocator.step(steps.RING_FIND, ring, pfn) >= 0 for ring in allocator.rings)
            cached = allocator.find(pfn, order_of(pages)).source != NOWHERE
            assert queued + cached + (pfn in live) == 1, (pfn, queued, cached)
            places.update(cached=cached)
        assert places["cached"] == cached_in(allocator, capture.cpus)


def test_two_comparisons_are_the_same():
    first, second = (compare_addresses(shipped("s390x-lazy-nvme"), "DMA-SQ", TICK_NS).as_dict() for _ in range(2))
    assert first == second


# --- a wrong allocator is found out ---------------------------------------------------------------------------------


def test_a_lower_end_of_the_aperture_is_found_out():
    capture = shipped("s390x-strict-nvme")
    space = aperture_of(capture)
    found = compare_addresses(capture, "DMA", TICK_NS, Aperture(space.start, space.end - (1 << 20)))
    assert found.identical_from_the_start == 0
    assert found.identical < compare_addresses(capture, "DMA", TICK_NS).identical


def test_unmaps_on_the_wrong_cpu_are_found_out():
    capture = read_capture(find_capture(Path("s390x-strict-nvme")))
    right = compare_addresses(capture, "DMA", TICK_NS)
    unmaps = capture.mappings["unmap_event"][::50]
    capture.events["cpu"][unmaps[unmaps >= 0]] ^= 1
    wrong = compare_addresses(capture, "DMA", TICK_NS)
    assert wrong.identical < right.identical
    assert wrong.count(UNEXPLAINED) > right.count(UNEXPLAINED)


def test_a_lazy_kernels_addresses_are_not_those_of_a_strict_domain():
    lazy, strict = (compare_addresses(shipped("s390x-lazy-nvme"), domain, TICK_NS) for domain in ("DMA-SQ", "DMA"))
    assert strict.identical < lazy.identical / 2


@pytest.mark.captures
def test_depot_workers_that_never_run_are_found_out(captures_dir, monkeypatch):  # noqa: ARG001
    name = "s390x-6.12-lazy-nvme-2cpu"
    monkeypatch.setattr(Depots, "run_until", lambda *_: None)
    monkeypatch.setattr(Depots, "run_early", lambda *_: None)
    found = compare_addresses(capture_of(name), EXPECTED[name].domain, TICK_NS)
    assert found.identical_from_the_start < compared(name).identical_from_the_start
    assert found.count(UNEXPLAINED) > 100 * compared(name).count(UNEXPLAINED)


@pytest.mark.captures
def test_depot_workers_and_flushes_at_other_moments_are_told_apart_from_what_is_unexplained(captures_dir):  # noqa: ARG001
    found = compared("s390x-6.12-lazy-vblk-2cpu")
    assert found.others[WORKER]
    assert found.others[FLUSHING]


# --- what is not compared -------------------------------------------------------------------------------------------


def test_addresses_of_another_allocator_are_not_compared():
    assert "s390-lazy" in compare_addresses(shipped("s390x-lazy-nvme"), "s390-lazy", TICK_NS)
