"""The records of a running machine: one context for each process, the words they all watch, the slots of the load."""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.iommu.counters import iommu_ctrs
from emu.iommu.io_pgtable import table_spares
from emu.native.record import struct

ROLE_CPU, ROLE_TIMER, ROLE_HYPERVISOR, ROLE_SUPERVISOR, ROLE_DEVICE = range(5)

PHYS_SHIFT = 12
"""The memory of slot n, counted from 1, begins at page frame n << PHYS_SHIFT."""

SLOT_FREE, SLOT_MAPPED, SLOT_FAILED = 0, 1, 2
SLOT_STATE = 3
SLOT_WAITERS = 4

GO_ON, STOP, UNBOUND = 0, 1, 2
"""Values of `control_t.stop`."""

control_t = struct(
    lines=("go", "ready", "stop", "abort", "cpus_retired", "timer_retired", "offline"),
    go="i4",
    ready="i8",
    stop="i8",
    unbinds="i8",
    abort="i8",
    cpus_retired="i8",
    timer_retired="i8",
    offline="i8",
    functions="i8",
)
"""What the supervisor tells the others: `go` starts them together, `stop` ends the load or, when it is UNBOUND, holds
CPUs and timer still (for the `unbinds`-th time), `abort` ends waiting for anybody who may be dead; the timer ends when
the CPUs have retired, the hypervisor when the timer has; `offline`: how many CPUs have died; `functions`: how many
PCI functions there are, whose domains and groups lie one behind the other."""

slot_t = struct(state="i4", pages="i4", pfn="i8")
"""Where a mapping is between its map and its unmap, which may be on another CPU."""

mark_t = struct(phase="i8", at_ns="i8", ctrs=iommu_ctrs)
"""A CPU's counters as it entered a phase."""

_fields = {
    "owner": "i4",
    "role": "i4",
    "id": "i8",
    "slot": "i8",
    "generation": "i8",
    "dead_generation": "i8",
    "control": "i8",
    "abort": "i8",
    "retired": "i8",
    "function": "i8",
    "domain": "i8",
    "group": "i8",
    "hypervisor": "i8",
    "request": "i8",
    "server": "i8",
    "timers": "i8",
    "findings": "i8",
    "ledgers": "i8",
    "dma_device": "i8",
    "events": "i8",
    "records": "i8",
    "stages": "i8",
    "stage": "i8",
    "stage_since": "i8",
    "map_histogram": "i8",
    "unmap_histogram": "i8",
    "exposure_histogram": "i8",
    "flush_histogram": "i8",
    "slots": "i8",
    "segments": "i8",
    "ops": "i8",
    "op_count": "i8",
    "loop_start": "i8",
    "pair_limit": "i8",
    "real_time": "i8",
    "marks": "i8",
    "marks_done": "i8",
    "ops_done": "i8",
    "pairs_done": "i8",
    "rests": "i8",
    "flush_step": "i8",
    "flush_for": "i8",
    "spares": table_spares,
    "started_ns": "i8",
    "started_ticks": "i8",
    "stopped_ns": "i8",
    "stopped_ticks": "i8",
    "pid": "i8",
    "user_us": "i8",
    "system_us": "i8",
    "voluntary_switches": "i8",
    "involuntary_switches": "i8",
    "private_bytes": "i8",
    "finished": "i8",
    "ctrs": iommu_ctrs,
}


def context_type(first: str, mark: str = "unmarked") -> np.dtype[np.void]:
    """The record of a context, which sets its CPU apart from others' by two names and is otherwise the same.

    Args:
        first: name of its first field, which tells the engine (emu.native.engine).
        mark: name of its second, which tells the policy (emu.iommu.policy).
    """
    fields: dict[str, Any] = {first: "i8", mark: "i8", **_fields}
    return struct(lines=(first, "ctrs"), **fields)


cpu_t = context_type("native")
"""The context that every compiled function is passed as `cpu`, one for each process or thread of the machine.

`id` is the emulated CPU it acts as (smp_processor_id), `slot` its own place in the tables of processes; `function`: the
number of the PCI function that it works for, always the same for CPUs and devices; `domain`, `group`: of that function,
for other processes the first of all; `findings`: one for each function; `ledgers`: likewise, as in emu.machine.ledger,
of the timer and the supervisor; `ops_done` and `pairs_done` say where in its program it is, `rests` at which unbinding
it holds still, `flush_step` where in a flush of the queue it is, and `flush_for` how many others' flushes that one
stands for. `events` is its ring, or 0; `records`: every operation and request goes there too; `stages` as in
emu.iommu.stages. The first field's name sets the type apart from other engines' contexts. All addresses point into the
segment."""

virtual_cpu_t = context_type("virtual")
"""The same for a machine on virtual clocks; the first field is the address of its fiber. Python reads both as cpu_t."""
