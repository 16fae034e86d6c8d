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
from emu.machine.ledger import work_for
from emu.native.atomics import int64_t, read_once
from emu.native.compile import entry, jit, slow
from emu.native.record import address_of, deref, element
from emu.native.timer import wait_for_timer

_LONGEST_SLEEP_NS = 20_000_000


@jit
def _run_timer(cpu: Any, functions: int, timer: int) -> None:
    """Do what a timer is for, in whichever function's domain it is."""
    for number in range(functions):
        cookie = element(iommu_domain, cpu.domain, number).cookie
        if timer == address_of(cookie, "fq_timer"):
            work_for(cpu, number)
            fq_flush_timeout(cpu, cookie)
            return
        if cookie.iovad.rcaches == 0:
            continue
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
            rcache = element(iova_rcache, cookie.iovad.rcaches, order)
            if timer == address_of(rcache, "work"):
                work_for(cpu, number)
                iova_depot_work_func(cpu, rcache)
                return


@slow
def iova_cpuhp_dead(cpu: Any, functions: int) -> None:
    """What the dead CPUs had cached goes back to the tree, as when a CPU is unplugged (iova_cpuhp_dead())."""
    for number in range(functions):
        domain = element(iommu_domain, cpu.domain, number)
        if domain.dma_ops != DMA_IOMMU:
            continue
        work_for(cpu, number)
        for slot in range(domain.cookie.num_possible_cpus):
            if read_once(element(int64_t, cpu.dead_generation, slot), "value"):
                free_cpu_cached_iovas(cpu, domain.cookie.iovad, slot)


@jit
def live_as_timer(cpu: Any) -> None:
    """The life of the timer; it ends when the CPUs have."""
    retired = deref(int64_t, cpu.retired)
    control = deref(control_t, cpu.control)
    functions = control.functions
    offline = 0
    if wait_for_go(cpu):
        while not read_once(retired, "value"):
            rest_while_unbound(cpu)
            if read_once(control, "offline") != offline:
                offline = read_once(control, "offline")
                iova_cpuhp_dead(cpu, functions)
            timer = wait_for_timer(cpu, _LONGEST_SLEEP_NS)
            if timer:
                _run_timer(cpu, functions, timer)
    cpu.finished = 1


@entry
def timer_main(context: int) -> int:
    """Process of the timer."""
    live_as_timer(deref(cpu_t, context))
    return 0
