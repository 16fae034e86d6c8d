"""Where a replay of a log stands: the domain's allocator, the flushes under way, and who was seen to do what last."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from emu.addresses import steps
from emu.addresses.allocator import Allocator
from emu.addresses.depots import Depots
from emu.addresses.log import NEAR_NS, Log

VOTERS, MAJORITY = 12, 8
"""So many of the kernel's next addresses say from which magazine they come; so many must agree."""


@dataclass(slots=True)
class Flush:
    """A flush under way: `unmap` is the mapping whose unmap met the full ring; `frees` once its frees have begun."""

    began_ns: int
    unmap: int | None
    frees: bool = False


@dataclass(slots=True)
class Allocation:
    """A CPU's last: when, which pfn, and where the tree's cached node was before."""

    at_ns: int
    pfn: int
    cached_pfn: int


@dataclass(slots=True)
class State:
    """What rules and repairs look at, and change.

    Attributes:
        is_lazy: unmaps are queued.
        flushes: those under way, by CPU.
        early: mappings whose allocation was made before its line, and why.
        last_allocation, last_task_event, last_flush: by CPU; events outside of interrupts.
        freed_by: the event that last unmapped a pfn.
    """

    log: Log
    allocator: Allocator
    depots: Depots
    is_lazy: bool
    now_ns: int = 0
    flushes: dict[int, Flush] = field(default_factory=dict)
    early: dict[int, str] = field(default_factory=dict)
    last_allocation: dict[int, Allocation] = field(default_factory=dict)
    last_task_event: dict[int, int] = field(default_factory=dict)
    last_flush: dict[int, int] = field(default_factory=dict)
    freed_by: dict[int, int] = field(default_factory=dict)

    def peek(self, i: int, cpu: int) -> int:
        """What an allocation for mapping `i` would give, see emu.addresses.peek."""
        return self.allocator.step(steps.PEEK, self.log.pages[i], cpu=cpu)

    def alloc_if(self, i: int, cpu: int) -> int:
        """Allocate for mapping `i` if that gives the kernel's pfn, and return 0; else what it would have given."""
        return self.allocator.step(steps.ALLOC_IF, self.log.pages[i], self.log.pfn[i], cpu=cpu)

    def allocates(self, i: int, cpu: int) -> bool:
        """The same, as whether it gave that."""
        return self.alloc_if(i, cpu) == 0

    def hand_out(self, i: int) -> None:
        """The kernel's pfn was taken from where it lay: it is in use."""
        self.allocator.step(steps.HAND_OUT, self.log.pfn[i], self.log.pages[i])

    def begin_frees(self, flush: Flush) -> None:
        """The flush itself is over."""
        if not flush.frees:
            self.allocator.step(steps.END_FLUSH)
            flush.frees = True

    def votes(self, i: int, cpu: int, order: int) -> Counter[tuple[int, int]]:
        """In which magazines of ours the pfns are that the kernel gave to this CPU now and next."""
        pfns = [self.log.pfn[i], *self.log.next_pfns(cpu, order, i, VOTERS - 1)]
        return Counter(self.allocator.find(pfn, order).magazine for pfn in pfns)

    def freed_by_two(self, pfn: int, other: int) -> bool:
        """Whether two pfns were freed by two CPUs, or in and out of an interrupt, near each other."""
        log = self.log
        a, b = self.freed_by.get(pfn, -1), self.freed_by.get(other, -1)
        if min(a, b) < 0 or abs(log.time_ns[a] - log.time_ns[b]) > NEAR_NS:
            return False
        return (log.cpu[a], log.irq[a]) != (log.cpu[b], log.irq[b])
