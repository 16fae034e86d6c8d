"""The hypervisor's process: takes requests in FIFO order and serves them, by k servers."""

from __future__ import annotations

from typing import Any

from emu.hypervisor.service import serve_request
from emu.hypervisor.state import REQUEST_DONE, REQUEST_WAITERS, hypervisor_t, request_t, server_t
from emu.native.atomics import cmpxchg, fetch_add, int64_t, read_once, smp_load_acquire, smp_mb, xchg
from emu.native.compile import inline, slow
from emu.native.futex import EVERYONE
from emu.native.lock import SLOT_BITS, SLOT_MASK
from emu.native.record import address_of, deref, element
from emu.native.time import now_ns, relax
from emu.native.wait import wait_on, wake_up

_SLEEP_NS = 20_000_000


@inline
def take_request(hv: Any) -> int:
    """The slot whose request is first in the queue, plus 1; 0 when there is none."""
    head = read_once(hv, "head")
    # Acquire: pairs with the release in rpcit's _post().
    posted = smp_load_acquire(element(int64_t, hv.ring, head & hv.ring_mask), "value")
    slot = posted & SLOT_MASK
    # What was taken stays in its place, under its old ticket: a server that is slow to go on cannot harm a later one.
    if slot == 0 or posted >> SLOT_BITS != head or cmpxchg(hv, "head", head, head + 1) != head:
        return 0
    return slot


@inline
def _complete(cpu: Any, request: Any) -> None:
    # Full barrier: the shadow table is up to date before the guest goes on.
    if xchg(request, "state", REQUEST_DONE) & REQUEST_WAITERS:
        wake_up(cpu, address_of(request, "state"), EVERYONE)


@slow
def _wait_for_request(cpu: Any, hv: Any) -> None:
    until_ns = now_ns(cpu) + hv.poll_ns
    while now_ns(cpu) < until_ns:
        if read_once(hv, "tail") != read_once(hv, "head"):
            return
        relax(cpu)
    seen = read_once(hv, "doorbell")
    fetch_add(hv, "sleepers", 1)
    # Pairs with smp_mb() in rpcit's _post().
    smp_mb()
    if read_once(hv, "tail") == read_once(hv, "head"):
        wait_on(cpu, address_of(hv, "doorbell"), seen, _SLEEP_NS)
    fetch_add(hv, "sleepers", -1)


@slow
def serve(cpu: Any) -> None:
    """Serve requests until the machine has stopped; every request posted before that is served."""
    hv = deref(hypervisor_t, cpu.hypervisor)
    server = deref(server_t, cpu.server)
    retired = deref(int64_t, cpu.retired)
    while True:
        last_round = read_once(retired, "value") != 0
        slot = take_request(hv)
        if slot:
            request = element(request_t, hv.requests, slot - 1)
            queued = max(read_once(hv, "tail") - read_once(hv, "head"), 0)
            server.total_queued += queued
            server.max_queued = max(server.max_queued, queued)
            serve_request(cpu, hv, request)
            _complete(cpu, request)
        elif last_round:
            return
        else:
            _wait_for_request(cpu, hv)
