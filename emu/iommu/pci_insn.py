"""The PCI instruction as the guest's kernel issues it (arch/s390/pci/pci_insn.c): until not busy, for an errno."""

from __future__ import annotations

from errno import EIO, ENOMEM
from typing import Any

from emu.hypervisor.rpcit import RPCIT_BUSY, RPCIT_INSUFFICIENT_RESOURCES, RPCIT_OK, rpcit
from emu.native.compile import slow
from emu.native.time import now_ns, spend_until, yield_core
from emu.native.wait import is_aborted

ZPCI_INSN_BUSY_DELAY_NS = 1000


@slow
def zpci_refresh_trans(cpu: Any, fh: int, start_pfn: int, pages: int, is_global: bool) -> int:
    """Refresh the translations of a range, of the function of a handle.

    Returns:
        0; -ENOMEM when the host is out of resources; -EIO when the device is in error, or the machine is being stopped.
    """
    answer = rpcit(cpu, fh, start_pfn, pages, is_global)
    while answer == RPCIT_BUSY and not is_aborted(cpu):
        cpu.ctrs.busy_retries += 1
        spend_until(cpu, now_ns(cpu) + ZPCI_INSN_BUSY_DELAY_NS)
        # Whoever is to serve what waits may need this core.
        yield_core(cpu)
        answer = rpcit(cpu, fh, start_pfn, pages, is_global)
    if answer == RPCIT_OK:
        return 0
    return -ENOMEM if answer == RPCIT_INSUFFICIENT_RESOURCES else -EIO
