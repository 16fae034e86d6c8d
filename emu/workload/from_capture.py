"""A kernel trace as an op program: every CPU does again what it did then, in the order it did it.

Each map call becomes one `OP_MAP` at the place of its first chunk, each unmap one `OP_UNMAP` on the CPU it happened on.
Slots are handed out and come back in trace order, so what an operation waits for always happened before it in the
trace, and each slot's operations can only happen in the order they have there: the programs cannot deadlock, however
their CPUs are scheduled. Where probes in the flush queue tell more exactly than its lines when an unmap began, that may
take the place of the trace's order.
"""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import numpy.typing as npt

from emu.capture.events import PAGE_SHIFT, CaptureError
from emu.capture.flushes import BY_ATTACH, BY_TIMER, flushes_in
from emu.capture.ftrace import Capture
from emu.capture.queue_probes import QueueTimes, queue_times, strictly_increasing
from emu.workload.program import (
    OP_MAP,
    OP_MARK,
    OP_UNMAP,
    Program,
    RecordedTimes,
    Workload,
    firing_t,
    op_t,
    queue_flush_t,
)

Steps = npt.NDArray[np.void]
_Indices = npt.NDArray[np.int64]
Times = npt.NDArray[np.int64]

step_t = np.dtype([("op", op_t), ("cpu", "i4"), ("keeps", "?"), ("order", "i8"), ("mapping", "i8")], align=True)
"""An operation, its CPU and its place among all: 2 * its time + 1, or 2 * an event's time for what happens just before
that event. `mapping` is the index of what it maps or unmaps, -1 for marks; an unmap that `keeps` its slot takes so long
that nobody should wait for it."""


def capture_workload(capture: Capture, cpus: int | None = None, *, as_probed: bool = False) -> Workload:
    """Turn a capture into the programs that replay it.

    `Workload.phases` begins with `(before)`; the others are those of `capture.phase_changes`, as they first appear
    there. Every program enters each phase at its place in the trace. The n-th `OP_MAP` of a program is the n-th of
    `capture.mappings` on that CPU. `at_ns` counts from the capture's first event; no two events have the same.

    Args:
        capture: what was recorded.
        cpus: CPUs to replay on; as many as recorded if None. On fewer, recorded CPU c becomes CPU c % cpus and trace
            order is kept; of more, the others stay idle.
        as_probed: for a replay at recorded times: unmaps begin when probes in the flush queue say that they did, where
            there are such probes, and each CPU's operations are in the order of these times.

    Raises:
        CaptureError: a mapping is larger than an operation can hold.
        ValueError: `cpus` is not positive.
    """
    cpus = capture.cpus if cpus is None else cpus
    if cpus < 1:
        raise ValueError(f"cpus must be positive, not {cpus}")
    steps = steps_of(capture, cpus, as_probed=as_probed)
    steps = steps[np.argsort(steps["order"], kind="stable")]
    return workload_of(capture, steps, hand_out_slots(steps), cpus)


def steps_of(capture: Capture, cpus: int, *, as_probed: bool = False) -> Steps:
    """What a capture's CPUs did, as operations without slots, in no order; shape (n,), dtype `step_t`.

    Raises:
        CaptureError: a mapping is larger than an operation can hold.
    """
    max_pages = int(capture.mappings["pages"].max())
    if max_pages > np.iinfo(np.int32).max:
        raise CaptureError(f"{capture.path} has a mapping of {max_pages} pages; leave it out, no replay can hold it")
    probed = queue_times(capture) if as_probed else None
    times = event_times(capture, probed)
    marks = _mark_steps(capture, times, cpus)
    unmaps = _unmap_steps(capture, times)
    if probed:
        flushed = probed.calls["event"][probed.calls["full"]]
        unmaps["keeps"] = np.isin(capture.mappings["unmap_event"][unmaps["mapping"]], flushed)
    steps = np.concatenate([marks, _map_steps(capture, times), unmaps])
    steps["cpu"] %= cpus
    return steps


def workload_of(capture: Capture, steps: Steps, slots: int, cpus: int) -> Workload:
    """The load that does the steps of a capture, which are in the order of the trace and have their slots."""
    return Workload(
        name=capture.name,
        programs=[_program(steps[steps["cpu"] == cpu]) for cpu in range(cpus)],
        slots=slots,
        segments=_segments(capture),
        phases=_phases(capture),
        max_pages=int(steps["op"]["pages"].max()),
        notes=_notes(capture, cpus),
    )


def _phases(capture: Capture) -> list[str]:
    return list(dict.fromkeys(["(before)", *(change.name for change in capture.phase_changes)]))


def recorded_times(capture: Capture) -> RecordedTimes:
    """When the capture's timer fired and its flushes began and ended, for a replay at recorded times.

    With probes in the flush queue that tell enough, the flushes fit the operations of `capture_workload(as_probed)`.
    """
    probed = queue_times(capture)
    if probed:
        return _probed_times(capture, probed)
    flushes = flushes_in(capture.events)
    flushes = flushes[flushes["cause"] != BY_ATTACH]
    start_ns = int(capture.events["time_ns"][0])
    timers = flushes[flushes["cause"] == BY_TIMER]
    firings = np.zeros(len(timers), firing_t)
    firings["at_ns"], firings["cpu"] = timers["timer_ns"] - start_ns, timers["cpu"]
    recorded = np.zeros(len(flushes), queue_flush_t)
    recorded["begin_ns"] = flushes["begin_ns"] - start_ns
    recorded["end_ns"] = recorded["resume_ns"] = flushes["end_ns"] - start_ns
    recorded["cause_ns"] = flushes["cause_ns"] - start_ns
    recorded["cpu"] = flushes["cpu"]
    return RecordedTimes(_in_order(firings, "at_ns"), _in_order(recorded, "cause_ns"))


def _probed_times(capture: Capture, probed: QueueTimes) -> RecordedTimes:
    flushes, start_ns = probed.flushes, int(capture.events["time_ns"][0])
    timers = flushes[flushes["timer"]]
    firings = np.zeros(len(timers), firing_t)
    firings["at_ns"], firings["cpu"] = timers["cause_ns"] - start_ns, timers["cpu"]
    recorded = np.zeros(len(flushes), queue_flush_t)
    for name, told in (("cause", "cause"), ("begin", "start"), ("end", "finish"), ("resume", "resume")):
        recorded[f"{name}_ns"] = flushes[f"{told}_ns"] - start_ns
    recorded["cpu"] = flushes["cpu"]
    return RecordedTimes(firings, recorded)


def _in_order(rows: npt.NDArray[np.void], field: str) -> npt.NDArray[np.void]:
    return rows[np.argsort(rows[field], kind="stable")]


def _program(steps: Steps) -> Program:
    ops = np.ascontiguousarray(steps["op"])
    return Program(ops=ops, loop_start=len(ops))


def _notes(capture: Capture, cpus: int) -> list[str]:
    folded = [f"The {capture.cpus} CPUs of the capture are folded onto {cpus}."] if cpus < capture.cpus else []
    return capture.report.sentences() + folded


def steps_at(capture: Capture, times: Times, code: int, events: _Indices) -> Steps:
    """Steps that happen where and when some events did."""
    steps = np.zeros(len(events), step_t)
    steps["op"]["code"] = code
    steps["op"]["at_ns"] = times[events]
    steps["cpu"] = capture.events["cpu"][events]
    steps["order"] = 2 * times[events] + 1
    return steps


def event_times(capture: Capture, probed: QueueTimes | None = None) -> Times:
    """When each event happened, in ns since the first: no two at once, so that they have an order, the trace's.

    Unmaps that were placed by probes may have happened before events above them, but not before their map.
    """
    start_ns = int(capture.events["time_ns"][0])
    if not probed:
        return strictly_increasing(capture.events["time_ns"] - start_ns)
    times = probed.events_ns - start_ns
    both = capture.mappings[capture.mappings["unmap_event"] >= 0]
    times[both["map_event"]] = np.minimum(times[both["map_event"]], times[both["unmap_event"]] - 1)
    return times


def _mark_steps(capture: Capture, times: Times, cpus: int) -> Steps:
    """Every phase change on every CPU; the first phase begins before everything."""
    phases = _phases(capture)
    changes = [change.event for change in capture.phase_changes]
    numbers = [phases.index(change.name) for change in capture.phase_changes]
    steps = steps_at(capture, times, OP_MARK, np.array([0, *changes], np.int64))
    steps["op"]["arg"] = [0, *numbers]
    steps["order"][0] = -1
    steps["mapping"] = -1
    everywhere = np.tile(steps, cpus)
    everywhere["cpu"] = np.repeat(np.arange(cpus), len(steps))
    return everywhere


def _map_steps(capture: Capture, times: Times) -> Steps:
    mappings = capture.mappings
    steps = steps_at(capture, times, OP_MAP, mappings["map_event"])
    steps["op"]["pages"] = mappings["pages"]
    steps["op"]["nents"] = mappings["nents"]
    in_segments = np.where(mappings["nents"] > 1, mappings["nents"], 0)
    steps["op"]["arg"] = np.where(mappings["nents"] > 1, np.cumsum(in_segments) - in_segments, 0)
    steps["mapping"] = np.arange(len(mappings))
    return steps


def _unmap_steps(capture: Capture, times: Times) -> Steps:
    unmapped = np.flatnonzero(capture.mappings["unmap_event"] >= 0)
    supplied = capture.mappings["supplied"][unmapped]
    events = np.where(supplied, _supplied_before(capture)[unmapped], capture.mappings["unmap_event"][unmapped])
    steps = steps_at(capture, times, OP_UNMAP, events)
    steps["order"] -= supplied
    steps["mapping"] = unmapped
    return steps


def _supplied_before(capture: Capture) -> _Indices:
    """For each mapping whose unmap was lost: the event before which it is supplied.

    That is the beginning of the map call that took its addresses, or, where that call began before the mapping did, the
    very chunk that took them.
    """
    mappings = capture.mappings
    mapping_of = np.zeros(len(capture.events), np.int64)
    mapping_of[capture.chunks] = np.repeat(np.arange(len(mappings)), mappings["nents"])
    taken_by = mappings["map_event"][mapping_of[mappings["unmap_event"]]]
    return np.where(taken_by > mappings["map_event"], taken_by, mappings["unmap_event"])


def _segments(capture: Capture) -> npt.NDArray[np.int32]:
    chunks = capture.chunks[np.repeat(capture.mappings["nents"] > 1, capture.mappings["nents"])]
    pages = (capture.events["end"] - capture.events["start"])[chunks] >> PAGE_SHIFT
    return np.asarray(pages, np.int32)


def hand_out_slots(steps: Steps) -> int:
    """Give every mapping a slot, in trace order; the number of slots needed.

    A slot is used again only by a mapping that the same CPU maps and the same CPU unmaps as the one before: their
    program order then keeps the slot's maps in order, and its unmaps. With any other CPU, one that runs ahead could
    find the slot full and unmap the mapping before its own.
    """
    rows = steps["mapping"].tolist(), steps["op"]["code"].tolist(), steps["cpu"].tolist(), steps["keeps"].tolist()
    unmapped_on = {mapping: cpu for mapping, code, cpu, _ in zip(*rows, strict=True) if code == OP_UNMAP}
    free: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
    held: dict[int, tuple[int, deque[int]]] = {}
    given, slots = np.zeros(len(steps), np.int32), 0
    for step, (mapping, code, cpu, keeps) in enumerate(zip(*rows, strict=True)):
        if code == OP_MAP:
            queue = free[cpu, unmapped_on.get(mapping, -1)]
            slots += not queue
            given[step] = slot = queue.popleft() if queue else slots - 1
            held[mapping] = slot, queue
        elif code == OP_UNMAP:
            given[step], queue = held.pop(mapping)
            if not keeps:
                queue.append(int(given[step]))
    steps["op"]["slot"] = given
    return slots
