"""Who works for several functions in turn, the timer and the supervisor, counts for each: a ledger takes it apart.

A process has one set of counters, which everybody reads as what it has done in all. Before it turns to another
function, what is in no ledger yet goes into that of the function it has worked for. Only that process writes its
ledgers, and should it die in between, the rest still belongs to the function that its context names.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.counters import iommu_ctrs
from emu.machine.context import control_t
from emu.native.atomics import barrier
from emu.native.compile import slow
from emu.native.record import address_of, deref, element, int64_t, struct

ledger_t = struct(lines=("ctrs",), exposure_histogram="i8", flush_histogram="i8", ctrs=iommu_ctrs)
"""What a process has done for one function, and where it notes times that it sees for it."""

_COUNTERS = iommu_ctrs.itemsize // int64_t.itemsize
_LONGEST = iommu_ctrs.fields["exposure_max_ticks"][1] // int64_t.itemsize  # type: ignore[index]


@slow
def _settle(cpu: Any) -> None:
    """Enter what has been counted since the last time."""
    functions = deref(control_t, cpu.control).functions
    ledger = element(ledger_t, cpu.ledgers, cpu.function)
    for i in range(_COUNTERS):
        if i == _LONGEST:
            continue
        entered = 0
        for number in range(functions):
            entered += element(int64_t, address_of(element(ledger_t, cpu.ledgers, number), "ctrs"), i).value
        element(int64_t, address_of(ledger, "ctrs"), i).value += (
            element(int64_t, address_of(cpu, "ctrs"), i).value - entered
        )
    # The longest is no sum: each function has its own from here on.
    ledger.ctrs.exposure_max_ticks = max(ledger.ctrs.exposure_max_ticks, cpu.ctrs.exposure_max_ticks)
    barrier()
    cpu.ctrs.exposure_max_ticks = 0


@slow
def work_for(cpu: Any, number: int) -> None:
    """What this process counts from here on is for that function."""
    if cpu.function != number:
        _settle(cpu)
        barrier()
        cpu.function = number
    ledger = element(ledger_t, cpu.ledgers, number)
    cpu.exposure_histogram = ledger.exposure_histogram
    cpu.flush_histogram = ledger.flush_histogram
