"""The hypervisor's process: takes requests in FIFO order and serves them, by k servers."""

from __future__ import annotations

from typing import Any

from emu.hypervisor.doorbell import wait_for_work
from emu.hypervisor.faults import complete, complete_with_faults, deliver_late
from emu.hypervisor.functions import function_number
from emu.hypervisor.service import serve_request
from emu.hypervisor.state import REQUEST_POSTED, REQUEST_WAITERS, hypervisor_t, request_t, server_t
from emu.native.atomics import cmpxchg, int64_t, read_once, smp_load_acquire, write_once
from emu.native.compile import inline, slow
from emu.native.lock import SLOT_BITS, SLOT_MASK
from emu.native.record import deref, element
from emu.native.wait import is_aborted


@inline
def take_request(hv: Any, server: Any) -> int:
    """The word of the queue that names the first request in it; 0 when there is none, or another server takes it.

    The word is noted in the server's record before the request is taken: should this process die now, its successor
    knows what it had in hand.
    """
    head = read_once(hv, "head")
    # Acquire: pairs with the release in rpcit's _post().
    posted = smp_load_acquire(element(int64_t, hv.ring, head & hv.ring_mask), "value")
    # What was taken stays in its place, under its old ticket: a server that is slow to go on cannot harm a later one.
    if posted & SLOT_MASK == 0 or posted >> SLOT_BITS != head:
        return 0
    write_once(server, "serving", posted)
    if cmpxchg(hv, "head", head, head + 1) != head:
        write_once(server, "serving", 0)
        return 0
    return posted


@inline
def is_waiting(request: Any, posted: int) -> bool:
    """Whether the guest still waits for what this word of the queue stands for."""
    return request.ticket == posted >> SLOT_BITS and (read_once(request, "state") & ~REQUEST_WAITERS) == REQUEST_POSTED


@slow
def _serve_one(cpu: Any, hv: Any, server: Any, posted: int) -> None:
    request = element(request_t, hv.requests, (posted & SLOT_MASK) - 1)
    if not is_waiting(request, posted):
        # In a machine that is being stopped guests do not wait to the end.
        if not is_aborted(cpu):
            server.not_served += 1
        return
    # What it finds is that function's affair; of an unknown one it serves nothing.
    cpu.function = max(function_number(hv, request.fh), 0)
    serve_request(cpu, hv, request)
    if hv.faults.is_on:
        complete_with_faults(cpu, hv, server, posted)
    else:
        complete(cpu, request)


@slow
def _serve_again(cpu: Any, hv: Any, server: Any) -> None:
    """What a predecessor had in hand when it died, unless it is still in the queue or its guest has its answer.

    An RPCIT may be served twice: it brings a table up to date.
    """
    posted = server.serving
    if posted == 0 or read_once(hv, "head") <= posted >> SLOT_BITS:
        return
    if is_waiting(element(request_t, hv.requests, (posted & SLOT_MASK) - 1), posted):
        server.served_again += 1
        _serve_one(cpu, hv, server, posted)


@slow
def serve(cpu: Any) -> None:
    """Serve requests until the machine has stopped; every request posted before that is served."""
    hv = deref(hypervisor_t, cpu.hypervisor)
    server = deref(server_t, cpu.server)
    retired = deref(int64_t, cpu.retired)
    _serve_again(cpu, hv, server)
    while True:
        last_round = read_once(retired, "value") != 0
        if hv.faults.is_on:
            deliver_late(cpu, hv, server)
        posted = 0 if read_once(hv, "is_dead") else take_request(hv, server)
        if posted:
            queued = max(read_once(hv, "tail") - read_once(hv, "head"), 0)
            server.total_queued += queued
            server.max_queued = max(server.max_queued, queued)
            _serve_one(cpu, hv, server, posted)
            write_once(server, "serving", 0)
        elif last_round:
            return
        else:
            wait_for_work(cpu, hv)
