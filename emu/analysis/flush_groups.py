"""Flushes thinned out for a picture: those of one cause that began at almost the same time are one group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emu.analysis.machine_log import Clock

flush_group_t = np.dtype(
    [("at_s", "f8"), ("cause", "i4"), ("count", "i8"), ("entries", "i8"), ("longest_ns", "f8")],
)
"""`at_s`: when they began, on average, in s since the start of the load; `entries`: IOVAs that waited for them, in all;
`longest_ns`: what the longest that ended took, 0 where none did."""


def flush_groups(flushes: npt.NDArray[np.void], clock: Clock, interval_s: float) -> npt.NDArray[np.void]:
    """Group flushes by cause and by interval of time.

    Args:
        flushes: dtype flush_t.
        clock: the machine's.
        interval_s: length of an interval; above 0.

    Returns:
        One row for each interval and cause that had any; dtype flush_group_t. The counts sum up to all flushes.
    """
    at_s = (flushes["started_ticks"] - clock.start_ticks) * clock.tick_ns / 1e9
    took_ns = (flushes["finished_ticks"] - flushes["started_ticks"]) * clock.tick_ns
    took_ns[flushes["finished_ticks"] < 0] = 0.0
    keys = np.stack([np.floor(at_s / interval_s).astype(np.int64), flushes["cause"].astype(np.int64)])
    found, of = np.unique(keys, axis=1, return_inverse=True)
    of = of.reshape(-1)
    groups = np.zeros(found.shape[1], flush_group_t)
    groups["cause"] = found[1]
    groups["count"] = np.bincount(of, minlength=len(groups))
    groups["at_s"] = np.bincount(of, at_s, len(groups)) / np.maximum(groups["count"], 1)
    np.add.at(groups["entries"], of, flushes["entries"])
    np.maximum.at(groups["longest_ns"], of, took_ns)
    return groups
