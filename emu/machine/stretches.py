"""How fast a machine is while nobody interrupts it: short stretches of its load, each CPU's between marks of its own.

On a machine that has other things to do, a run as a whole tells how much of it the others took. A stretch of some
hundred pairs is shorter than a time slice, so most stretches are not interrupted, and those that were are easily told:
they took many times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.config import Config
from emu.machine.recording import Recording
from emu.workload.nvme import nvme_workload
from emu.workload.program import OP_MARK, Workload, op_t

PAIRS = 256
"""Map+unmap pairs of a stretch."""
_INTERRUPTED = 2.5
"""Times the median: a stretch that took longer was interrupted."""
_LEAST = 20


def marked_load(config: Config, pairs: int, *, goes_on: bool = False) -> Workload:
    """The load `nvme`, about `pairs` map+unmap pairs on each CPU, with a mark before every stretch.

    Args:
        config: the run.
        pairs: of the part that has marks.
        goes_on: whether the load then repeats without marks, until the time is over; else it ends.
    """
    workload = nvme_workload(config, pairs)
    workload.phases = ["stretch"]
    for program in workload.programs:
        prologue, loop = program.ops[: program.loop_start], program.ops[program.loop_start :]
        count = len(loop) // (2 * PAIRS)
        marked = np.zeros((count, 2 * PAIRS + 1), op_t)
        marked[:, 0]["code"] = OP_MARK
        marked[:, 1:] = loop[: count * 2 * PAIRS].reshape(count, -1)
        # What is left of the loop brings every slot back to where the loop finds it.
        rest = loop[count * 2 * PAIRS :]
        program.ops = np.concatenate([prologue, marked.ravel(), *([rest, loop] if goes_on else [])])
        program.loop_start = len(program.ops) - (len(loop) if goes_on else 0)
    return workload


def uninterrupted_pairs_per_s(recording: Recording) -> float | None:
    """Pairs a second of all CPUs together, from a run of a marked load.

    A stretch counts where neither it nor what the other CPUs did meanwhile was interrupted. One CPU's stretches with a
    flush are told apart by themselves; where there are more CPUs, some of which wait for it, they are left out, and
    this says how fast the CPUs are between two flushes.

    Returns:
        None when a CPU has too few such stretches.
    """
    began, ended, took, plain, whole = [], [], [], [], []
    for cpu in range(recording.cpus):
        marks = recording.marks[cpu][: int(recording.contexts[cpu]["marks_done"])]
        if len(marks) <= _LEAST:
            return None
        flushes = sum(marks["ctrs"][f"flushes_{cause}"] for cause in ("full", "no_resources", "wrap", "early"))
        began.append(marks["at_ns"][:-1])
        ended.append(marks["at_ns"][1:])
        took.append(np.diff(marks["at_ns"]))
        plain.append(np.diff(flushes) == 0)
        whole.append(took[cpu] <= _INTERRUPTED * np.median(took[cpu]))
    if recording.cpus == 1:
        return _of_one_cpu(took[0], plain[0])
    pairs_per_s = 0.0
    for cpu in range(recording.cpus):
        good = plain[cpu] & whole[cpu]
        for other in set(range(recording.cpus)) - {cpu}:
            good &= _meets_whole_ones(began[cpu], ended[cpu], began[other], ended[other], whole[other])
        if good.sum() < _LEAST:
            return None
        pairs_per_s += float(PAIRS * good.sum() / took[cpu][good].sum() * 1e9)
    return pairs_per_s


def _of_one_cpu(took_ns: Any, plain: Any) -> float | None:
    """Pairs a second where stretches with and without a flush take what uninterrupted ones of them take."""
    ns = 0.0
    for kind in (plain, ~plain):
        of_kind = took_ns[kind]
        if len(of_kind):
            ns += len(of_kind) * float(of_kind[of_kind <= _INTERRUPTED * np.median(of_kind)].mean())
    return PAIRS * len(took_ns) / ns * 1e9


def _meets_whole_ones(began: Any, ended: Any, other_began: Any, other_ended: Any, other_whole: Any) -> Any:
    """Of each stretch, whether all stretches of another CPU that it meets were whole."""
    first = np.searchsorted(other_began, began, side="right") - 1
    last = np.searchsorted(other_ended, ended, side="left")
    is_inside = (first >= 0) & (last < len(other_whole))
    interrupted = np.concatenate([[0], np.cumsum(~other_whole)])
    final = len(other_whole) - 1
    return is_inside & (interrupted[np.clip(last, 0, final) + 1] == interrupted[np.clip(first, 0, final)])
