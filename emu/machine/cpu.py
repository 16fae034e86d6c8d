"""The loop of an emulated CPU: runs its op program against the DMA API and measures each call."""

from __future__ import annotations

from typing import Any

from emu.iommu.counters import iommu_ctrs
from emu.iommu.dma import dma_map, dma_unmap
from emu.iommu.domain import iommu_domain
from emu.iommu.s390_iommu import int32_t
from emu.iommu.stages import STAGES_OF_MAP, STAGES_OF_UNMAP, begin_stages, end_stages
from emu.iommu.tracepoints import EVENT_MAP, EVENT_UNMAP, PAGES_BITS
from emu.machine.context import (
    PHYS_SHIFT,
    SLOT_FAILED,
    SLOT_FREE,
    SLOT_MAPPED,
    SLOT_STATE,
    SLOT_WAITERS,
    STOP,
    UNBOUND,
    control_t,
    cpu_t,
    mark_t,
    slot_t,
)
from emu.native.atomics import (
    barrier,
    cmpxchg,
    fetch_add,
    int64_t,
    read_once,
    smp_load_acquire,
    smp_store_release,
    xchg,
)
from emu.native.compile import entry, inline, jit, slow
from emu.native.events import emit
from emu.native.futex import EVERYONE
from emu.native.histogram import record_value
from emu.native.record import address_of, deref, element
from emu.native.time import begin_operation, now_ns, now_ticks, relax, spend_until
from emu.native.wait import wait_on, wake_up
from emu.workload.program import (
    OP_FAIL,
    OP_GIVE_UP,
    OP_MAP,
    OP_MARK,
    OP_SKIP_MAPPED,
    OP_UNMAP,
    OP_WAIT,
    op_t,
)

_SLOT_SPINS = 200
_SLEEP_NS = 200_000_000
"""Whoever stops the load wakes the sleepers; thousands that looked more often would be a load of their own."""
_NAP_NS = 10_000_000
_SEGMENT_BYTES = int32_t.itemsize
_COUNTERS = iommu_ctrs.itemsize // int64_t.itemsize


@slow
def wait_for_go(cpu: Any) -> bool:
    """Report ready and sleep until all start together; False when the machine is stopped before that."""
    control = deref(control_t, cpu.control)
    fetch_add(control, "ready", 1)
    while read_once(control, "go") == 0:
        if read_once(control, "stop"):
            return False
        wait_on(cpu, address_of(control, "go"), 0, _SLEEP_NS)
    return True


@slow
def rest_while_unbound(cpu: Any) -> bool:
    """Hold still while the driver is unbound; False when it is not, or when all stops before it is bound again."""
    control = deref(control_t, cpu.control)
    # Acquire: `unbinds` is read after it, as the supervisor has written it before.
    if smp_load_acquire(control, "stop") != UNBOUND:
        return False
    unbind = read_once(control, "unbinds")
    # Release: the supervisor sees all that this CPU has done before it works on the domain.
    smp_store_release(cpu, "rests", unbind)
    # Who slept through a binding takes part in the next unbinding from the start.
    while read_once(control, "stop") == UNBOUND and read_once(control, "unbinds") == unbind:
        wait_on(cpu, address_of(control, "go"), 1, _SLEEP_NS)
    # Acquire: what the supervisor has made of the domain is seen; it writes `stop` last.
    return smp_load_acquire(control, "stop") != STOP


@inline
def _in_state(slot: Any, free: bool) -> bool:
    # Acquire: what the other CPU wrote into the slot is seen. Pairs with the exchange in _hand_over().
    return ((smp_load_acquire(slot, "state") & SLOT_STATE) == SLOT_FREE) == free


@slow
def _wait_for_slot(cpu: Any, slot: Any, free: bool) -> bool:
    """Wait for another CPU to free or to fill a slot; False when the load stops first."""
    control = deref(control_t, cpu.control)
    for _ in range(_SLOT_SPINS):
        if _in_state(slot, free):
            return True
        relax(cpu)
    while not _in_state(slot, free):
        if read_once(control, "stop"):
            return False
        state = read_once(slot, "state")
        if ((state & SLOT_STATE) == SLOT_FREE) == free:
            continue
        if not state & SLOT_WAITERS and cmpxchg(slot, "state", state, state | SLOT_WAITERS) != state:
            continue
        wait_on(cpu, address_of(slot, "state"), state | SLOT_WAITERS, _SLEEP_NS)
    return True


@inline
def _hand_over(cpu: Any, slot: Any, state: int) -> None:
    if xchg(slot, "state", state) & SLOT_WAITERS:
        wake_up(cpu, address_of(slot, "state"), EVERYONE)


@slow
def _wait_until(cpu: Any, deadline_ns: int) -> bool:
    control = deref(control_t, cpu.control)
    while now_ns(cpu) < deadline_ns:
        if read_once(control, "stop"):
            return False
        spend_until(cpu, min(deadline_ns, now_ns(cpu) + _NAP_NS))
    return True


@slow
def _mark(cpu: Any, phase: int) -> None:
    mark = element(mark_t, cpu.marks, cpu.marks_done)
    mark.phase = phase
    mark.at_ns = now_ns(cpu)
    for i in range(_COUNTERS):
        element(int64_t, address_of(mark, "ctrs"), i).value = element(int64_t, address_of(cpu, "ctrs"), i).value
    cpu.marks_done += 1


@inline
def _map(cpu: Any, domain: Any, op: Any, slot: Any) -> None:
    segments = cpu.segments + op.arg * _SEGMENT_BYTES
    since = now_ticks(cpu)
    begin_stages(cpu, STAGES_OF_MAP, since)
    pfn = dma_map(cpu, domain, (op.slot + 1) << PHYS_SHIFT, op.pages, segments, op.nents)
    done = now_ticks(cpu)
    end_stages(cpu, done)
    record_value(cpu.map_histogram, done - since)
    if cpu.records:
        emit(cpu, EVENT_MAP, pfn, (done - since) << PAGES_BITS | int(op.pages), done)
    slot.pfn = pfn
    slot.pages = op.pages
    _hand_over(cpu, slot, SLOT_MAPPED if pfn else SLOT_FAILED)


@inline
def _unmap(cpu: Any, domain: Any, slot: Any) -> None:
    if (read_once(slot, "state") & SLOT_STATE) == SLOT_MAPPED:
        pfn = slot.pfn
        # Who looks after this CPU's death must not unmap it once more.
        slot.pfn = 0
        barrier()
        since = now_ticks(cpu)
        begin_stages(cpu, STAGES_OF_UNMAP, since)
        dma_unmap(cpu, domain, pfn, slot.pages)
        done = now_ticks(cpu)
        end_stages(cpu, done)
        record_value(cpu.unmap_histogram, done - since)
        if cpu.records:
            emit(cpu, EVENT_UNMAP, pfn, (done - since) << PAGES_BITS | int(slot.pages), done)
    _hand_over(cpu, slot, SLOT_FREE)


@inline
def _slot_holds(cpu: Any, number: int, state: int) -> bool:
    return (read_once(element(slot_t, cpu.slots, number), "state") & SLOT_STATE) == state


@slow
def _fail_slot(cpu: Any, number: int) -> bool:
    slot = element(slot_t, cpu.slots, number)
    if not _wait_for_slot(cpu, slot, True):
        return False
    _hand_over(cpu, slot, SLOT_FAILED)
    return True


@slow
def _do_other(cpu: Any, op: Any) -> int:
    """How many operations to go on by, this one included; 0 when the load stops first."""
    if op.code == OP_WAIT:
        return 1 if _wait_until(cpu, now_ns(cpu) + op.arg) else 0
    if op.code == OP_MARK:
        _mark(cpu, op.arg)
    elif op.code == OP_GIVE_UP and _slot_holds(cpu, op.arg, SLOT_FAILED):
        return 2 if _fail_slot(cpu, op.slot) else 0
    elif op.code == OP_SKIP_MAPPED and _slot_holds(cpu, op.slot, SLOT_MAPPED):
        return 1 + op.arg
    elif op.code == OP_FAIL:
        return 1 if _fail_slot(cpu, op.slot) else 0
    return 1


@jit
def run_program(cpu: Any) -> None:
    """Run the program on from where it is, until it ends, the load is stopped or the limit of pairs is reached."""
    domain = deref(iommu_domain, cpu.domain)
    control = deref(control_t, cpu.control)
    i = cpu.ops_done
    # Pairs are counted by their unmap, done or not: CPUs that wait for each other all stop at the same place.
    pairs = cpu.pairs_done
    while pairs < cpu.pair_limit and not read_once(control, "stop"):
        if i == cpu.op_count:
            if cpu.loop_start == cpu.op_count:
                break
            i = cpu.loop_start
        op = element(op_t, cpu.ops, i)
        begin_operation(cpu)
        if cpu.real_time and not _wait_until(cpu, cpu.started_ns + op.at_ns):
            break
        if op.code == OP_MAP:
            slot = element(slot_t, cpu.slots, op.slot)
            if not _in_state(slot, True) and not _wait_for_slot(cpu, slot, True):
                break
            _map(cpu, domain, op, slot)
        elif op.code == OP_UNMAP:
            slot = element(slot_t, cpu.slots, op.slot)
            if not _in_state(slot, False) and not _wait_for_slot(cpu, slot, False):
                break
            _unmap(cpu, domain, slot)
            pairs += 1
        else:
            steps = _do_other(cpu, op)
            if not steps:
                break
            i += steps
            continue
        i += 1
    cpu.ops_done = i
    cpu.pairs_done = pairs


@jit
def live_as_cpu(cpu: Any) -> None:
    """The life of an emulated CPU."""
    if wait_for_go(cpu):
        cpu.started_ns = now_ns(cpu)
        cpu.started_ticks = now_ticks(cpu)
        run_program(cpu)
        while rest_while_unbound(cpu):
            run_program(cpu)
        cpu.stopped_ticks = now_ticks(cpu)
        cpu.stopped_ns = now_ns(cpu)
    cpu.finished = 1


@entry
def cpu_main(context: int) -> int:
    """Process of an emulated CPU."""
    live_as_cpu(deref(cpu_t, context))
    return 0
