"""Captures of real kernels: replayed as fast as possible, the counters are the kernel's, exactly."""

from pathlib import Path

import pytest

from emu.capture.counters import read_counters
from emu.capture.ftrace import read_capture
from emu.workload.from_capture import capture_workload
from tests.machine.machines import run

pytestmark = pytest.mark.captures

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"
NAMES = [
    "s390x-6.12-lazy-nvme-2cpu",
    "s390x-6.12-lazy-vblk-2cpu",
    "s390x-6.12-lazy-vblk-smallaperture-2cpu",
    "s390x-6.12-strict-nvme-2cpu",
    "s390x-6.12-switch-nvme-2cpu",
    "x86-6.12-cachingmode-nvme-2cpu",
    "x86-6.12-lazy-nvme-2cpu",
    "x86-6.12-lazy-vblk-8cpu-overrun",
    "x86-6.12-strict-nvme-2cpu",
]
COMPARABLE = ("Mapped pages", "Unmapped pages", "Sync Map RPCITs")


@pytest.fixture(scope="module", params=NAMES)
def capture(request, captures_dir):
    """A capture with its load and the kernel's counters."""
    path = captures_dir / f"{request.param}.trace.gz"
    read = read_capture(path)
    return read, capture_workload(read), read_counters(path)


def sums(result, phases):
    """Counters of the whole run, or of the phases that the kernel's can be compared with."""
    if not phases:
        return result["counters"]
    chosen = [phase["counters"] for phase in result["phases"] if phase["name"] in phases]
    return {name: sum(counters[name] for counters in chosen) for name in result["counters"]}


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_replayed_counters_are_the_kernels(capture, engine):
    read, load, kernel = capture
    if engine == "threads" and len(read.mappings) > 100_000:
        pytest.skip("the largest captures are replayed by processes and on virtual clocks only, to save time")
    domain = "DMA-SQ" if kernel is None or kernel.is_lazy else "DMA"
    result = run(domain, workload=load, machine_engine=engine, machine_cpus=read.cpus, domain_aperture_mb=16384).run
    assert result["conservation"]["holds"], result["conservation"]
    assert result["violations"] == 0
    assert result["map_failures"] == 0
    maps = len(read.mappings)
    unmaps = int((read.mappings["unmap_event"] >= 0).sum())
    assert (result["maps"], result["unmaps"]) == (maps, unmaps)
    if kernel is None or not kernel.comparable:
        return
    mine = sums(result, kernel.comparable_phases)
    for name in COMPARABLE:
        assert mine[name] == kernel.comparable[name], name
    if domain == "DMA" and not kernel.is_lazy:
        assert mine["Sync RPCITs"] == kernel.comparable["Sync RPCITs"] or kernel.restarted
