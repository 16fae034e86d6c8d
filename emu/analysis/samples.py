"""How a run went on over time, from the `sample` entries of its log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

_LEAST_GAP = 0.25
"""Of the median gap between samples."""
_FIELDS = ("pairs", "queued", "requests", "busy_ns", "waiting")


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one domain, in order of time; all arrays have the shape (n,).

    Attributes:
        at_s: when, in s since the start of the load.
        pairs, requests, busy_ns: sums since the start.
        queued, waiting: IOVAs that waited for a flush, and requests for the hypervisor, at that moment.
    """

    at_s: Numbers
    pairs: Numbers
    queued: Numbers
    requests: Numbers
    busy_ns: Numbers
    waiting: Numbers

    def __len__(self) -> int:
        return len(self.at_s)

    def rate(self, sums: Numbers) -> Numbers:
        """By how much a sum grew in each second of the interval that ends at a sample; the first begins at 0."""
        # Sums are read without a lock and may be a little off: a rate is never below 0.
        return np.maximum(np.diff(sums, prepend=0.0), 0.0) / np.diff(self.at_s, prepend=0.0)

    def busy(self, servers: int) -> Numbers:
        """Part of the servers' time, 0 to 1, in the interval that ends at a sample.

        A request is counted when it ends; what cannot have been spent in that interval was spent before it.
        """
        capacity_ns = np.diff(self.at_s, prepend=0.0) * servers * 1e9
        counted_ns = np.maximum(np.diff(self.busy_ns, prepend=0.0), 0.0)
        spent_ns, earlier_ns = np.empty(len(self)), 0.0
        for interval in reversed(range(len(self))):
            due_ns = counted_ns[interval] + earlier_ns
            spent_ns[interval] = min(due_ns, capacity_ns[interval])
            earlier_ns = due_ns - spent_ns[interval]
        return spent_ns / capacity_ns


def samples_of(entries: Iterable[dict[str, Any]]) -> Samples:
    """Put together the samples of one domain.

    Other entries and damaged ones are left out, and so is a sample soon after another, as after a time in which the
    machine was not looked at: a rate over such a short time says nothing.
    """
    rows: list[list[int]] = []
    latest_ns = 0
    for entry in entries:
        values = [value for name in ("at_ns", *_FIELDS) if isinstance(value := entry.get(name), int)]
        is_whole = entry.get("event") == "sample" and len(values) == 1 + len(_FIELDS)
        if is_whole and values[0] > latest_ns:
            latest_ns = values[0]
            rows.append(values)
    table = np.array(rows, float).reshape(-1, 1 + len(_FIELDS))
    gaps_ns = np.diff(table[:, 0], prepend=0.0)
    columns = table[gaps_ns >= _LEAST_GAP * np.median(gaps_ns)].T if len(table) else table.T
    return Samples(columns[0] / 1e9, *columns[1:])
