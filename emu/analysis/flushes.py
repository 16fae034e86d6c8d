"""Flushes of everything, put together from the events of a machine: who, why, what of, how long."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emu.iommu.tracepoints import (
    CAUSE_SHIFT,
    EVENT_FLUSH,
    EVENT_FLUSHED,
    EVENT_RPCIT_DONE,
)
from emu.native.events import is_any_of

CODES_OF_FLUSHES = (EVENT_FLUSH, EVENT_FLUSHED, EVENT_RPCIT_DONE)
"""Events of which flushes are put together."""

CAUSES = ("full", "timeout", "no_resources", "wrap", "early")
"""Names of CAUSE_*, as `flushes` in summary.json has them."""

flush_t = np.dtype(
    [
        ("started_ticks", "i8"),
        ("finished_ticks", "i8"),
        ("slot", "i4"),
        ("cpu", "i4"),
        ("cause", "i4"),
        ("entries", "i8"),
        ("walked", "i8"),
        ("changed", "i8"),
        ("wait_ns", "i8"),
        ("service_ns", "i8"),
    ]
)
"""`slot`: the process, `cpu`: the emulated CPU on whose behalf; `entries`: IOVAs that waited for it; `wait_ns` until a
server was free; `finished_ticks` is -1, and what only the end tells 0, where it did not end or its end was lost."""


def flushes_of(events: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Every flush of everything.

    Args:
        events: of all processes, each process's in its order; shape (n,), dtype event_t.

    Returns:
        In order of their starts, shape (flushes,), dtype flush_t.
    """
    relevant = events[is_any_of(events["code"], CODES_OF_FLUSHES)]
    relevant = relevant[np.argsort(relevant["slot"], kind="stable")]
    starts = np.flatnonzero(relevant["code"] == EVENT_FLUSH)
    found = np.zeros(len(starts), flush_t)
    began = relevant[starts]
    found["started_ticks"], found["slot"], found["cpu"] = began["ticks"], began["slot"], began["cpu"]
    found["cause"] = began["b"] >> CAUSE_SHIFT
    found["entries"] = began["b"] & ((1 << CAUSE_SHIFT) - 1)
    found["finished_ticks"] = -1
    # A flush is between its beginning and its end the only thing that its process does, so its end is the next one,
    # unless another begins before, or it is another process's.
    ends = np.append(np.flatnonzero(relevant["code"] == EVENT_FLUSHED), len(relevant))
    end = ends[np.searchsorted(ends, starts)]
    following = np.append(starts[1:], len(relevant))
    ended = end < following
    ended[ended] = relevant["slot"][end[ended]] == found["slot"][ended]
    rows = np.flatnonzero(ended)
    found["finished_ticks"][rows] = relevant["ticks"][end[rows]]
    # The answer to its request, the last one where it was busy at first, is next to its end.
    answered = rows[relevant["code"][end[rows] - 1] == EVENT_RPCIT_DONE]
    answers = relevant[end[answered] - 1]
    found["walked"][answered], found["changed"][answered] = answers["a"] >> 32, answers["a"] & 0xFFFFFFFF
    found["wait_ns"][answered], found["service_ns"][answered] = answers["b"] >> 32, answers["b"] & 0xFFFFFFFF
    return found[np.argsort(found["started_ticks"], kind="stable")]


def without_other_answers(events: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Leave out answers to requests that no flush of everything made: most, where every request is recorded.

    Args:
        events: of CODES_OF_FLUSHES alone, consecutive ones of a file; shape (n,), dtype event_t.

    Returns:
        Those that `flushes_of` needs, and the last one, whose successor is not known here.
    """
    if not len(events):
        return events
    needed = events["code"] != EVENT_RPCIT_DONE
    # What follows it in the file may be another process's; then nothing is known of it either.
    needed[:-1] |= (events["code"][1:] == EVENT_FLUSHED) | (events["slot"][1:] != events["slot"][:-1])
    needed[-1] = True
    kept: npt.NDArray[np.void] = events[needed]
    return kept


def cause_name(cause: int) -> str:
    """The name of a flush's cause."""
    return CAUSES[cause] if 0 <= cause < len(CAUSES) else "unknown"
