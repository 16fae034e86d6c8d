"""Kills or stops a process while it holds a lock, at any instruction of the lock's section, and costs others nothing.

The process is stopped where it is, by ptrace, and goes on one instruction at a time until the lock's word names it,
then some more, as chance has it, while it still does; then it gets the signal. As most processes hold most locks for a
millionth of the time, the supervisor takes the lock for a moment first: who comes for it meanwhile sleeps on its word,
which the system tells of everybody (/proc/PID/syscall), and then is a few hundred instructions away from having it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from emu.iommu.iova import IOVA_RANGE_CACHE_MAX_SIZE
from emu.machine.bury import hold_lock, let_lock_go
from emu.machine.layout import Layout
from emu.native.lock import ORPHANED, WAITERS
from emu.native.record import address_of, pointer_to

_SEIZE, _INTERRUPT, _STEP, _DETACH = 0x4206, 0x4207, 9, 17
_WALL = 0x40000000
_SCHED_YIELD = {"x86_64": "24", "s390x": "158", "ppc64le": "158"}.get(platform.machine(), "124")
_PATIENCE_S = 0.1
"""For all locks of a name, one after the other."""
_WAIT_S = 0.03
"""For one lock to be free, and then for the process to come for it; as long others may wait too."""
_WALK_S = 0.3
"""For single steps: one over a sleep takes as long as the sleep."""
_POLLS_AFTER_S = 0.002
_LONGEST_WALK = 3000
"""Instructions from the sleep on a lock to its taking, with much to spare."""
_USUAL_SECTION = 30
_FLAGS = WAITERS | ORPHANED
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def locks_named(layout: Layout, name: str, slot: int) -> list[Any]:
    """The locks of that name which a process can take, those first that it takes most."""
    segment = layout.segment
    number = int(segment["contexts"][slot].function)
    domain = segment["domain"][number]
    iovad, cpus = domain.cookie.iovad, layout.cpus
    mine = slot if slot < cpus else 0
    if name == "iova_cpu_rcache.lock":
        return [segment["cpu_rcaches"][order * cpus + mine].lock for order in _rcaches(layout, number)]
    if name == "iova_rcache.lock":
        return [segment["rcaches"][order].lock for order in _rcaches(layout, number)]
    if name == "iova_fq.lock":
        cookie = domain.cookie
        if not cookie.fq_domain:
            return []
        return [segment["rings"][layout.first_ring(number) + mine % cookie.fq_rings].lock]
    one = {
        "iova_rbtree_lock": iovad.iova_rbtree_lock,
        "iova_magazine_lock": iovad.magazine_lock,
        "iommu_bitmap_lock": domain.zdev.iommu_bitmap_lock,
        "hypervisor.lock": segment["hypervisor"][0].lock,
    }
    return [one[name]]


def _rcaches(layout: Layout, number: int) -> range:
    """Indices of a function's caches of address ranges, one for each size."""
    first = number * IOVA_RANGE_CACHE_MAX_SIZE
    return range(first, first + (IOVA_RANGE_CACHE_MAX_SIZE if "rcaches" in layout.segment else 0))


def send_holding(layout: Layout, slot: int, pid: int, name: str, number: int, chance: random.Random) -> int:
    """Send SIGKILL or SIGSTOP to a process while it holds a lock of that name.

    Returns:
        When (ns, CLOCK_MONOTONIC), or 0 where that did not come about.
    """
    owner = int(layout.segment["contexts"][slot].owner)
    until = time.monotonic() + _PATIENCE_S
    for lock in locks_named(layout, name, slot):
        if time.monotonic() > until:
            break
        if at_ns := _ambush(layout, lock, owner, pid, number, chance):
            return at_ns
    return 0


def _ambush(layout: Layout, lock: Any, owner: int, pid: int, number: int, chance: random.Random) -> int:
    supervisor, address = layout.segment.address("contexts", layout.supervisor), pointer_to(lock)
    if not _hold(supervisor, address):
        return 0
    comes = _waits_for(pid, address_of(lock, "val"), polling=layout.config.hypervisor.service == "inline")
    traced = comes and _seize(pid)
    let_lock_go(supervisor, address)
    if not traced:
        return 0
    # How far into the section: near its beginning most of the time, as most sections are short.
    further = min(int(chance.expovariate(1 / _USUAL_SECTION)), _LONGEST_WALK)
    until = time.monotonic() + _WALK_S
    for _ in range(_LONGEST_WALK):
        if time.monotonic() > until:
            break
        if int(lock.val) & ~_FLAGS == owner:
            if further == 0:
                os.kill(pid, number)
                at_ns = time.monotonic_ns()
                if number != signal.SIGKILL:
                    # Let go, it takes the signal before any other instruction.
                    _ptrace(_DETACH, pid)
                return at_ns
            further -= 1
        if not _step(pid):
            return 0
    _ptrace(_DETACH, pid)
    return 0


def _hold(supervisor: int, address: int) -> bool:
    """Have the supervisor take a lock, when it is free."""
    until = time.monotonic() + _WAIT_S
    while not hold_lock(supervisor, address):
        if time.monotonic() > until:
            return False
    return True


def _waits_for(pid: int, address: int, *, polling: bool) -> bool:
    """Wait until a process waits for a lock: asleep on its word or, where it polls, running or giving its core away."""
    until = time.monotonic() + _WAIT_S
    if polling:
        time.sleep(_POLLS_AFTER_S)
    while time.monotonic() < until:
        words = Path(f"/proc/{pid}/syscall").read_text().split()
        if polling and words[0] in ("running", _SCHED_YIELD):
            return True
        if len(words) > 1 and int(words[1], 16) == address:
            return True
        time.sleep(0.0002)
    return False


def _ptrace(request: int, pid: int) -> bool:
    return int(_libc.ptrace(request, pid, None, None)) == 0


def _seize(pid: int) -> bool:
    """Stop a process and watch it; False where the system does not let us."""
    return _ptrace(_SEIZE, pid) and _ptrace(_INTERRUPT, pid) and _stopped(pid)


def _step(pid: int) -> bool:
    """Let it execute one instruction; False when it has ended instead, by another's hand."""
    return _ptrace(_STEP, pid) and _stopped(pid)


def _stopped(pid: int) -> bool:
    # What is only looked at stays to be reaped by whoever watches the process.
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | _WALL)
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | _WALL) is not None
    return False
