"""The doorbell: a server without work sleeps, and who has some for it wakes it.

Either who rings sees that a server sleeps, or that server sees the work before it does: the two full barriers here
pair with each other.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.state import arm_smmu_cmdq
from emu.native.atomics import fetch_add, read_once, smp_load_acquire, smp_mb
from emu.native.compile import inline, slow
from emu.native.record import address_of, deref
from emu.native.time import now_ns, relax
from emu.native.wait import wait_on, wake_up

_SLEEP_NS = 20_000_000
_DEAD_NS = 1_000_000
"""Nobody rings when a hypervisor that was dead on purpose comes back."""


@inline
def has_commands(cmdq: Any) -> bool:
    """Whether a command queue holds any that have been published."""
    # Acquire: commands are read after it. Pairs with the release by which their owner writes it.
    return smp_load_acquire(cmdq, "prod_reg") != cmdq.cons_reg


@inline
def _has_work(hv: Any) -> bool:
    if hv.cmdq:
        return has_commands(deref(arm_smmu_cmdq, hv.cmdq))
    return read_once(hv, "tail") != read_once(hv, "head")


@inline
def ring_doorbell(cpu: Any, hv: Any) -> None:
    """Wake a server if one sleeps: its work is there."""
    smp_mb()
    if read_once(hv, "sleepers"):
        fetch_add(hv, "doorbell", 1)
        wake_up(cpu, address_of(hv, "doorbell"), 1)


@slow
def wait_for_work(cpu: Any, hv: Any) -> None:
    """Look for work for a while, then sleep until somebody rings; may return without any."""
    until_ns = now_ns(cpu) + hv.poll_ns
    while now_ns(cpu) < until_ns and not read_once(hv, "is_dead"):
        if _has_work(hv):
            return
        relax(cpu)
    seen = read_once(hv, "doorbell")
    fetch_add(hv, "sleepers", 1)
    smp_mb()
    if read_once(hv, "is_dead"):
        wait_on(cpu, address_of(hv, "doorbell"), seen, _DEAD_NS)
    elif not _has_work(hv):
        wait_on(cpu, address_of(hv, "doorbell"), seen, _SLEEP_NS)
    fetch_add(hv, "sleepers", -1)
