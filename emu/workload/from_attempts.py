"""A kernel trace as an op program that may fail where the kernel did not, and the other way round.

Where addresses run short, which requests find none is the allocator's affair. So the maps of one request are tried as
the kernel tried them (`emu.capture.attempts`), and what comes of it is the replay's own:

- Where the kernel took a request back, the call that it did not get is made too, after the others. If it succeeds here,
  it is given back at once. What was mapped before is unmapped when the kernel did.
- Where the kernel went on, but a map fails here, the request is given up: what was mapped of it is unmapped at once, in
  order, and its later maps and its unmaps are left out.

The CPU on which a request completes must not unmap what is just being taken back. Its unmaps stand behind a gate: a
slot that nothing is ever mapped into, failed when the attempt is over and unmapped before them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from emu.capture.attempts import Attempts
from emu.capture.ftrace import Capture
from emu.workload.from_capture import Steps, Times, event_times, hand_out_slots, steps_at, steps_of, workload_of
from emu.workload.program import OP_FAIL, OP_GIVE_UP, OP_MAP, OP_SKIP_MAPPED, OP_UNMAP, RecordedTimes, Workload

_Indices = npt.NDArray[np.int64]

_SHORTEST = 0.4
"""On s390x a flush before a free of ten thousand entries and more took 10 to 40 ms where a probe told of its end."""
_LENGTHS = 13


def attempts_workload(capture: Capture, attempts: Attempts) -> Workload:
    """Turn a capture into programs that replay its attempts, and all else as `capture_workload` does.

    They are to be run at recorded times, in the recorded aperture. The maps of an attempt follow each other in its
    CPU's program, an `OP_GIVE_UP` before each but the first; the last of a failed one is the call that it did not get,
    where that is known. Attempts are in the order of `attempts` on their CPU, and no other map has an `OP_GIVE_UP`.

    Raises:
        CaptureError: a mapping is larger than an operation can hold.
    """
    times = event_times(capture)
    parts = [
        _taken_back(capture, times, attempts),
        _refused(capture, times, attempts),
        _gates(capture, times, attempts),
        steps_of(capture, capture.cpus),
        _given_up(capture, times, attempts),
    ]
    steps = np.concatenate(parts)
    fills_a_slot = np.repeat([False, True, True, True, False], [len(part) for part in parts])
    order = np.argsort(steps["order"], kind="stable")
    steps, fills_a_slot = steps[order], fills_a_slot[order]
    slots = _hand_out_slots(steps, fills_a_slot)
    load = workload_of(capture, steps, slots, capture.cpus)
    load.notes.append(
        f"{len(attempts.attempts)} requests are tried as the kernel tried them; it took {attempts.failed} of them back."
    )
    return load


def possible_times(recorded: RecordedTimes) -> list[RecordedTimes]:
    """The times of a record with flushes of each length that may be true of it, from `_SHORTEST` to the recorded ends.

    Where no probe tells of a flush's end, what is taken for it is the moment when its CPU was seen again, and that has
    freed thousands of entries meanwhile. Whether a map just before finds room hangs on it, and with a long request
    a hundred roll-backs do: one replay is one draw, and the median of several is what can be compared.
    """
    possible = []
    for share in np.linspace(_SHORTEST, 1.0, _LENGTHS):
        flushes = recorded.flushes.copy()
        lengths = flushes["end_ns"] - flushes["begin_ns"]
        shortened = (lengths * (1.0 - share)).astype(np.int64)
        flushes["end_ns"] -= shortened
        flushes["resume_ns"] -= shortened
        possible.append(replace(recorded, flushes=flushes))
    return possible


# Until slots are handed out, `mapping` says which mapping's slot is meant, and `arg` of an OP_GIVE_UP which one's
# failure counts. Calls refused and gates are numbered like mappings, from the end of those on: one of each an attempt.


def _refused_id(capture: Capture, rows: _Indices) -> _Indices:
    return len(capture.mappings) + 2 * rows


def _gate_id(capture: Capture, rows: _Indices) -> _Indices:
    return len(capture.mappings) + 2 * rows + 1


def _last_maps(attempts: Attempts) -> _Indices:
    last: _Indices = attempts.mappings[attempts.attempts["first"] + attempts.attempts["count"] - 1]
    return last


def _owners(attempts: Attempts) -> _Indices:
    """The attempt that each of `Attempts.mappings` belongs to."""
    return np.repeat(np.arange(len(attempts.attempts)), attempts.attempts["count"])


def _step_with(capture: Capture, times: Times, code: int, mappings: _Indices, at: _Indices, order: _Indices) -> Steps:
    """Steps on the slots of some mappings, not before the maps `at`."""
    steps = steps_at(capture, times, code, capture.mappings["map_event"][at])
    steps["mapping"] = mappings
    steps["order"] = order
    return steps


def _after(capture: Capture, times: Times, mappings: _Indices) -> _Indices:
    order: _Indices = 2 * times[capture.mappings["map_event"][mappings]] + 2
    return order


def _given_up(capture: Capture, times: Times, attempts: Attempts) -> Steps:
    """Before each map of an attempt but its first. Due with the first, so that none waits once one has failed."""
    owners = _owners(attempts)
    later = np.flatnonzero(np.diff(owners, prepend=-1) == 0)
    mappings, begun = attempts.mappings[later], attempts.mappings[attempts.attempts["first"][owners[later]]]
    steps = _step_with(capture, times, OP_GIVE_UP, mappings, begun, 2 * times[capture.mappings["map_event"][mappings]])
    steps["op"]["arg"] = attempts.mappings[later - 1]
    return steps


def _taken_back(capture: Capture, times: Times, attempts: Attempts) -> Steps:
    """After the last map of each attempt that the kernel completed: what undoes it if it has failed here."""
    completed = ~attempts.attempts["failed"]
    last, counts = _last_maps(attempts)[completed], attempts.attempts["count"][completed]
    begun = attempts.mappings[attempts.attempts["first"][completed]]
    skips = _step_with(capture, times, OP_SKIP_MAPPED, last, begun, _after(capture, times, last))
    skips["op"]["arg"] = 2 * counts
    mappings = attempts.mappings[completed[_owners(attempts)]]
    at, order = np.repeat(begun, counts), np.repeat(skips["order"], counts)
    undone = np.stack([_step_with(capture, times, code, mappings, at, order) for code in (OP_UNMAP, OP_FAIL)], axis=1)
    return np.concatenate([skips, undone.ravel()])


def _refused(capture: Capture, times: Times, attempts: Attempts) -> Steps:
    """After the last map of each attempt that failed: the call that did not succeed."""
    rows = np.flatnonzero(attempts.attempts["wanted_pages"])
    last = _last_maps(attempts)[rows]
    codes = (OP_GIVE_UP, OP_MAP, OP_UNMAP)
    parts = [
        _step_with(capture, times, code, _refused_id(capture, rows), last, _after(capture, times, last))
        for code in codes
    ]
    parts[0]["op"]["arg"] = last
    parts[1]["op"]["pages"] = attempts.attempts["wanted_pages"][rows]
    parts[1]["op"]["nents"] = 1
    return np.stack(parts, axis=1).ravel()


def _gates(capture: Capture, times: Times, attempts: Attempts) -> Steps:
    """Where attempts complete on another CPU: its gate opens after its maps, and stands before its first unmap."""
    mappings, last = capture.mappings, _last_maps(attempts)
    ends = mappings["unmap_event"][last]
    elsewhere = (ends >= 0) & (capture.events["cpu"][ends] != attempts.attempts["cpu"])
    rows = np.flatnonzero(~attempts.attempts["failed"] & elsewhere)
    last, ends = last[rows], ends[rows]
    opened = _step_with(capture, times, OP_FAIL, _gate_id(capture, rows), last, _after(capture, times, last))
    passed = steps_at(capture, times, OP_UNMAP, ends)
    passed["mapping"] = opened["mapping"]
    passed["order"] -= 1
    return np.concatenate([opened, passed])


def _hand_out_slots(steps: Steps, fills_a_slot: npt.NDArray[np.bool_]) -> int:
    """Give every mapping, refused call and gate a slot, and every step the slots it means; how many are needed."""
    takers = steps[fills_a_slot & (steps["op"]["code"] != OP_GIVE_UP)]
    # A gate takes its slot as a map does.
    takers["op"]["code"][takers["op"]["code"] == OP_FAIL] = OP_MAP
    slots = hand_out_slots(takers)
    slot_of = np.zeros(int(steps["mapping"].max()) + 1, np.int64)
    taken = takers["mapping"] >= 0
    slot_of[takers["mapping"][taken]] = takers["op"]["slot"][taken]
    means_a_slot = steps["mapping"] >= 0
    steps["op"]["slot"][means_a_slot] = slot_of[steps["mapping"][means_a_slot]]
    gives_up = steps["op"]["code"] == OP_GIVE_UP
    steps["op"]["arg"][gives_up] = slot_of[steps["op"]["arg"][gives_up]]
    return slots
