"""What becomes of a device's accesses, one by one, and while the load runs."""

import pytest

from emu.hypervisor.functions import function_of
from emu.hypervisor.iotlb import IOTLB_SETS, IOTLB_WAYS
from emu.hypervisor.state import hypervisor_t
from emu.iommu.domain import iommu_domain
from emu.machine.context import PHYS_SHIFT, SLOT_FREE, SLOT_MAPPED, cpu_t
from emu.machine.device import device_t, dma_access
from emu.native.compile import compile_entries, entry
from emu.native.record import deref
from tests.iommu.harness import History
from tests.machine.machines import run

COUNTS = ("live", "faults", "unmapping", "stale", "stale_to_others", "undecided")


@entry
def access_once(context, device, pfn):
    cpu = deref(cpu_t, context)
    hv = deref(hypervisor_t, cpu.hypervisor)
    dma_access(cpu, deref(device_t, device), hv, function_of(hv, 0), deref(iommu_domain, cpu.domain), pfn)
    return 0


class Device(History):
    """A history with a device, whose accesses are made one by one."""

    def __init__(self, domain, *, shadows=True, **options):
        compile_entries([access_once])
        super().__init__(domain, hypervisor={"shadows": shadows}, machine={"devices": 1}, aperture_mb=16, **options)
        self.device = self.layout.segment["devices"][0]
        self.iotlb = self.layout.segment["iotlbs"][0]

    def access(self, pfn):
        """What became of it: the name of the counter, or of the violation."""
        before = [int(self.device[name]) for name in COUNTS]
        violations = self.violations
        access_once(self.context, self.layout.segment.address("devices"), pfn)
        changed = [name for name, count in zip(COUNTS, before, strict=True) if self.device[name] != count]
        return changed or ["violation"] * (self.violations - violations)

    def put_back(self, pfn, pte):
        """An entry that an invalidation has missed."""
        self.iotlb.entries[(pfn & (IOTLB_SETS - 1)) * IOTLB_WAYS] = (pfn + 1, pte)


@pytest.fixture(params=[True, False], ids=["shadow", "no shadow"])
def lazy(request):
    with Device("DMA-FQ", shadows=request.param) as history:
        yield history


def test_what_is_mapped_is_reached_and_what_never_was_is_not(lazy):
    pfn = lazy.map()
    assert lazy.access(pfn) == ["live"]
    assert lazy.access(pfn - 1) == ["faults"]


def test_what_is_unmapped_lazily_is_reached_until_the_flush(lazy):
    pfn = lazy.map()
    lazy.access(pfn)
    lazy.unmap(pfn)
    assert lazy.access(pfn) == ["stale"]
    lazy.fire_flush_timer()
    assert lazy.access(pfn) == ["faults"]
    assert lazy.violations == 0


def test_without_a_shadow_only_what_the_iotlb_holds_is_reached_after_its_unmap():
    with Device("DMA-FQ", shadows=False) as history:
        pfn = history.map()
        history.unmap(pfn)
        assert history.access(pfn) == ["faults"]


def test_what_is_unmapped_strictly_is_not_reached():
    with Device("DMA") as history:
        pfn = history.map(2)
        assert history.access(pfn) == history.access(pfn + 1) == ["live"]
        history.unmap(pfn, 2)
        assert history.access(pfn) == history.access(pfn + 1) == ["faults"]


def test_memory_that_another_mapping_has_by_then_is_counted_apart(lazy):
    pfn = lazy.map(phys_pfn=1 << PHYS_SHIFT)
    lazy.access(pfn)
    lazy.unmap(pfn)
    assert lazy.access(pfn) == ["stale"]
    slot = lazy.layout.segment["slots"][0]
    slot.pfn, slot.pages, slot.state = pfn - 100, 1, SLOT_MAPPED
    assert lazy.access(pfn) == ["stale", "stale_to_others"]


def test_until_the_unmap_returns_nothing_is_stale(lazy):
    pfn = lazy.map(phys_pfn=1 << PHYS_SHIFT)
    slot = lazy.layout.segment["slots"][0]
    slot.pfn, slot.pages, slot.state = 0, 1, SLOT_MAPPED
    lazy.access(pfn)
    lazy.unmap(pfn)
    assert lazy.access(pfn) == ["unmapping"]
    slot.state = SLOT_FREE
    assert lazy.access(pfn) == ["stale"]


def test_an_entry_that_a_flush_has_missed_is_a_violation(lazy):
    pfn = lazy.map()
    pte = lazy.pte(pfn)
    lazy.unmap(pfn)
    lazy.flush()
    # Still on the queue, though the flush has ended its reach.
    lazy.put_back(pfn, pte)
    assert lazy.access(pfn) == ["violation"]
    lazy.free_rings()
    lazy.put_back(pfn, pte)
    assert lazy.access(pfn) == ["violation"]
    assert lazy.found("stale_after_flush") == 2


def test_an_old_entry_to_what_has_been_handed_out_again_is_a_violation(lazy):
    pfn = lazy.map(phys_pfn=1 << 20)
    pte = lazy.pte(pfn)
    lazy.unmap(pfn)
    lazy.fire_flush_timer()
    assert lazy.map(phys_pfn=1 << 21) == pfn
    lazy.put_back(pfn, pte)
    assert lazy.access(pfn) == ["violation"]
    assert lazy.found("stale_after_reuse") == 1


def test_a_page_that_is_handed_out_and_not_yet_mapped_is_undecided(lazy):
    pfn = lazy.alloc()
    lazy.put_back(pfn, 1 << 30)
    assert lazy.access(pfn) == ["undecided"]


def test_a_range_flush_leaves_the_iotlb_its_other_entries():
    with Device("DMA") as history:
        pfns = [history.map() for _ in range(3)]
        for pfn in pfns:
            history.access(pfn)
        history.unmap(pfns[1])
        tags = set(history.iotlb.entries["tag"]) - {0}
        assert tags == {pfns[0] + 1, pfns[2] + 1}


# While the load runs.


@pytest.mark.parametrize("preset", ["kvm", "lpar"])
@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict"])
def test_devices_reach_unmapped_pages_in_lazy_domains_and_nothing_they_must_not(domain, preset):
    options = {"machine_cpus": 2, "machine_devices": 2, "machine_dma_ns": 500.0, "machine_engine": "sim"}
    result = run(domain, preset=preset, machine_seconds=0.01, hypervisor_intercept_ns=4000.0, **options).run
    devices = result["exposure"]["devices"]
    assert result["violations"] == 0
    assert devices["live"] > 1000
    if domain in ("DMA", "s390-strict"):
        assert 0 < devices["unmapping"] < 0.05 * devices["accesses"]
        assert devices["stale"] == 0
    else:
        assert devices["stale"] > 0.05 * devices["accesses"] or preset == "lpar"
    assert devices["accesses"] == sum(devices[name] for name in ("live", "faults", "unmapping", "stale", "undecided"))
    assert devices["stale_to_others"] <= devices["stale"]


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_real_devices_do_dma_beside_real_cpus(engine):
    outcome = run("DMA-SQ", machine_cpus=2, machine_devices=2, machine_engine=engine, machine_seconds=0.3)
    assert outcome.died is None
    assert outcome.run["violations"] == 0
    assert outcome.run["exposure"]["devices"]["stale"] > 0
    assert [row["role"] for row in outcome.run["processes"]][-2:] == ["device 0", "device 1"]


def test_devices_rest_while_the_driver_is_unbound():
    timeline = [{"at_s": 0.01, "driver": "unbind"}, {"at_s": 0.02, "driver": "bind"}]
    options = {"machine_engine": "sim", "machine_devices": 1, "machine_dma_ns": 500.0}
    result = run("DMA-SQ", machine_cpus=2, machine_seconds=0.05, machine_timeline=timeline, **options).run
    assert [switch["errno"] for switch in result["switches"]] == [None, None]
    assert result["violations"] == 0
    assert result["exposure"]["devices"]["stale"] > 0


@pytest.mark.parametrize(("bugs", "is_found"), [([], False), (["reuse-unflushed"], True)])
def test_what_linux_reused_too_early_up_to_6_6_is_found(bugs, is_found):
    options = {"machine_engine": "sim", "machine_devices": 1, "hypervisor_mapping_limit": 1000}
    result = run(
        "s390-lazy",
        machine_cpus=4,
        machine_seconds=0.05,
        hypervisor_walk_ns=4.0,
        hypervisor_absent_entries="count",
        domain_bugs=bugs,
        **options,
    ).run
    assert result["flushes"]["no_resources"] > 5
    assert (result["violations_by_kind"]["given_back_unflushed"] > 0) == is_found
    assert bool(result["first_violations"]) == is_found
