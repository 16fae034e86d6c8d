"""A machine without processes: one history of DMA calls, each on a named CPU, run step by step from Python."""

from emu.config import load
from emu.iommu.dma import dma_map, dma_unmap
from emu.iommu.domain import iommu_domain
from emu.iommu.flush_queue import fq_flush_timeout, iova_fq
from emu.iommu.iova import IOVA_RANGE_CACHE_MAX_SIZE, iova_depot_work_func, iova_rcache
from emu.machine.context import cpu_t
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine, teardown_machine
from emu.native.compile import compile_entries, entry
from emu.native.record import deref, element
from emu.native.timer import TIMER_IDLE, TIMER_PENDING
from emu.workload.program import Program, Workload, op_t

import numpy as np


@entry
def history_map(context, cpu_id, phys_pfn, pages):
    cpu = deref(cpu_t, context)
    cpu.id = cpu_id
    return dma_map(cpu, deref(iommu_domain, cpu.domain), phys_pfn, pages, 0, 1)


@entry
def history_unmap(context, cpu_id, pfn, pages):
    cpu = deref(cpu_t, context)
    cpu.id = cpu_id
    dma_unmap(cpu, deref(iommu_domain, cpu.domain), pfn, pages)
    return 0


@entry
def history_flush_timeout(context, cpu_id):
    cpu = deref(cpu_t, context)
    cpu.id = cpu_id
    fq_flush_timeout(cpu, deref(iommu_domain, cpu.domain).cookie)
    return 0


@entry
def history_depot_work(context, cpu_id, order):
    cpu = deref(cpu_t, context)
    cpu.id = cpu_id
    domain = deref(iommu_domain, cpu.domain)
    iova_depot_work_func(cpu, element(iova_rcache, domain.cookie.iovad.rcaches, order))
    return 0


ENTRIES = (
    init_machine,
    teardown_machine,
    history_map,
    history_unmap,
    history_flush_timeout,
    history_depot_work,
)


class History:
    """A domain and the calls made on it; flushes cost nothing, timers fire when told."""

    def __init__(self, domain="DMA", cpus=1, slots=1, **options):
        compile_entries(ENTRIES)
        free = [("hypervisor", key, value) for key, value in
                (("intercept_ns", 0.0), ("walk_ns", 0.0), ("change_ns", 0.0), ("service", "inline"))]
        overrides = [("machine", "cpus", cpus), ("domain", "types", [domain]), *free]
        overrides += [("domain", key, value) for key, value in options.items()]
        empty = Program(np.zeros(0, op_t), 0)
        self.layout = Layout(load(overrides=overrides), domain, Workload("history", [empty] * cpus, slots), real_time=False)
        self.context = self.layout.segment.address("contexts", self.layout.supervisor)
        self.ctrs = self.layout.segment["contexts"][self.layout.supervisor].ctrs
        self.domain = self.layout.segment["domain"][0]
        init_machine(self.context)

    def close(self):
        self.layout.segment.unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def map(self, pages=1, cpu=0, phys_pfn=1 << 20):
        return history_map(self.context, cpu, phys_pfn, pages)

    def unmap(self, pfn, pages=1, cpu=0):
        history_unmap(self.context, cpu, pfn, pages)

    def fire_flush_timer(self, cpu=0):
        self.domain.cookie.fq_timer.state = TIMER_IDLE
        history_flush_timeout(self.context, cpu)

    def pending_depot_works(self):
        rcaches = self.layout.segment["rcaches"]
        return [o for o in range(IOVA_RANGE_CACHE_MAX_SIZE) if rcaches[o].work.state == TIMER_PENDING]

    def run_depot_work(self, order):
        work = self.layout.segment["rcaches"][order].work
        work.state = TIMER_IDLE
        history_depot_work(self.context, int(work.armed_by), order)

    def rings(self):
        return self.layout.segment["rings"]

    def teardown(self):
        report = self.layout.segment["teardown"][0]
        teardown_machine(self.context, self.layout.segment.address("teardown"))
        return report
