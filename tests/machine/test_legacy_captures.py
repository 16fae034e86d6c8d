"""Captures of Linux 6.1, whose s390 had a DMA API of its own: replayed, as many RPCITs and pages as the kernel had."""

import pytest

from emu.capture.counters import read_counters
from emu.capture.ftrace import read_capture
from emu.workload.from_capture import capture_workload
from tests.iommu.harness import History
from tests.machine.machines import run

pytestmark = pytest.mark.captures

RPCITS = {"s390-lazy": 10021, "s390-strict": 20033}
"""One for each of 10021 maps, and strictly one for each of 10012 unmaps; the allocator never came round."""


@pytest.fixture(scope="module", params=["default", "strict"])
def recorded(request, captures_dir):
    """The kernel's counters, and the capture."""
    path = captures_dir / f"s390x-6.1-legacy-{request.param}-nvme-2cpu.trace.gz"
    kernel = read_counters(path)
    return kernel, read_capture(path, kept_pages=kernel.kept_pages)


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_rpcits_and_pages_are_the_kernels(recorded, engine):
    kernel, capture = recorded
    domain = kernel.domain_type
    result = run(domain, workload=capture_workload(capture), machine_engine=engine, machine_cpus=capture.cpus).run
    counters = result["counters"]
    assert (counters["Mapped pages"], counters["Unmapped pages"]) == (24938, 24893)
    assert kernel.comparable == {"Mapped pages": 24938, "Unmapped pages": 24893}
    assert counters["Global RPCITs"] + counters["Sync Map RPCITs"] + counters["Sync RPCITs"] == RPCITS[domain]
    assert kernel.refresh_operations == RPCITS[domain]
    assert (result["maps"], result["unmaps"], result["violations"]) == (10021, 10012, 0)
    assert result["conservation"]["holds"]
    by_phase = {phase["name"]: phase["counters"] for phase in result["phases"]}
    assert len(kernel.phases) == 7
    for phase in kernel.phases:
        running, settling = by_phase[phase.name], by_phase[f"{phase.name} (settling)"]
        assert {name: running[name] + settling[name] for name in phase.delta} == phase.delta, phase.name


def test_every_map_gets_the_address_that_the_kernel_gave_it(recorded):
    kernel, capture = recorded
    mappings, cpus = capture.mappings, capture.events["cpu"]
    maps = {int(event): index for index, event in enumerate(mappings["map_event"])}
    unmaps = {int(event): index for index, event in enumerate(mappings["unmap_event"]) if event >= 0}
    given = {}
    with History(kernel.domain_type, cpus=capture.cpus, aperture_start=1 << 32, aperture_mb=2048) as history:
        for event in sorted([*maps, *unmaps]):
            index = maps[event] if event in maps else unmaps[event]
            pages, cpu = int(mappings["pages"][index]), int(cpus[event])
            if event in maps:
                given[index] = history.map(pages, cpu=cpu)
            else:
                history.unmap(given[index], pages, cpu=cpu)
    assert [given[index] << 12 for index in range(len(mappings))] == mappings["start"].tolist()


def test_what_stayed_mapped_is_as_much_as_the_kernel_says(recorded):
    kernel, capture = recorded
    stayed = capture.mappings[capture.mappings["unmap_event"] < 0]
    assert int(stayed["pages"].sum()) == sum(kernel.kept_pages.values()) == 45
    assert len(stayed) == 9
