"""A device that does DMA while the load runs, and what becomes of each access.

It picks what the CPUs have mapped just now, and, late or with intent, addresses that it has used before. An access
goes through the device's IOTLB and the table behind it. What it ought to have found is in the oracle's books: the
page's word is read before and after the translation, and only if it has not changed is anything said of the access.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.functions import function_of
from emu.hypervisor.iotlb import iotlb_t, translate
from emu.hypervisor.state import hypervisor_t
from emu.iommu.domain import DMA_DIRECT, iommu_domain
from emu.iommu.io_pgtable import PAGE_SHIFT, iova_to_phys, pte_valid
from emu.machine.context import PHYS_SHIFT, SLOT_MAPPED, SLOT_STATE, STOP, control_t, cpu_t, slot_t
from emu.machine.cpu import rest_while_unbound, wait_for_go
from emu.native.atomics import int64_t, read_once, smp_load_acquire
from emu.native.compile import entry, jit, slow
from emu.native.record import address_of, deref, element, struct
from emu.native.time import begin_operation, now_ns, spend_until
from emu.oracle.findings import STALE_AFTER_FLUSH, STALE_AFTER_REUSE, note_violation
from emu.oracle.pages import (
    PAGE_IN_USE,
    PAGE_STATE,
    PAGE_UNDONE,
    PAGE_UNMAPPED,
    epoch_of,
    oracle_t,
    word_of,
)

REMEMBERED = 256
"""Addresses that a device has used and will try again."""
LATE_SCALE = 1 << 10
BURST = 16
"""Accesses made together, as descriptors are fetched; a device that slept between any two would hardly be on time."""

device_t = struct(
    lines=("accesses",),
    accesses="i8",
    live="i8",
    faults="i8",
    unmapping="i8",
    stale="i8",
    stale_to_others="i8",
    undecided="i8",
    random="i8",
    late="i8",
    burst_ns="i8",
    first_slot="i8",
    slots="i8",
    iotlb="i8",
    oracle="i8",
    next="i8",
    remembered=("i8", (REMEMBERED,)),
)
"""What one device did. `live`: reached what was mapped; `faults`: were refused; `unmapping`: reached a page whose unmap
had not returned; `stale`: reached one whose unmap had, before the flush that ends it, `stale_to_others` those of them
whose page was another mapping's by then; `undecided`: the page changed hands during the access. `late`: how many of
LATE_SCALE accesses go to remembered addresses; `first_slot`, `slots`: those of its function's load."""


@jit
def _draw(device: Any, below: int) -> int:
    """A random number from 0 (xorshift, 32 bits)."""
    x = device.random
    x ^= (x << 13) & 0xFFFFFFFF
    x ^= x >> 17
    x ^= (x << 5) & 0xFFFFFFFF
    device.random = x
    return (x >> 3) % below


@jit
def _target(cpu: Any, device: Any) -> int:
    """A page to access, or 0: the slot that was looked at holds no mapping, or nothing is remembered there."""
    remembered = address_of(device, "remembered")
    if _draw(device, LATE_SCALE) < device.late:
        return element(int64_t, remembered, _draw(device, REMEMBERED)).value
    slot = element(slot_t, cpu.slots, device.first_slot + _draw(device, device.slots))
    # Acquire: pairs with the exchange in _hand_over(), before which a CPU writes what it has mapped.
    if (smp_load_acquire(slot, "state") & SLOT_STATE) != SLOT_MAPPED:
        return 0
    pfn = slot.pfn + _draw(device, max(slot.pages, 1))
    element(int64_t, remembered, device.next & (REMEMBERED - 1)).value = pfn
    device.next += 1
    return pfn


@jit
def _mapping_behind(cpu: Any, device: Any, pte: int) -> int:
    """Number of the slot whose memory is behind an entry, or -1 where that is not mapped by any of its function."""
    number = (pte >> PAGE_SHIFT >> PHYS_SHIFT) - 1
    if not device.first_slot <= number < device.first_slot + device.slots:
        return -1
    # Acquire: pairs with the exchange in _hand_over(); the owner writes `pfn` before and after it.
    state = smp_load_acquire(element(slot_t, cpu.slots, number), "state")
    return number if state & SLOT_STATE == SLOT_MAPPED else -1


@slow
def _is_being_unmapped(cpu: Any, device: Any, pte: int) -> bool:
    """Whether the owner of the memory behind an entry is inside the call that unmaps it."""
    number = _mapping_behind(cpu, device, pte)
    return number >= 0 and read_once(element(slot_t, cpu.slots, number), "pfn") == 0


@slow
def _is_anothers(cpu: Any, device: Any, pfn: int, pte: int) -> bool:
    """Whether the memory behind an entry belongs to a mapping at another address."""
    number = _mapping_behind(cpu, device, pte)
    if number < 0:
        return False
    slot = element(slot_t, cpu.slots, number)
    # A mapping that is being unmapped does not say where it was.
    return read_once(slot, "pfn") != 0 and not slot.pfn <= pfn < slot.pfn + slot.pages


@jit
def dma_access(cpu: Any, device: Any, hv: Any, function: Any, domain: Any, pfn: int) -> None:
    """One access to a page, and what it was."""
    oracle = deref(oracle_t, device.oracle)
    if not oracle.start_pfn <= pfn < oracle.start_pfn + oracle.pages:
        return
    device.accesses += 1
    page = word_of(oracle, pfn)
    # Acquire: if a flush has ended here, its invalidations are seen below. Pairs with the exchange in end_flush().
    finished = smp_load_acquire(oracle, "finished")
    # Acquire: of a page that is seen free nothing is found below, and what has started is no less than its stamp. Pairs
    # with smp_wmb() in check_given_back().
    word = smp_load_acquire(page, "value")
    started = read_once(oracle, "started")
    pte = translate(hv, function, deref(iotlb_t, device.iotlb), pfn)
    # Entries are read with acquire, so the word is read again after them.
    guest = iova_to_phys(domain.s390.pgtable, pfn)
    # Before the word is read again: where it has not changed, neither had the unmap returned that was seen here. Its
    # owner took `pfn` out of the slot before it cleared the entry and stamped the word, which was read with acquire.
    unmapping = pte_valid(pte) and word & PAGE_STATE == PAGE_UNMAPPED and _is_being_unmapped(cpu, device, pte)
    if not pte_valid(pte):
        device.faults += 1
    elif read_once(page, "value") != word or word & PAGE_UNDONE:
        device.undecided += 1
    elif word & PAGE_STATE == PAGE_IN_USE:
        if guest == pte:
            device.live += 1
        elif pte_valid(guest):
            note_violation(cpu, STALE_AFTER_REUSE, pfn, guest, pte)
        else:
            # Just handed out and not yet mapped, or cleared and not yet stamped.
            device.undecided += 1
    elif word & PAGE_STATE == PAGE_UNMAPPED and finished <= epoch_of(word, started):
        if unmapping:
            device.unmapping += 1
        else:
            device.stale += 1
            if _is_anothers(cpu, device, pfn, pte):
                device.stale_to_others += 1
    else:
        note_violation(cpu, STALE_AFTER_FLUSH, pfn, finished if word & PAGE_STATE == PAGE_UNMAPPED else 0, pte)


@jit
def live_as_device(cpu: Any) -> None:
    """The life of a device; it ends when the load does."""
    device = deref(device_t, cpu.dma_device)
    domain = deref(iommu_domain, cpu.domain)
    hv = deref(hypervisor_t, cpu.hypervisor)
    function = function_of(hv, cpu.function)
    control = deref(control_t, cpu.control)
    if wait_for_go(cpu):
        while read_once(control, "stop") != STOP:
            rest_while_unbound(cpu)
            begin_operation(cpu)
            # Without translation everything is always reached, and a function in error does no DMA.
            if device.slots and domain.dma_ops != DMA_DIRECT and not function.device_in_error:
                for _ in range(BURST):
                    pfn = _target(cpu, device)
                    if pfn:
                        dma_access(cpu, device, hv, function, domain, pfn)
            spend_until(cpu, now_ns(cpu) + device.burst_ns)
    cpu.finished = 1


@entry
def device_main(context: int) -> int:
    """Process of a device."""
    live_as_device(deref(cpu_t, context))
    return 0
