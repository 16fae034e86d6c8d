"""Replays a kernel's map and unmap calls through the emulated allocator and flush queue, in the order of the trace.

Events happen on the CPU that the trace names. What it leaves open is settled by rules that look at no address:

- The line of a flush is its start: what is queued later than it stays for the next one. Its frees are made when its
  CPU is next seen, at the latest `longest_flush_ns` later, all into that CPU's caches. A full ring's flush is found by
  its line, too; the unmap that met the full ring is queued after it.
- Depot workers run when their timer is due, counted in the kernel's ticks, but never while a flush is under way.

An allocation that then gets the kernel's address is identical. Any other is counted under a reason, and the two sides
are brought together again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from emu.addresses import steps
from emu.addresses.allocator import Allocator
from emu.addresses.depots import Depots
from emu.addresses.explain import explain, is_cut_off
from emu.addresses.log import KINDS, Log
from emu.addresses.reasons import IDENTICAL
from emu.addresses.repair import put_right
from emu.addresses.state import Allocation, Flush, State
from emu.capture.events import FLUSH, MAP, TIMER, UNMAP
from emu.iommu.iova import DMA_32BIT_PFN

_EVENTS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one allocation: the map's event, and IDENTICAL or the reason why not."""

    event: int
    reason: str


class Replay:
    """One log.

    Args:
        log: its events.
        make: makes an allocator; with a queue if one is used at any time.
        tick_ns: the kernel's tick.
        types: (time_ns, type) wherever it changes, "DMA" or a lazy one. To become lazy keeps the domain, the reverse
            makes a new one, as sysfs does.

    Attributes:
        outcomes: of every allocation, in the order in which they were made.
        violations: pages handed out or given back twice.
    """

    def __init__(self, log: Log, make: Callable[[], Allocator], tick_ns: int, types: Sequence[tuple[int, str]]) -> None:
        self._log, self._make, self._tick_ns = log, make, tick_ns
        self._phase_ns = log.timer_phase_ns(tick_ns)
        self._changes = list(types[1:])
        self.outcomes: list[Outcome] = []
        self.violations = 0
        self._new_domain(is_lazy=types[0][1] != "DMA")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self.violations += self.state.allocator.violations
        self.state.allocator.close()

    def _new_domain(self, *, is_lazy: bool) -> None:
        allocator = self._make()
        depots = Depots(allocator, self._tick_ns, self._phase_ns)
        self.state = State(self._log, allocator, depots, is_lazy)
        self._fired: set[int] = set()
        self._full: dict[int, int] = {}
        self._not_before_ns = 0

    def run(self, on_progress: Callable[[float], None] | None = None) -> None:
        """Make every event happen.

        Args:
            on_progress: told the part of the log that is done, 0 to 1.
        """
        log = self._log
        for event, kind in enumerate(log.kind):
            if on_progress and event % _EVENTS_AT_ONCE == 0:
                on_progress(event / len(log.kind))
            if kind in KINDS:
                self._happen(event, kind, log.cpu[event])
        for cpu in list(self.state.flushes):
            self._end_flush(cpu)
        if on_progress:
            on_progress(1.0)

    def _happen(self, event: int, kind: int, cpu: int) -> None:
        log = self._log
        now_ns = max(self.state.now_ns, log.time_ns[event])
        while self._changes and self._changes[0][0] <= now_ns:
            self._change_type(self._changes.pop(0)[1])
        state = self.state
        state.now_ns = now_ns
        if kind == MAP and cpu in state.flushes:
            is_cut_off(state, event, cpu)
        self._pass_time(cpu)
        if kind == TIMER:
            self._fired.add(cpu)
        elif kind == FLUSH:
            self._begin_flush(event, cpu)
        elif kind == MAP and event in log.mapped_by:
            self._map(event, log.mapped_by[event], cpu)
        elif kind == UNMAP and event in log.unmapped_by:
            self._unmap(event, log.unmapped_by[event], cpu)
        if kind in (MAP, UNMAP) and not log.irq[event]:
            state.last_task_event[cpu] = event

    def _change_type(self, kind: str) -> None:
        is_lazy = kind != "DMA"
        if self.state.is_lazy and not is_lazy:
            self._close()
            self._new_domain(is_lazy=False)
        self.state.is_lazy = is_lazy

    # --- flushes and frees ------------------------------------------------------------------------------------------

    def _pass_time(self, cpu: int) -> None:
        """End the flushes that must be over, and run the workers that are due."""
        state = self.state
        for flushing, flush in list(state.flushes.items()):
            if flushing == cpu or flush.began_ns + self._log.longest_flush_ns < state.now_ns:
                self._end_flush(flushing)
                self._not_before_ns = self._middle_of(flush)
        if not state.flushes:
            state.depots.run_until(state.now_ns, self._not_before_ns)

    def _middle_of(self, flush: Flush) -> int:
        return min(self.state.now_ns, flush.began_ns + self._log.longest_flush_ns // 2)

    def _begin_flush(self, event: int, cpu: int) -> None:
        """Only the queue's own flushes: one that attaches a device finds nothing to free."""
        if not self.state.allocator.rings or (cpu not in self._fired and cpu not in self._full):
            return
        if cpu in self._fired:
            self._fired.remove(cpu)
            self.state.allocator.timer_fired()
        self.state.allocator.step(steps.BEGIN_FLUSH)
        self.state.last_flush[cpu] = event
        self.state.flushes[cpu] = Flush(self.state.now_ns, self._full.pop(cpu, None))

    def _end_flush(self, cpu: int) -> None:
        state = self.state
        flush = state.flushes.pop(cpu)
        state.begin_frees(flush)
        state.allocator.step(steps.FREE_RINGS, cpu=cpu)
        state.depots.arm(self._middle_of(flush), flush.began_ns)
        if flush.unmap is not None:
            self._queue(flush.unmap, cpu)

    def _queue(self, i: int, cpu: int) -> None:
        self.state.allocator.step(steps.QUEUE, self._log.pfn[i], self._log.pages[i], cpu=cpu)

    # --- maps and unmaps --------------------------------------------------------------------------------------------

    def _unmap(self, event: int, i: int, cpu: int) -> None:
        log, state = self._log, self.state
        state.freed_by[log.pfn[i]] = event
        if not state.is_lazy:
            state.allocator.step(steps.FREE, log.pfn[i], log.pages[i], cpu=cpu)
        elif event in log.full_flushes:
            self._full[cpu] = i
            return
        else:
            if len(state.allocator.rings) == 1:
                # The ring's lock is held while entries are freed.
                for flushing in [c for c, flush in state.flushes.items() if flush.frees]:
                    self._end_flush(flushing)
            self._queue(i, cpu)
        state.depots.arm(state.now_ns)

    def _map(self, event: int, i: int, cpu: int) -> None:
        log, state = self._log, self.state
        if i in state.early:
            self.outcomes.append(Outcome(event, state.early.pop(i)))
            return
        cached_pfn = state.allocator.step(steps.CACHED, int(log.pfn[i] < DMA_32BIT_PFN))
        answer = state.alloc_if(i, cpu)
        reason = IDENTICAL
        if answer:
            reason, answer = explain(state, i, cpu, answer)
            reason = reason or put_right(state, event, i, cpu, answer)
        self.outcomes.append(Outcome(event, reason))
        state.last_allocation[cpu] = Allocation(state.now_ns, log.pfn[i], cached_pfn)
