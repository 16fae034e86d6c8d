"""The hypervisor's process."""

from __future__ import annotations

from emu.hypervisor.server import serve
from emu.machine.context import cpu_t
from emu.machine.cpu import wait_for_go
from emu.native.compile import entry
from emu.native.record import deref


@entry
def hypervisor_main(context: int) -> int:
    """One server of the hypervisor; ends when the timer has, with every posted request served."""
    cpu = deref(cpu_t, context)
    if wait_for_go(cpu):
        serve(cpu)
    cpu.finished = 1
    return 0
