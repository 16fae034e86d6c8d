"""The machine that is explored: the real layout and the real functions that fill it, as small as the bounds say.

Before anything is explored the CPUs map what their programs will unmap, so that every run begins with a machine at
work. The segment then stays as it is; what a run writes lies over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from emu.config import Config, load
from emu.explore.books import Books, Iova, State
from emu.explore.bounds import Bounds
from emu.explore.memory import PRIVATE, SHARED, STATISTIC, Overlay, Records
from emu.explore.schedule import Schedule
from emu.explore.steps import EXPLORED, FOR_EVER_NS, explored
from emu.explore.watching import watched
from emu.explore.world import Cpu, World
from emu.hypervisor.state import function_t, hypervisor_t, request_t, server_t
from emu.iommu import dma, flush_queue, group, iova
from emu.iommu.domain import DOMAIN_TYPES, iommu_domain
from emu.iommu.flush_queue import iommu_dma_cookie, iova_fq
from emu.iommu.s390_iommu import s390_iommu_unmap_pages
from emu.machine.context import context_type, cpu_t
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine
from emu.machine.policy import policy_of
from emu.native.record import deref
from emu.native.timer import TIMER_IDLE, TIMER_PENDING, timer_t, wait_for_timer
from emu.workload.program import Program, Workload, op_t

_STATISTICS = {
    *((iova_fq.names, name) for name in ("queued", "total_depth", "max_depth")),
    (iommu_dma_cookie.names, "fq_flush_finished_at"),
    (hypervisor_t.names, "free_at_ns"),
    *((request_t.names, name) for name in ("wait_ns", "service_ns", "walked", "changed")),
}
"""Fields of shared records that the emulated kernel writes and never decides by."""

_PHYS_PFN = 1 << 12


def _config(bounds: Bounds) -> Config:
    overrides: list[tuple[str, str, Any]] = [
        ("machine", "cpus", len(bounds.programs)),
        ("machine", "check", False),
        ("domain", "types", [bounds.domain]),
        ("domain", "aperture_start", 0),
        ("domain", "aperture_mb", 1),
        ("domain", "bugs", list(bounds.bugs)),
        ("hypervisor", "service", "inline"),
        ("hypervisor", "servers", 1),
        # Clocks stand: a flush is as long as whatever the others do meanwhile.
        *(("hypervisor", cost, 0.0) for cost in ("intercept_ns", "walk_ns", "change_ns")),
    ]
    if bounds.switch:
        overrides.append(("machine", "timeline", [{"at_s": 0.1, "type": bounds.switch}]))
    if {bounds.domain, bounds.switch} & {"DMA-FQ", "DMA-SQ"}:
        overrides += [("domain", "fq_size", bounds.fq_size), ("domain", "on_overrun", bounds.on_overrun)]
    if bounds.policy:
        overrides.append(("domain", "policy", bounds.policy))
    return load(preset=bounds.preset, overrides=overrides)


class Machine:
    """A machine to explore.

    Args:
        bounds: how small it is, and what it does.

    Attributes:
        world: its CPUs. books: what is kept of them. records: its memory. policy: what its queue asks, or None.

    Raises:
        ConfigError: the bounds, or the policy in them, are wrong.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        empty = Program(np.zeros(0, op_t), 0)
        workload = Workload("explore", [empty] * len(bounds.programs), 1)
        config = _config(bounds)
        self.policy = policy_of(config)
        domain_type: Any = bounds.domain
        self.layout = Layout(config, domain_type, workload, real_time=False, policy=self.policy)
        # Nobody else maps it, and no way out must leave it behind.
        self.layout.segment.unlink()
        self._shrink()
        opening = self._open()
        self.world = World(Overlay(self.layout.segment), bounds.ordering)
        # By its first field the steps of `emu.native` know that a context's CPU is explored.
        form_of = self.policy.context_type if self.policy else context_type
        self._explored_cpu_t = form_of(EXPLORED)
        if self.policy:
            self.world.told_files.add(str(self.policy.source.path))
        self.records = Records(self._regions(), _STATISTICS, self.world.load, self.world.store)
        at = self.layout.segment.address
        domain = self.records.at(iommu_domain, at("domain"))
        function: Any = self.records.at(function_t, at("functions"))
        shadow = function.shadow if self.layout.config.hypervisor.shadows else None
        self.domain: Any = domain
        self.books = Books(self.world, self.records, domain, shadow, opening)
        self.world.watcher = self.books
        self._add_cpus()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """While this machine may run: interpreted code is explored, and the books are told."""
        with _small_magazines(self.bounds), explored(self.world, self.records), watched(self.world, self.books):
            yield

    def show(self, schedule: Schedule) -> None:
        """Run a schedule, and have the world write it down."""
        self.world.everywhere = True
        for offset in schedule.visible:
            self.world.places.make_visible(self.layout.segment.base + offset)
        with self.ready():
            self.world.run(schedule.script(), log=True)

    # --- before -----------------------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        domain = self.layout.segment["domain"][0]
        domain.s390.aperture_pages = self.bounds.aperture_pages
        domain.dma_limit_pfn = self.bounds.aperture_pages - 1
        # Every step is told as it is; nothing is noted beside that.
        self.layout.segment["contexts"]["events"] = 0

    def _open(self) -> dict[int, Iova]:
        """Make the domain and map what will be unmapped."""
        segment, opening = self.layout.segment, {}
        self.owned: list[list[tuple[int, int]]] = []
        with _small_magazines(self.bounds):
            init_machine(segment.address("contexts", self.layout.supervisor))
            domain = deref(iommu_domain, segment.address("domain"))
            for number, count in enumerate(self.bounds.mapped_before):
                cpu = deref(cpu_t, segment.address("contexts", number))
                only_queued = "queue" in self.bounds.programs[number]
                self.owned.append([])
                for i in range(count):
                    pages = self.bounds.granule
                    pfn = int(dma.dma_map(cpu, domain, _PHYS_PFN * (number + 1) + i * pages, pages, 0, 1))
                    self.owned[-1].append((pfn, pages))
                    opening[pfn] = Iova(State.MAPPED, pages)
                    if only_queued:
                        s390_iommu_unmap_pages(cpu, domain.s390, pfn, pages)
                        opening[pfn] = Iova(State.UNMAPPED, pages)
        return opening

    def _regions(self) -> list[tuple[int, int]]:
        segment, regions = self.layout.segment, [(0, SHARED)]
        private = ("requests", "control", "dead_generation", "timers", "teardown", "slots")
        counted = [name for name in segment.arrays if name.endswith("_histogram")]
        names = sorted(segment.arrays, key=segment.address)
        for name in names:
            first = segment.address(name)
            kind = PRIVATE if name in private else STATISTIC if name in counted else SHARED
            if name in ("contexts", "servers"):
                form, part = (cpu_t, "ctrs") if name == "contexts" else (server_t, "spares")
                outer, inner = (PRIVATE, STATISTIC) if name == "contexts" else (STATISTIC, PRIVATE)
                for slot in range(self.layout.contexts):
                    begin = segment.address(name, slot)
                    regions += [(begin, outer), (begin + form.fields[part][1], inner)]  # type: ignore[index]
            else:
                regions.append((first, kind))
        return regions

    # --- CPUs -------------------------------------------------------------------------------------------------------

    def _add_cpus(self) -> None:
        bounds, layout = self.bounds, self.layout
        for number, program in enumerate(bounds.programs):
            work = [getattr(self, f"_{operation}") for operation in program]
            self._add_cpu(f"CPU {number}", number, work)
        if bounds.timer:
            timer = self._add_cpu("timer", layout.timer, [self._fire] * bounds.timer)
            timer.may_begin = self._is_armed
        if bounds.sleeper:
            self._add_cpu("timer", layout.timer, [self._sleep])
        if bounds.switch:
            self._add_cpu("sysfs", layout.supervisor, [self._store_type])

    def _add_cpu(self, name: str, slot: int, work: list[Callable[[Cpu], None]]) -> Cpu:
        context = self.records.at(self._explored_cpu_t, self.layout.segment.address("contexts", slot))
        cpu = Cpu(len(self.world.cpus), name, context, work)
        if slot < len(self.owned):
            cpu.opening = tuple(self.owned[slot])
        self.world.cpus.append(cpu)
        return cpu

    def _map(self, cpu: Cpu) -> None:
        pages, phys_pfn = self.bounds.granule, _PHYS_PFN * (cpu.number + 1) + 256 + cpu.done * self.bounds.granule
        self.world.say(f"dma_map({pages} page{'s' * (pages > 1)})")
        pfn = dma.dma_map(cpu.context, self.domain, phys_pfn, pages, 0, 1)
        if pfn:
            self.books.mapped(pfn, pages, phys_pfn)
            cpu.owned.append((pfn, pages))

    def _unmap(self, cpu: Cpu) -> None:
        if cpu.owned:
            pfn, pages = cpu.owned.pop(0)
            self.world.say(f"dma_unmap(IOVA {pfn})")
            dma.dma_unmap(cpu.context, self.domain, pfn, pages)

    def _queue(self, cpu: Cpu) -> None:
        pfn, pages = cpu.owned.pop(0)
        self.world.say(f"queue_iova(IOVA {pfn})")
        flush_queue.queue_iova(cpu.context, self.domain.cookie, pfn, pages)

    def _store_type(self, cpu: Cpu) -> None:
        self.world.say(f"echo {self.bounds.switch} > type")
        sysfs = self.records.at(group.iommu_group, self.layout.segment.address("group"))
        group.iommu_group_store_type(cpu.context, sysfs, DOMAIN_TYPES[str(self.bounds.switch)])

    def _is_armed(self, _cpu: Cpu) -> bool:
        address = self.domain.cookie.fq_timer.address + timer_t.fields["state"][1]  # type: ignore[index]
        return self.world.memory.load(address, "q") == TIMER_PENDING

    def _sleep(self, cpu: Cpu) -> None:
        self.world.say("the timer's process waits for a timer")
        wait_for_timer(cpu.context, FOR_EVER_NS)

    def _fire(self, cpu: Cpu) -> None:
        timer = self.domain.cookie.fq_timer
        self.world.say("the timer fires")
        due = self.books.due_for_timer()
        cpu.context.id = timer.armed_by
        timer.state = TIMER_IDLE
        flush_queue.fq_flush_timeout(cpu.context, self.domain.cookie)
        self.books.timer_done(due)


@contextmanager
def _small_magazines(bounds: Bounds) -> Iterator[None]:
    """Have the allocator's constants be the bounds'."""
    before = iova.IOVA_MAG_SIZE, iova.IOVA_RANGE_CACHE_MAX_SIZE
    iova.IOVA_MAG_SIZE, iova.IOVA_RANGE_CACHE_MAX_SIZE = bounds.magazine, bounds.orders
    try:
        yield
    finally:
        iova.IOVA_MAG_SIZE, iova.IOVA_RANGE_CACHE_MAX_SIZE = before
