"""Op programs: every workload is, for each CPU, an array of small operations that one compiled loop executes.

A benchmark, a device model and a kernel capture differ only in the arrays they build. Slots are places in one table
that all CPUs see: `OP_MAP` puts a mapping into a slot, `OP_UNMAP` takes it out again, on whichever CPU that happens.
An unmap waits until its slot is mapped and a map waits until its slot is free. Programs for several CPUs do not
deadlock when their dependencies point backwards in some common order (a capture's trace order, a queue's submission
order) and each slot is always mapped by one CPU and always unmapped by one: a third CPU that ran ahead could take
another's turn.

Maps of which all or none are wanted are several operations too: before each but the first an `OP_GIVE_UP` that knows
the slot before; after the last an `OP_SKIP_MAPPED` over what takes the others back, an `OP_UNMAP` and an `OP_FAIL` of
each slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

OP_MAP = 1
"""Map `pages` pages into `slot`; with `nents` > 1 a scatter-gather list of that many segments, whose page counts are
`Workload.segments[arg : arg + nents]`."""
OP_UNMAP = 2
"""Unmap what is in `slot`, whoever mapped it."""
OP_WAIT = 3
"""Hold still for `arg` ns."""
OP_MARK = 4
"""Enter phase `arg`, an index into `Workload.phases`: the CPU notes its counters."""
OP_GIVE_UP = 5
"""If the map into slot `arg` failed, leave `slot` as `OP_FAIL` does, and leave out the next operation, which maps."""
OP_SKIP_MAPPED = 6
"""Leave out the next `arg` operations if `slot` is mapped."""
OP_FAIL = 7
"""Leave `slot`, once it is free, as a map that fails leaves it: an unmap takes it for done and does nothing."""

op_t = np.dtype(
    [("code", "i4"), ("nents", "i4"), ("slot", "i4"), ("pages", "i4"), ("arg", "i8"), ("at_ns", "i8")], align=True
)
"""One operation. `at_ns` is the recorded time since the start, honoured when a capture is replayed at real speed."""


@dataclass(slots=True)
class Program:
    """What one CPU does.

    Attributes:
        ops: the operations, shape (n,), dtype `op_t`.
        loop_start: operations from here on are repeated until the run ends; `len(ops)` when nothing is.
    """

    ops: npt.NDArray[np.void]
    loop_start: int

    @property
    def repeats(self) -> bool:
        """Whether any of it is repeated."""
        return self.loop_start < len(self.ops)


firing_t = np.dtype([("at_ns", "i8"), ("cpu", "i8")])
queue_flush_t = np.dtype([("cause_ns", "i8"), ("begin_ns", "i8"), ("end_ns", "i8"), ("resume_ns", "i8"), ("cpu", "i8")])


@dataclass(slots=True)
class RecordedTimes:
    """When things happened on a recorded machine, which a replay on virtual clocks takes over; in ns since its start.

    Attributes:
        firings: of the flush queue's timer, in order, shape (n,), dtype `firing_t`: a pending one fires then.
        flushes: of the queue, in the order of their causes, shape (m,), dtype `queue_flush_t`: when its timer fired or
            its unmap found the ring full, when each was counted as started and as finished, and when its CPU went on.
    """

    firings: npt.NDArray[np.void]
    flushes: npt.NDArray[np.void]


@dataclass(slots=True)
class Workload:
    """The load of a whole machine.

    Attributes:
        name: what it is called in results.
        programs: one for each CPU.
        slots: size of the slot table; every `slot` of every op is below it.
        segments: pages of each scatter-gather segment, shape (m,), int32.
        phases: names that `OP_MARK` refers to.
        max_pages: the largest single mapping, in pages.
        recorded: what a replay at recorded times takes over from the machine that was recorded.
        notes: sentences about what was left out or supplied, for the result.
        slots_by_function: on a machine of several functions, how many of the slots are each one's; their CPUs and slots
            follow each other in the order of the functions.
    """

    name: str
    programs: list[Program]
    slots: int
    segments: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    phases: list[str] = field(default_factory=list)
    max_pages: int = 1
    recorded: RecordedTimes | None = None
    notes: list[str] = field(default_factory=list)
    slots_by_function: list[int] = field(default_factory=list)
