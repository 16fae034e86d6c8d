"""RPCIT, Refresh PCI Translations: how an s390 guest tells its hypervisor that translations have changed.

A guest that executes it traps: here its CPU posts a request and sleeps until the hypervisor has served it. Requests
queue in FIFO order by ticket. With `service = "inline"` the CPU serves its own request under the hypervisor's lock
instead, as KVM does, and waits for its turn awake, as it would for firmware or hardware. With `service = "cmdq"` it is
an SMMUv3 that is asked, by commands in its queue. The address and length in the request are in pages. Where
`queue_limit` requests wait already, another is not queued but answered busy at once.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.arm_smmu_v3 import flush_by_commands
from emu.hypervisor.doorbell import ring_doorbell
from emu.hypervisor.functions import NO_FUNCTION, function_number, function_of
from emu.hypervisor.service import serve_request
from emu.hypervisor.state import (
    NO_TICKET,
    REQUEST_DONE,
    REQUEST_IDLE,
    REQUEST_POSTED,
    REQUEST_WAITERS,
    RPCIT_BUSY,
    RPCIT_INSUFFICIENT_RESOURCES,
    RPCIT_NOT_SERVED,
    RPCIT_OK,
    hypervisor_t,
    request_t,
)
from emu.hypervisor.turns import let_next_try, take_turn
from emu.iommu.stages import STAGE_REQUEST, enter_stage, leave_stage, note_request
from emu.iommu.tracepoints import EVENT_RPCIT, EVENT_RPCIT_DONE
from emu.native.atomics import cmpxchg, fetch_add, int64_t, read_once, smp_store_release, write_once
from emu.native.compile import inline, slow
from emu.native.events import emit
from emu.native.histogram import record_value
from emu.native.lock import SLOT_BITS, spin_lock_polling, spin_unlock
from emu.native.record import address_of, deref, element
from emu.native.time import begin_operation, now_ns, now_ticks, relax
from emu.native.wait import is_aborted, wait_on
from emu.oracle.pages import note_own_flush

__all__ = ["RPCIT_BUSY", "RPCIT_INSUFFICIENT_RESOURCES", "RPCIT_NOT_SERVED", "RPCIT_OK", "rpcit"]

_SLEEP_NS = 200_000_000
_LONGEST_NS = (1 << 31) - 1


@slow
def rpcit(cpu: Any, fh: int, start_pfn: int, pages: int, is_global: bool) -> int:
    """Have the hypervisor look at a range of the guest's table for the function of a handle.

    Returns:
        An answer, RPCIT_*; RPCIT_NOT_SERVED when the machine stops.
    """
    # Also on virtual clocks requests queue in the order of time.
    begin_operation(cpu)
    hv = deref(hypervisor_t, cpu.hypervisor)
    request = deref(request_t, cpu.request)
    request.fh = fh
    request.start_pfn = start_pfn
    request.pages = pages
    request.is_global = is_global
    request.posted_ns = now_ns(cpu)
    request.flush_number = request.flushed = 0
    request.wait_ns = request.service_ns = request.walked = request.changed = 0
    is_noted = cpu.records != 0 or (is_global and cpu.events != 0)
    around = enter_stage(cpu, STAGE_REQUEST)
    if is_noted:
        emit(cpu, EVENT_RPCIT, start_pfn, -pages if is_global else pages, now_ticks(cpu))
    answer = _have_served(cpu, hv, request)
    leave_stage(cpu, around)
    note_request(cpu, request.wait_ns, request.service_ns)
    if is_noted:
        _note_answer(cpu, request)
    if answer != RPCIT_BUSY:
        _count_answer(cpu, request, is_global)
    number = function_number(hv, fh)
    oracle = function_of(hv, number).oracle if number != NO_FUNCTION else 0
    if oracle:
        # A flush of another function's table is none of this one's.
        served_by = request.flush_number if request.flushed == oracle else 0
        note_own_flush(cpu, oracle, start_pfn, start_pfn + pages, served_by)
    return answer


@inline
def _count_answer(cpu: Any, request: Any, is_global: bool) -> None:
    cpu.ctrs.requests += 1
    cpu.ctrs.request_wait_ns += request.wait_ns
    cpu.ctrs.request_service_ns += request.service_ns
    if is_global:
        record_value(cpu.flush_histogram, now_ns(cpu) - request.posted_ns)


@slow
def _note_answer(cpu: Any, request: Any) -> None:
    times = min(request.wait_ns, _LONGEST_NS) << 32 | min(request.service_ns, _LONGEST_NS)
    emit(cpu, EVENT_RPCIT_DONE, request.walked << 32 | request.changed, times, now_ticks(cpu))


@inline
def _have_served(cpu: Any, hv: Any, request: Any) -> int:
    if hv.is_inline:
        return _serve_oneself(cpu, hv, request)
    if hv.cmdq:
        return flush_by_commands(cpu, hv, request)
    # Said before a place in the queue is taken: who finds it empty knows whom to wait for, or who has died.
    request.ticket = NO_TICKET
    write_once(request, "state", REQUEST_POSTED)
    ticket = _take_ticket_if_room(hv) if hv.queue_limit else fetch_add(hv, "tail", 1)
    if ticket < 0:
        write_once(request, "state", REQUEST_IDLE)
        return RPCIT_BUSY
    _post(cpu, hv, request, ticket)
    return _wait_until_served(cpu, hv, request)


@slow
def _take_ticket_if_room(hv: Any) -> int:
    """The next place in the queue, or -1 when as many wait as may."""
    while True:
        tail = read_once(hv, "tail")
        # Read after the tail, and it only grows: when the exchange succeeds, no more than this are waiting.
        if tail - read_once(hv, "head") >= hv.queue_limit:
            return -1
        if cmpxchg(hv, "tail", tail, tail + 1) == tail:
            return tail


@inline
def _serve_oneself(cpu: Any, hv: Any, request: Any) -> int:
    ticket = take_turn(cpu, hv)
    if ticket < 0:
        return RPCIT_BUSY
    spin_lock_polling(cpu, hv.lock)
    let_next_try(cpu, hv, ticket)
    serve_request(cpu, hv, request)
    spin_unlock(cpu, hv.lock)
    return request.status


@inline
def _post(cpu: Any, hv: Any, request: Any, ticket: int) -> None:
    request.ticket = ticket
    # Release: the request is written before its slot can be found. Pairs with the acquire in take_request().
    smp_store_release(element(int64_t, hv.ring, ticket & hv.ring_mask), "value", ticket << SLOT_BITS | (cpu.slot + 1))
    ring_doorbell(cpu, hv)


@inline
def _wait_until_served(cpu: Any, hv: Any, request: Any) -> int:
    for _ in range(hv.guest_spins):
        # Acquire (cmpxchg below does as much): the shadow table is updated before the request is done.
        if read_once(request, "state") == REQUEST_DONE:
            break
        relax(cpu)
    while True:
        state = cmpxchg(request, "state", REQUEST_POSTED, REQUEST_POSTED | REQUEST_WAITERS)
        if state == REQUEST_DONE:
            return request.status
        if is_aborted(cpu):
            return RPCIT_NOT_SERVED
        wait_on(cpu, address_of(request, "state"), REQUEST_POSTED | REQUEST_WAITERS, _SLEEP_NS)
