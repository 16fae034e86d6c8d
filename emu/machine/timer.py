"""The timer process: fires the flush timer, and runs the allocator's depot workers, on behalf of the arming CPU."""

from __future__ import annotations

from typing import Any

from emu.iommu.domain import DMA_IOMMU, iommu_domain
from emu.iommu.flush_queue import fq_flush_timeout
from emu.iommu.iova import (
    IOVA_RANGE_CACHE_MAX_SIZE,
    free_cpu_cached_iovas,
    iova_depot_work_func,
    iova_rcache,
)
from emu.machine.context import control_t, cpu_t
from emu.machine.cpu import rest_while_unbound, wait_for_go
from emu.native.atomics import int64_t, read_once
from emu.native.compile import entry, jit, slow
from emu.native.record import address_of, deref, element
from emu.native.timer import wait_for_timer

_LONGEST_SLEEP_NS = 20_000_000


@jit
def _run_timer(cpu: Any, domain: Any, timer: int) -> None:
    if timer == address_of(domain.cookie, "fq_timer"):
        fq_flush_timeout(cpu, domain.cookie)
        return
    for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
        rcache = element(iova_rcache, domain.cookie.iovad.rcaches, order)
        if timer == address_of(rcache, "work"):
            iova_depot_work_func(cpu, rcache)
            return


@slow
def iova_cpuhp_dead(cpu: Any, domain: Any) -> None:
    """What the dead CPUs had cached goes back to the tree, as when a CPU is unplugged (iova_cpuhp_dead())."""
    if domain.dma_ops != DMA_IOMMU:
        return
    for slot in range(domain.cookie.num_possible_cpus):
        if read_once(element(int64_t, cpu.dead_generation, slot), "value"):
            free_cpu_cached_iovas(cpu, domain.cookie.iovad, slot)


@jit
def live_as_timer(cpu: Any) -> None:
    """The life of the timer; it ends when the CPUs have."""
    domain = deref(iommu_domain, cpu.domain)
    retired = deref(int64_t, cpu.retired)
    control = deref(control_t, cpu.control)
    offline = 0
    if wait_for_go(cpu):
        while not read_once(retired, "value"):
            rest_while_unbound(cpu)
            if read_once(control, "offline") != offline:
                offline = read_once(control, "offline")
                iova_cpuhp_dead(cpu, domain)
            timer = wait_for_timer(cpu, _LONGEST_SLEEP_NS)
            if timer:
                _run_timer(cpu, domain, timer)
    cpu.finished = 1


@entry
def timer_main(context: int) -> int:
    """Process of the timer."""
    live_as_timer(deref(cpu_t, context))
    return 0
