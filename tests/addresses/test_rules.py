"""Traces made by hand: what the order of their lines leaves open is settled, or told by its right name."""

import pytest

from emu.addresses.aperture import Aperture, aperture_of
from emu.addresses.compare import compare_addresses
from emu.addresses.reasons import IN_TREE, INTERRUPTED, QUEUED, QUEUED_OTHERWISE, SWAPPED
from emu.capture.ftrace import read_capture

TICK_NS = 4_000_000
TOP = 0x17FFFF000
"""The highest page of 2 GiB from 4 GiB on."""


class Trace:
    """Lines of a trace; each comes 10 µs after the one before unless told otherwise."""

    def __init__(self):
        self.lines = []
        self.live = []
        self.now_us = 1_000_000

    def line(self, text, cpu, flags, after_us):
        self.now_us += after_us
        seconds = f"{self.now_us // 10**6}.{self.now_us % 10**6:06}"
        self.lines.append(f"           dd-100     [{cpu:03}] {flags} {seconds}: {text}")

    def map(self, page, cpu=0, after_us=10):
        """The page that lies so many below the highest."""
        start = TOP - 4096 * page
        self.live.append(page)
        text = f"map: IOMMU: iova={start:#018x} - {start + 4096:#018x} paddr=0x0000000012345000 size=4096"
        self.line(text, cpu, ".....", after_us)

    def unmap(self, page, cpu=0, after_us=10, *, in_interrupt=False):
        start = TOP - 4096 * page
        self.live.remove(page)
        text = f"unmap: IOMMU: iova={start:#018x} - {start + 4096:#018x} size=4096 unmapped_size=4096"
        self.line(text, cpu, "d.h1." if in_interrupt else ".....", after_us)

    def timer(self, cpu=0, after_us=10):
        self.line("fq_flush_timeout: (fq_flush_timeout+0x0/0x60)", cpu, "..s1.", after_us)

    def flush(self, cpu=0, after_us=10):
        text = "s390_flush_iotlb_all: (s390_iommu_flush_iotlb_all+0x0/0x60) dom=0x8a5f0000"
        self.line(text, cpu, "..s1.", after_us)


@pytest.fixture
def compare(tmp_path):
    def compare(trace, domain, **options):
        # Neighbours that are never unmapped would be taken for one scatter-gather mapping.
        for page in [*trace.live]:
            trace.unmap(page, after_us=10_000_000)
        path = tmp_path / "made.trace"
        path.write_text("\n".join(["# tracer: nop", "#P:2", *trace.lines, ""]))
        return compare_addresses(read_capture(path), domain, TICK_NS, **options)

    return compare


def test_a_strict_domain_gives_again_what_was_just_freed(compare):
    trace = Trace()
    for page in (0, 1, 2):
        trace.map(page)
    trace.unmap(1)
    trace.map(1)
    trace.map(3)
    found = compare(trace, "DMA")
    assert (found.maps, found.identical, found.others) == (5, 5, {})


def test_a_lazy_domain_gives_nothing_again_before_its_flush(compare):
    trace = Trace()
    trace.map(0)
    trace.unmap(0)
    trace.map(1)
    trace.timer(after_us=1_000_000)
    trace.flush()
    trace.map(0, after_us=1000)
    assert compare(trace, "DMA-SQ").others == {}
    assert compare(trace, "DMA").identical < 3


def test_what_is_unmapped_while_a_flush_is_under_way_waits_for_the_next(compare):
    trace = Trace()
    trace.map(0)
    trace.map(1)
    trace.unmap(0)
    trace.timer(after_us=1_000_000)
    trace.flush()
    trace.unmap(1, cpu=1)
    trace.map(0, after_us=1000)
    trace.map(2)
    assert compare(trace, "DMA-SQ").others == {}


def test_two_allocations_in_the_other_order_are_told_as_that(compare):
    trace = Trace()
    trace.map(0)
    trace.map(2, cpu=0)
    trace.map(1, cpu=1)
    trace.map(3)
    found = compare(trace, "DMA")
    assert found.others == {SWAPPED: 2}
    assert found.identical == 2


def test_two_allocations_in_the_other_order_but_far_apart_are_not(compare):
    trace = Trace()
    trace.map(0)
    trace.map(2, cpu=0)
    trace.map(1, cpu=1, after_us=1000)
    assert compare(trace, "DMA").others == {IN_TREE: 2}


def test_a_page_freed_by_an_interrupt_between_allocation_and_line_is_told_as_that(compare):
    trace = Trace()
    trace.map(0)
    trace.map(1)
    trace.unmap(0)
    trace.unmap(1, in_interrupt=True)
    trace.map(0)
    trace.map(1)
    found = compare(trace, "DMA")
    assert found.others == {INTERRUPTED: 1}


def test_the_same_page_freed_by_the_task_itself_is_not_explained(compare):
    trace = Trace()
    trace.map(0)
    trace.map(1)
    trace.unmap(0)
    trace.unmap(1)
    trace.map(0)
    found = compare(trace, "DMA")
    assert found.as_dict()["unexplained"] == 1


@pytest.mark.parametrize(("after_us", "reason"), [(10, QUEUED_OTHERWISE), (1000, QUEUED)])
def test_a_page_queued_after_the_flush_that_freed_it_is_explained_when_they_are_near(compare, after_us, reason):
    trace = Trace()
    trace.map(0)
    trace.unmap(0)
    trace.map(1)
    trace.timer(after_us=1_000_000)
    trace.flush()
    trace.unmap(1, cpu=1, after_us=after_us)
    trace.map(1, after_us=1000)
    found = compare(trace, "DMA-SQ")
    assert found.others == {reason: 1}


def test_an_address_that_nothing_leads_to_is_unexplained_and_the_next_ones_are_identical(compare):
    trace = Trace()
    for page in (0, 1, 7, 8, 9):
        trace.map(page)
    found = compare(trace, "DMA")
    assert found.others == {IN_TREE: 1}
    assert found.identical_from_the_start == 2
    assert found.violations == 0


def test_phases_are_counted_by_themselves(compare):
    trace = Trace()
    trace.map(0)
    trace.line("tracing_mark_write: KCMARK p1.begin", 0, ".....", 10)
    trace.map(1)
    trace.map(7)
    assert compare(trace, "DMA").phases == [("(before)", 1, 1), ("p1", 2, 1)]


def test_an_aperture_that_does_not_hold_the_addresses_is_compared_without_harm(compare):
    trace = Trace()
    for page in (0, 1, 2):
        trace.map(page)
    trace.unmap(1)
    trace.map(1)
    found = compare(trace, "DMA", aperture=Aperture(1 << 32, (1 << 32) + (64 << 20)))
    assert found.identical_from_the_start == 0
    assert found.maps == 4


def test_addresses_out_of_reach_are_told(tmp_path):
    trace = Trace()
    trace.map(-(1 << 40) // 4096 * 8)
    path = tmp_path / "high.trace"
    path.write_text("\n".join([*trace.lines, ""]))
    capture = read_capture(path)
    assert aperture_of(capture) is None
    assert "reach higher" in compare_addresses(capture, "DMA", TICK_NS)
