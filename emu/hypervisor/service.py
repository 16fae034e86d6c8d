"""Serving one RPCIT: walk the guest's table, bring the shadow table up to date, and take as long as that costs.

The walk and the changes are really done; the counts are real. The emulated time is intercept + inspected · walk +
changed · change, spent from the moment service starts; the work done here hides inside it.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.faults import jitter_ns
from emu.hypervisor.functions import NO_FUNCTION, function_number, function_of
from emu.hypervisor.iotlb import invalidate_iotlbs
from emu.hypervisor.state import (
    RPCIT_ERROR_RECOVER,
    RPCIT_FUNC_IN_ERR,
    RPCIT_INSUFFICIENT_RESOURCES,
    RPCIT_NOT_SERVED,
    RPCIT_OK,
    server_t,
)
from emu.iommu.io_pgtable import (
    ZPCI_PT_ENTRIES,
    calc_px,
    count_valid,
    dma_walk_cpu_trans,
    io_pgtable,
    page_table_of,
    pte_valid,
    segment_table_of,
)
from emu.native.atomics import fetch_add, int64_t, read_once, write_once
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_REQUEST
from emu.native.histogram import record_value
from emu.native.lock import spin_lock, spin_unlock
from emu.native.record import deref, element
from emu.native.time import charge, now_ns, spend_until
from emu.native.wait import is_aborted
from emu.oracle.pages import begin_flush, check_seen_invalid, end_flush, oracle_t

_PAGES_PER_SEGMENT_TABLE = 1 << 19
_STEP_NS = 20_000_000


@inline
def _pin(hv: Any) -> bool:
    """Make room for another mapping in the host; False when it can hold no more."""
    if fetch_add(hv, "mapped", 1) < hv.mapping_limit:
        return True
    fetch_add(hv, "mapped", -1)
    return False


@inline
def _shadow_entry(hv: Any, function: Any, entry: Any, pte: int) -> bool:
    """Bring one differing entry up to date; False when the host has no room for it."""
    was_mapped = pte_valid(entry.value)
    if pte_valid(pte) and not was_mapped:
        if not _pin(hv):
            return False
        function.mapped += 1
    if was_mapped and not pte_valid(pte):
        fetch_add(hv, "mapped", -1)
        function.mapped -= 1
    write_once(entry, "value", pte)
    return True


@jit
def _shadow_page_table(cpu: Any, hv: Any, function: Any, server: Any, guest: int, pfn: int, stop_pfn: int) -> int:
    """Compare one page table's entries with the shadow's and copy what differs. Returns how many were copied."""
    shadow = dma_walk_cpu_trans(function.shadow, server.spares, pfn)
    if shadow == 0:
        return 0
    changed = 0
    for px in range(calc_px(pfn), calc_px(pfn) + stop_pfn - pfn):
        pte = read_once(element(int64_t, guest, px), "value")
        entry = element(int64_t, shadow, px)
        if entry.value != pte:
            if function.oracle and pte_valid(entry.value) and pte_valid(pte):
                check_seen_invalid(cpu, function.oracle, pfn - calc_px(pfn) + px, entry.value, pte)
            if _shadow_entry(hv, function, entry, pte):
                changed += 1
            else:
                server.refused += 1
    return changed


@slow
def _walk_guest_table(cpu: Any, hv: Any, function: Any, server: Any, start_pfn: int, end_pfn: int) -> int:
    """Bring the shadow of a range of a function's table up to date, skipping absent tables.

    Returns:
        inspected << 32 | changed; what the host had no room for is in `server.refused`.
    """
    server.refused = 0
    pgtable = deref(io_pgtable, function.guest_table)
    inspected = changed = 0
    pfn = start_pfn
    while pfn < end_pfn:
        if segment_table_of(pgtable, pfn) == 0:
            pfn = (pfn | (_PAGES_PER_SEGMENT_TABLE - 1)) + 1
            continue
        stop_pfn = min(end_pfn, (pfn | (ZPCI_PT_ENTRIES - 1)) + 1)
        guest = page_table_of(pgtable, pfn)
        if guest:
            inspected += stop_pfn - pfn
            if hv.shadows:
                changed += _shadow_page_table(cpu, hv, function, server, guest, pfn, stop_pfn)
        pfn = stop_pfn
    return inspected << 32 | changed


@slow
def forget_unmapped(cpu: Any, hv: Any, function: Any, start_pfn: int, pages: int) -> None:
    """Bring a function's shadow up to date at no cost, as when a guest takes its table from a device; no CPU traps."""
    if hv.shadows:
        _walk_guest_table(cpu, hv, function, deref(server_t, cpu.server), start_pfn, start_pfn + pages)
    invalidate_iotlbs(function, start_pfn, pages)


@inline
def _look_at_guest_table(cpu: Any, hv: Any, function: Any, server: Any, request: Any) -> int:
    """Walk the requested range where a shadow or the cost depends on it: hardware only drops what it has cached."""
    if not (hv.shadows or hv.walk_ps):
        server.refused = 0
        return 0
    return _walk_guest_table(cpu, hv, function, server, request.start_pfn, request.start_pfn + request.pages)


@slow
def _answer_of_device(function: Any, request: Any) -> int:
    """RPCIT_OK, or why the device lets nothing be refreshed.

    An ISM device looks into the guest's table itself. A global flush shows it addresses that it has in use; that puts
    it into error, where it stays, as nobody resets it.
    """
    if function.device_in_error:
        return RPCIT_ERROR_RECOVER
    if request.is_global and count_valid(function.guest_table, request.start_pfn, request.pages):
        function.device_in_error = 1
        return RPCIT_FUNC_IN_ERR
    return RPCIT_OK


@inline
def _note_waiting(server: Any, request: Any, free_at_ns: int, started_ns: int) -> None:
    wait_ns = request.wait_ns = max(free_at_ns - request.posted_ns, 0)
    schedule_ns = max(started_ns - max(free_at_ns, request.posted_ns), 0)
    server.total_wait_ns += wait_ns
    server.max_wait_ns = max(server.max_wait_ns, wait_ns)
    server.total_schedule_ns += schedule_ns
    server.max_schedule_ns = max(server.max_schedule_ns, schedule_ns)
    record_value(server.wait_histogram, wait_ns)
    record_value(server.schedule_histogram, schedule_ns)


@slow
def _spend(cpu: Any, deadline_ns: int) -> None:
    """Let time pass in steps, so that a machine that is being stopped need not wait for a long flush."""
    abort = deref(int64_t, cpu.abort)
    while now_ns(cpu) < deadline_ns and not read_once(abort, "value"):
        spend_until(cpu, min(deadline_ns, now_ns(cpu) + _STEP_NS))


@slow
def _refresh_locked(cpu: Any, hv: Any, function: Any, server: Any, request: Any) -> int:
    """Bring the range up to date and set the answer. Returns walked << 32 | changed."""
    passes = counts = 0
    answer = _answer_of_device(function, request) if function.is_ism else RPCIT_OK
    if answer == RPCIT_OK:
        counts = _look_at_guest_table(cpu, hv, function, server, request)
        passes = 1
        if server.refused and (counts & 0xFFFFFFFF):
            # The first pass may have dropped what stood behind the entries it refused.
            counts += _look_at_guest_table(cpu, hv, function, server, request)
            passes = 2
        if server.refused:
            answer = RPCIT_INSUFFICIENT_RESOURCES
    request.status = answer
    walked = passes * request.pages if hv.absent_counts else counts >> 32
    return walked << 32 | (counts & 0xFFFFFFFF)


@slow
def _refresh(cpu: Any, hv: Any, function: Any, server: Any, request: Any) -> int:
    # The shadow table is one: what a server has just brought up to date, another must not overwrite with older entries.
    if hv.servers > 1:
        spin_lock(cpu, hv.lock)
    counts = _refresh_locked(cpu, hv, function, server, request)
    if hv.servers > 1:
        spin_unlock(cpu, hv.lock)
    if function.devices:
        invalidate_iotlbs(function, request.start_pfn, request.pages)
    return counts


@slow
def take_flush_up(cpu: Any, hv: Any, request: Any) -> None:
    """Do what a request asks for and take as long as that costs; `cpu.server` is the address of the server's record.

    In the oracle's books the flush has begun then, and not ended.
    """
    about = function_number(hv, request.fh)
    # Once all is stopped nobody waits for it any longer, and a walk may be long.
    if about == NO_FUNCTION or is_aborted(cpu):
        request.status = RPCIT_NOT_SERVED
        return
    function = function_of(hv, about)
    server = deref(server_t, cpu.server)
    started_ns = now_ns(cpu)
    free_at_ns = hv.free_at_ns if hv.is_inline else server.free_at_ns
    _note_waiting(server, request, free_at_ns, started_ns)
    number = begin_flush(deref(oracle_t, function.oracle)) if function.oracle else 0
    counts = _refresh(cpu, hv, function, server, request)
    walked, changed = counts >> 32, counts & 0xFFFFFFFF
    emulated_ns = hv.intercept_ns + (walked * hv.walk_ps + changed * hv.change_ps) // 1000
    if hv.faults.jitter_ns:
        emulated_ns += jitter_ns(hv, server.requests ^ request.start_pfn ^ cpu.slot << 32)
    _spend(cpu, started_ns + emulated_ns)
    request.flush_number = number
    request.flushed = function.oracle
    finished_ns = now_ns(cpu)
    server.requests += 1
    server.global_requests += request.is_global
    server.walked += walked
    server.changed += changed
    server.emulated_ns += emulated_ns
    server.busy_ns += finished_ns - started_ns
    request.service_ns = finished_ns - started_ns
    request.walked = walked
    request.changed = changed
    server.free_at_ns = finished_ns
    hv.free_at_ns = finished_ns


@inline
def end_of_flush(request: Any) -> None:
    """The flush that was done for a request has ended."""
    if request.flush_number and request.is_global:
        end_flush(deref(oracle_t, request.flushed), request.flush_number)


@slow
def serve_request(cpu: Any, hv: Any, request: Any) -> None:
    """Serve one request from its beginning to its end."""
    take_flush_up(cpu, hv, request)
    end_of_flush(request)
    charge(cpu, COST_REQUEST, 1)
