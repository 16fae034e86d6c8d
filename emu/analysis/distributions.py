"""How often each latency occurred: exactly where every operation was recorded, else by the buckets of the histogram."""

from __future__ import annotations

from collections import Counter

import numpy as np

from emu.analysis.event_streams import process_streams
from emu.analysis.operations import MAPPED, UNMAPPED, slices_of
from emu.analysis.run_data import DomainRun, RunDataError

DISTRIBUTIONS = ("map", "unmap", "exposure", "wait")
"""As in `runs[].histograms` of summary.json."""
_KINDS = {"map": MAPPED, "unmap": UNMAPPED}


def distribution(domain: DomainRun, name: str) -> list[tuple[float, int]]:
    """(ns, how often), the shortest first; of buckets their upper bounds, which are 3 % too high at most.

    Args:
        domain: of a run.
        name: one of DISTRIBUTIONS.

    Raises:
        RunDataError: the run is of a version that had no such histograms, or its events cannot be read.
    """
    if name in _KINDS and domain.is_recorded and not domain.run["events"]["lost"]:
        return _recorded(domain, _KINDS[name])
    try:
        return [(float(upper), int(count)) for upper, count in domain.run["histograms"][name]]
    except (KeyError, TypeError, ValueError):
        raise RunDataError(f"{domain.folder}: summary.json has no histograms of {name}; run it again") from None


def _recorded(domain: DomainRun, kind: int) -> list[tuple[float, int]]:
    ticks: Counter[int] = Counter()
    for stream in process_streams(domain):
        for chunk in stream:
            slices = slices_of(chunk)
            slices = slices[slices["kind"] == kind]
            values, counts = np.unique(slices["finished_ticks"] - slices["started_ticks"], return_counts=True)
            ticks.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return [(value * domain.clock.tick_ns, count) for value, count in sorted(ticks.items())]
