"""When the depots' workers run: no line of a trace tells."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from emu.addresses import steps
from emu.addresses.allocator import Allocator
from emu.iommu.iova import IOVA_DEPOT_DELAY_NS, IOVA_MAG_SIZE, IOVA_RANGE_CACHE_MAX_SIZE, iova_magazine
from emu.native.record import deref

_SLACK_NS = 30_000_000
"""How far from its moment a worker may run, on a machine whose CPUs are threads of a busy host."""
_DRIFT_NS = 4_000_000
"""And so much more for every run since the last whose moment is known."""
_LATENCY_NS = 300_000
"""How long after its tick a worker is at work."""
_RETRY_NS = 8_000_000
"""When a worker is tried again that has run too early here."""
_NEAR_TOP = 8
_REMEMBERED = 64


@dataclass(slots=True)
class _Worker:
    """A depot's worker that waits for its timer: when it runs, and from when on it might; how often it has run."""

    due_ns: int
    earliest_ns: int
    runs: int = 0


@dataclass(slots=True)
class _Run:
    """A run of a worker, as far as it is needed to undo it: the magazine's pfns, and the tree's cached nodes before."""

    at_ns: int
    pfns: list[int]
    cached: list[int]
    worker: _Worker


class Depots:
    """The workers of one domain.

    Args:
        allocator: whose they are.
        tick_ns: the kernel's tick.
        phase_ns: when in a tick timers fire, on the trace's clock.
    """

    def __init__(self, allocator: Allocator, tick_ns: int, phase_ns: int) -> None:
        self._allocator = allocator
        self._tick_ns, self._phase_ns = tick_ns, phase_ns
        self._waiting: dict[int, _Worker] = {}
        self._ran: defaultdict[int, list[_Run]] = defaultdict(list)

    def _due_ns(self, now_ns: int) -> int:
        """A timer of the wheel's first level: the delay in ticks, and the tick that has begun."""
        ticks = (now_ns - self._phase_ns) // self._tick_ns + -(-IOVA_DEPOT_DELAY_NS // self._tick_ns) + 1
        return ticks * self._tick_ns + self._phase_ns + _LATENCY_NS

    def _worker(self, armed_ns: int, earliest_armed_ns: int, runs: int = 0) -> _Worker:
        slack_ns = _SLACK_NS + _DRIFT_NS * runs
        return _Worker(self._due_ns(armed_ns), earliest_armed_ns + IOVA_DEPOT_DELAY_NS - slack_ns, runs)

    def arm(self, now_ns: int, since_ns: int | None = None) -> None:
        """Start the timers of workers that the allocator has scheduled, now, or at some time after `since_ns`."""
        pending = self._allocator.step(steps.PENDING)
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE) if pending else ():
            if pending >> order & 1 and order not in self._waiting:
                self._waiting[order] = self._worker(now_ns, now_ns if since_ns is None else since_ns)

    def run_until(self, now_ns: int, not_before_ns: int) -> None:
        """Run all that are due, in the order in which they are, as if no time before `not_before_ns` had been free."""
        while self._waiting:
            order = min(self._waiting, key=lambda order: self._waiting[order].due_ns)
            worker = self._waiting[order]
            if worker.due_ns > now_ns:
                break
            self._run(order, max(worker.due_ns, not_before_ns), worker.runs + 1)

    def run_early(self, order: int, now_ns: int) -> None:
        """Run one that waits, now: this moment is known."""
        self._run(order, now_ns, 0)

    def _run(self, order: int, at_ns: int, runs: int) -> None:
        worker, allocator = self._waiting.pop(order), self._allocator
        top = allocator.step(steps.DEPOT_TOP, order)
        pfns = deref(iova_magazine, top).pfns[:IOVA_MAG_SIZE].tolist() if top else []
        cached = [allocator.step(steps.CACHED, which) for which in (0, 1)]
        size = allocator.depot_size(order)
        allocator.run_depot_work(order)
        if allocator.depot_size(order) < size:
            self._ran[order] = [*self._ran[order][1 - _REMEMBERED :], _Run(at_ns, pfns, cached, worker)]
            self._waiting[order] = self._worker(at_ns, at_ns, runs)

    def may_have_run(self, order: int, now_ns: int) -> bool:
        """Whether a worker that waits may have run by now."""
        worker = self._waiting.get(order)
        return worker is not None and worker.earliest_ns <= now_ns

    def take_back(self, order: int, pfn: int, now_ns: int) -> bool:
        """Undo the run that freed `pfn` from the top of a magazine; False if there is none, or it is too late."""
        allocator, ran = self._allocator, self._ran[order]
        for run in reversed(ran):
            if pfn not in run.pfns[-_NEAR_TOP:]:
                continue
            size = 1 << order
            if not all(allocator.step(steps.TREE_FREE, p, size) for p in run.pfns):
                return False
            magazine = allocator.step(steps.DEPOT_NEW, order)
            if not magazine:
                return False
            for p in run.pfns:
                allocator.step(steps.TREE_TAKE, p, size)
            deref(iova_magazine, magazine).pfns[:IOVA_MAG_SIZE] = run.pfns
            if run is ran[-1] and now_ns - run.at_ns < _SLACK_NS + _DRIFT_NS * run.worker.runs:
                for which, node in enumerate(run.cached):
                    allocator.step(steps.SET_CACHED, which, node)
                self._waiting[order] = _Worker(now_ns + _RETRY_NS, now_ns, run.worker.runs)
            ran.remove(run)
            return True
        return False
