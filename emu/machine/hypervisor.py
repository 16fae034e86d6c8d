"""The hypervisor's process."""

from __future__ import annotations

from typing import Any

from emu.hypervisor.server import serve
from emu.hypervisor.smmu import consume_commands
from emu.hypervisor.state import hypervisor_t
from emu.machine.context import cpu_t
from emu.machine.cpu import wait_for_go
from emu.native.compile import entry, jit
from emu.native.record import deref


@jit
def live_as_server(cpu: Any) -> None:
    """The life of one server of the hypervisor; it ends when the timer has, with every posted request served."""
    hv = deref(hypervisor_t, cpu.hypervisor)
    if wait_for_go(cpu):
        if hv.cmdq:
            consume_commands(cpu, hv)
        else:
            serve(cpu)
    cpu.finished = 1


@entry
def hypervisor_main(context: int) -> int:
    """Process of one server of the hypervisor."""
    live_as_server(deref(cpu_t, context))
    return 0
