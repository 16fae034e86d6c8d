"""A recorded domain as the text of a kernel's trace, in the form of tracefs, and the counters that belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from emu.analysis.event_streams import merged, process_streams, whole_operations
from emu.analysis.operations import (
    LINE_FLUSH,
    LINE_FLUSH_END,
    LINE_MAP,
    LINE_RPCIT,
    LINE_TIMER,
    LINE_UNMAP,
    lines_of,
)
from emu.analysis.run_data import DomainRun

_PHASE = "run"
"""The phase that the whole load is."""
_SETTLING_NS = 1_000_000
"""After the last line, so that whoever replays it still sees the timer's last flush."""
_IN_INTERRUPT = (LINE_UNMAP, LINE_TIMER)
"""As of a device's completions."""
_PAGE_SHIFT = 12
_DEVICE = "emu"
_STRICT = ("DMA", "s390-strict")
_HEADER = """\
# tracer: nop
#
#                                                         #P:{cpus}
#
# The emulated domain {domain}. paddr repeats iova: which memory it was is not recorded. Strictly, an unmap has its line
# when its flush is over, right before its addresses are given back; a kernel's has it before the flush.
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
_RPCIT = "rpcit: (zpci_refresh_trans+0x0/0x0) fn=0x1 addr=0x{start:x} range=0x{size:x}"
_MESSAGES = {
    LINE_MAP: "map: IOMMU: iova=0x{start:016x} - 0x{stop:016x} paddr=0x{start:016x} size={size}",
    LINE_UNMAP: "unmap: IOMMU: iova=0x{start:016x} - 0x{stop:016x} size={size} unmapped_size={size}",
    LINE_RPCIT: _RPCIT,
    LINE_TIMER: "fq_flush_timeout: (fq_flush_timeout+0x0/0x0)",
    LINE_FLUSH: "s390_flush_iotlb_all: (s390_iommu_flush_iotlb_all+0x0/0x0) dom=0x1",
    LINE_FLUSH_END: "s390_flush_iotlb_all_ret: (fq_flush_iotlb+0x0/0x0 <- s390_iommu_flush_iotlb_all) ret=0x0",
}


_Row = tuple[int, int, int, int, int, int]
_Placed = tuple[int, tuple[int, int, int, int, int]]


def ftrace_lines(domain: DomainRun) -> Iterator[str]:
    """The trace, some thousand lines at a time.

    Times are those of the machine's clock, to the ns.

    Raises:
        RunDataError: its events cannot be read.
    """
    clock, run = domain.clock, domain.run
    tasks = [_task(process["role"], process["pid"]) for process in run["processes"]]
    is_lazy = run["domain"] not in _STRICT
    yield _HEADER.format(cpus=run["cpus"], domain=run["domain"])
    if run["events"]["lost"]:
        yield f"CPU:0 [LOST {run['events']['lost']} EVENTS]\n"
    yield _mark("begin", clock.start_ns)
    order = _Order()
    streams = [_line_stream(stream, is_lazy=is_lazy) for stream in process_streams(domain)]
    for lines in merged(streams, "order"):
        since_ns = clock.times_since_start_ns(lines["ticks"])
        at_ns = (np.maximum(since_ns, 0) + clock.start_ns).tolist()
        rows = (lines[name].tolist() for name in ("kind", "slot", "cpu", "pfn", "pages"))
        placed = order.placed(zip(at_ns, *rows, strict=True))
        yield "".join(_line(tasks[slot], *line) for slot, line in placed)
    yield "".join(_line(tasks[slot], *line) for slot, line in order.rest())
    yield _mark("end", max(order.at_ns, clock.start_ns) + _SETTLING_NS)


class _Order:
    """Keeps a map from standing before the unmap that freed its addresses, where their times overlap.

    It waits for that, at the longest until its process has another line: it is the hypervisor that it tells next.
    """

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._waiting: dict[int, _Row] = {}
        self.at_ns = 0

    def placed(self, rows: Iterable[_Row]) -> Iterator[_Placed]:
        """The rows (time, kind, slot, cpu, pfn, pages) in the order in which they may stand."""
        for row in rows:
            _, kind, slot, _, pfn, pages = row
            if slot in self._waiting:
                yield self._now(self._waiting.pop(slot))
            if kind == LINE_MAP and not self._is_free(pfn, pages):
                self._waiting[slot] = row
                continue
            yield self._now(row)
            if kind == LINE_UNMAP and self._waiting:
                free = [slot for slot, (*_, at, size) in self._waiting.items() if self._is_free(at, size)]
                for waiting in free:
                    yield self._now(self._waiting.pop(waiting))

    def rest(self) -> Iterator[_Placed]:
        """What still waits."""
        for row in self._waiting.values():
            yield self._now(row)

    def _is_free(self, pfn: int, pages: int) -> bool:
        return self._live.isdisjoint(range(pfn, pfn + pages))

    def _now(self, row: _Row) -> _Placed:
        at_ns, kind, slot, cpu, pfn, pages = row
        if kind == LINE_MAP:
            self._live.update(range(pfn, pfn + pages))
        elif kind == LINE_UNMAP:
            self._live.difference_update(range(pfn, pfn + pages))
        self.at_ns = max(self.at_ns, at_ns)
        return slot, (self.at_ns, kind, cpu, pfn << _PAGE_SHIFT, pages << _PAGE_SHIFT)


def counters_of(domain: DomainRun) -> dict[str, Any]:
    """What the emulated kernel counted, as the description beside a trace has it (docs/captures.md)."""
    run = domain.run
    is_single = run["domain"] == "DMA-SQ"
    return {
        "name": f"emu {run['domain']}",
        "note": f"Not a kernel's: the load {run['workload']} on an emulated machine, preset {run['preset']}.",
        "vcpus": run["cpus"],
        # s390 alone has lazy domains with a single queue; sysfs has one word for all.
        "domain_type": ["DMA-FQ" if is_single else run["domain"]],
        **({"arch": "s390x"} if is_single else {}),
        "phases": {
            _PHASE: {
                "counters_before": {_DEVICE: dict.fromkeys(run["counters"], 0)},
                "counters_settled": {_DEVICE: run["counters"]},
            }
        },
    }


def _line_stream(stream: Iterator[Any], *, is_lazy: bool) -> Iterator[Any]:
    for chunk in whole_operations(stream):
        yield lines_of(chunk, is_lazy=is_lazy)


def _line(task: str, at_ns: int, kind: int, cpu: int, start: int, size: int) -> str:
    flags = "..s.." if kind in _IN_INTERRUPT else "....."
    message = _MESSAGES[kind].format(start=start, stop=start + size, size=size)
    return f"{task} [{cpu:03d}] {flags} {_seconds(at_ns)}: {message}\n"


def _mark(edge: str, at_ns: int) -> str:
    task = _task("supervisor", 0)
    return f"{task} [000] ..... {_seconds(at_ns)}: tracing_mark_write: KCMARK {_PHASE}.{edge}\n"


def _seconds(at_ns: int) -> str:
    return f"{at_ns // 1_000_000_000:5d}.{at_ns % 1_000_000_000:09d}"


def _task(role: str, pid: int) -> str:
    comm = re.sub(r"[^0-9A-Za-z]", "", f"emu{role}")
    return f"{comm:>16.16}-{pid:<7d}"
