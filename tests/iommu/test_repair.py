"""A CPU dies at any line of a lock's section: others go on with what it held, and no address is in two places."""

import sys
from pathlib import Path

import pytest

from emu.iommu import iova
from emu.iommu.counters import iommu_ctrs
from emu.machine.recovery import Recovery
from emu.native.atomics import interpreted
from tests.iommu.harness import FREE_ALL_CACHED, MAP, UNMAP, History, history_call

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(not interpreted, reason="compiled code has no lines to die at"),
]

PACKAGE = Path(iova.__file__).resolve().parents[1]
MORTAL = {str(PACKAGE / name) for name in ("iommu/iova.py", "iommu/flush_queue.py", "native/rbtree.py")}
MOST_LOST = 3
"""Ranges that a CPU can have in hand."""


class DiedError(Exception):
    """The CPU is no more."""


class Reaper:
    """Counts the lines that are executed where a CPU can die, and ends it at one of them."""

    def __init__(self, at):
        self.lines, self.at = 0, at

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename not in MORTAL:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise DiedError
        return self

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


class Scene:
    """A domain with two CPUs: number 0, which is going to die, and number 1."""

    def __init__(self, domain, **options):
        options |= {"fq_size": 4} if "Q" in domain else {}
        self.history = History(domain, cpus=2, aperture_mb=16, iova_ranges=512, **options)
        self.layout = self.history.layout

    def call(self, cpu, call, a=0, b=0):
        return int(history_call(self.layout.segment.address("contexts", cpu), cpu, call, a, b, 0))

    def pairs(self, cpu, count):
        """So many mappings at a time, then unmapped."""
        pfns = [self.call(cpu, MAP, 1 << 20, 1) for _ in range(count)]
        for pfn in pfns:
            self.call(cpu, UNMAP, pfn, 1)


def full_magazines(scene):
    """The next free finds both magazines full."""
    scene.pairs(0, 6)


SCENES = {
    "ranges of the tree, into magazines and the depot": ("DMA", lambda _scene: None, lambda scene: scene.pairs(0, 8)),
    "out of the depot again": ("DMA", lambda scene: scene.pairs(0, 9), lambda scene: scene.pairs(0, 9)),
    "a single ring that is full": ("DMA-SQ", full_magazines, lambda scene: scene.pairs(0, 4)),
    "a ring of its own that is full": ("DMA-FQ", full_magazines, lambda scene: scene.pairs(0, 4)),
    "into the tree, where the depot is full": ("DMA", full_magazines, lambda scene: scene.pairs(0, 12)),
    "all caches emptied": ("DMA", lambda scene: scene.pairs(0, 9), lambda scene: scene.call(0, FREE_ALL_CACHED)),
}


DEPOTS = {"into the tree, where the depot is full": 1}


def dies_at(line, domain, before, act, depot_magazines=0):
    """Have CPU 0 die at that line of what it does; returns the lines it lived for, and checks what it leaves."""
    scene = Scene(domain, depot_magazines=depot_magazines)
    with scene.history:
        scene.pairs(1, 2)
        before(scene)
        try:
            with Reaper(line) as reaper:
                act(scene)
        except DiedError:
            pass
        recovery = Recovery(scene.layout, lambda _event, _values: None)
        recovery.bury(0, "died", 0.0, None)
        scene.pairs(1, 10)
        scene.call(1, FREE_ALL_CACHED)
        scene.pairs(1, 10)
        recovery.finish()
        left = scene.history.teardown()
        ctrs = scene.layout.segment["contexts"]["ctrs"]
        counted = {name: int(ctrs[name].sum()) for name in iommu_ctrs.names}
        where = f"line {reaper.lines}, {counted}, {left}"
        assert scene.history.violations == 0, where
        assert counted["lost_iovas"] == 0, where
        live = counted["maps"] - counted["unmaps"]
        assert abs(int(left.ranges_left) - live - counted["overrun_iovas"]) <= MOST_LOST, where
        assert abs(counted["reclaimed"] + left.queued + counted["overrun_iovas"] - counted["unmaps"]) <= MOST_LOST, (
            where
        )
        return reaper.lines


@pytest.mark.parametrize("name", SCENES)
def test_whatever_line_a_cpu_dies_at_nothing_is_handed_out_twice(name, monkeypatch):
    monkeypatch.setattr(iova, "IOVA_MAG_SIZE", 3)
    domain, before, act = SCENES[name]
    depot_magazines = DEPOTS.get(name, 0)
    lines = dies_at(0, domain, before, act, depot_magazines)
    assert lines > 50
    # A stride that has no factor in common with a loop's length meets other lines of it each time.
    for line in range(1, lines + 1, max(lines // 15, 1) | 1):
        dies_at(line, domain, before, act, depot_magazines)
