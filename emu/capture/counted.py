"""The kernel's counters where the kernel has none: counted from the events of its trace, phase by phase.

x86 keeps no statistics of a domain. Its trace tells as much: what was mapped and unmapped, each domain-wide flush, and
each invalidation handed to the hardware.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from emu.capture.counters import Counts, KernelCounters, PhaseCounters
from emu.capture.events import FLUSH, INVALIDATION, MAP, PAGE_SHIFT, SYNC, UNMAP
from emu.capture.flushes import BY_ATTACH, flushes_in
from emu.capture.ftrace import Capture

_SETTLING = " (settling)"


def counted_from_trace(capture: Capture, kernel: KernelCounters) -> KernelCounters:
    """What the trace itself says in place of counters that the kernel does not have.

    Args:
        capture: its events; with probes of invalidations, those of a hypervisor that must be told of maps count as
            Sync Map RPCITs, which is what they are called on s390.
        kernel: the description to complete.
    """
    flushes = flushes_in(capture.events)
    queue_flushes = flushes["event"][flushes["cause"] != BY_ATTACH]
    totals = _counts(capture, queue_flushes, np.ones(len(capture.events), bool))
    phases = []
    for name in capture.phases:
        delta = _counts(capture, queue_flushes, _within(capture, {name, name + _SETTLING}))
        phases.append(PhaseCounters(name, delta, delta, restarted=False, interrupted=False))
    return replace(kernel, phases=phases, totals=totals, comparable=totals, comparable_phases=[])


def _within(capture: Capture, names: set[str]) -> npt.NDArray[np.bool_]:
    """Which events lie in phases of these names."""
    inside = np.zeros(len(capture.events), bool)
    changes = capture.phase_changes
    ends = [change.event for change in changes[1:]] + [len(capture.events)]
    for change, end in zip(changes, ends, strict=True):
        if change.name in names:
            inside[change.event : end] = True
    return inside


def _counts(capture: Capture, queue_flushes: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> Counts:
    """What the chosen events count; `queue_flushes` are the events of all flushes but those of attaching a device."""
    events = capture.events
    kinds = np.where(chosen, events["kind"], 0)
    pages = (events["end"] - events["start"]) >> PAGE_SHIFT
    syncs = int((kinds == SYNC).sum())
    counts = {
        "Mapped pages": int(pages[kinds == MAP].sum()),
        "Unmapped pages": int(pages[kinds == UNMAP].sum()),
        "Global RPCITs": int(chosen[queue_flushes].sum()),
    }
    if (events["kind"] == FLUSH).any():
        return {**counts, "Sync Map RPCITs": 0, "Sync RPCITs": 0}
    if (events["kind"] == SYNC).any():
        counts["Sync RPCITs"] = syncs
        if invalidations := int((kinds == INVALIDATION).sum()):
            counts["Sync Map RPCITs"] = invalidations - syncs
    return counts
