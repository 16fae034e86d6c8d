"""How long each fq_flush_timeout() took: its flush, and the frees on every CPU's ring after it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emu.iommu.tracepoints import EVENT_FLUSH_TIMEOUT, EVENT_FLUSHED
from emu.native.lock import EVENT_LOCK_WAIT


def timer_flush_ticks(events: npt.NDArray[np.void], timer: int) -> npt.NDArray[np.int64]:
    """From the beginning of each to the last lock that it had to wait for, or the end of its flush.

    Where nothing is waited for after that, its end leaves no trace, so this is a lower bound; it is close where locks
    are contended, as they are waited for all the time.

    Args:
        events: of a run that was recorded, in order of time; shape (n,), dtype event_t.
        timer: the slot of the timer's process.

    Returns:
        In ticks, shape (firings,).
    """
    own = events[events["slot"] == timer]
    own = own[np.isin(own["code"], (EVENT_FLUSH_TIMEOUT, EVENT_FLUSHED, EVENT_LOCK_WAIT))]
    first = np.flatnonzero(own["code"] == EVENT_FLUSH_TIMEOUT)
    last = np.append(first, len(own))[1:] - 1
    took: npt.NDArray[np.int64] = own["ticks"][last] - own["ticks"][first]
    return took
