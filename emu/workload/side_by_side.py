"""The loads of several functions as that of one machine: each has its own CPUs and slots, in the order of functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emu.workload.program import OP_MAP, Program, Workload


def side_by_side(loads: Sequence[Workload]) -> Workload:
    """Put loads together that have nothing to do with each other.

    Args:
        loads: one for each function; without phases, as no synthetic load has any.
    """
    whole = Workload(
        name=" + ".join(dict.fromkeys(load.name for load in loads if load.programs)),
        programs=[],
        slots=0,
        segments=np.concatenate([load.segments for load in loads]),
        max_pages=max(load.max_pages for load in loads),
        notes=[note for load in loads for note in load.notes],
        slots_by_function=[load.slots for load in loads],
    )
    first_segment = 0
    for load in loads:
        whole.programs += [_moved(program, whole.slots, first_segment) for program in load.programs]
        whole.slots += load.slots
        first_segment += len(load.segments)
    return whole


def _moved(program: Program, first_slot: int, first_segment: int) -> Program:
    ops = program.ops.copy()
    ops["slot"] += first_slot
    ops["arg"][(ops["code"] == OP_MAP) & (ops["nents"] > 1)] += first_segment
    return Program(ops, program.loop_start)
