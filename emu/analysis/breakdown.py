"""Where the time of maps and unmaps went: allocator, tables, queue, flush, hypervisor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emu.iommu.stages import (
    STAGE_ALLOCATOR,
    STAGE_CALL,
    STAGE_FLUSH,
    STAGE_QUEUE,
    STAGE_QUEUE_LOCK,
    STAGE_REQUEST,
    STAGE_REQUEST_SERVICE,
    STAGE_REQUEST_WAIT,
    STAGE_TABLES,
    STAGES_OF_MAP,
    STAGES_OF_UNMAP,
)
from emu.native.histogram import mean

_TIMED = {
    "call": STAGE_CALL,
    "allocator": STAGE_ALLOCATOR,
    "tables": STAGE_TABLES,
    "queue": STAGE_QUEUE,
    "queue_lock": STAGE_QUEUE_LOCK,
    "flush_wait": STAGE_FLUSH,
}
STAGE_NAMES = (*_TIMED, "hypervisor_queue", "hypervisor_service", "hypervisor_return")


def breakdown(
    stages: npt.NDArray[np.int64],
    map_histogram: npt.NDArray[np.int64],
    unmap_histogram: npt.NDArray[np.int64],
    tick_ns: float,
) -> dict[str, Any]:
    """Of maps and of unmaps: what all of them took, and each stage's part.

    Args:
        stages: shape (2, STAGES), as emu.iommu.stages says.
        map_histogram: what was measured around the calls, in ticks.
        unmap_histogram: the same of unmaps.
        tick_ns: length of a tick.

    Returns:
        {"map", "unmap"}: `calls`, `measured_ns` (their latencies' sum, from the histogram), `total_ns` (that of the
        stages) and `stages_ns` by name.
        `hypervisor_return` is what a request took beside its wait and its service: posting it, and this machine's
        scheduler.
    """
    return {
        "map": _of(stages[STAGES_OF_MAP], map_histogram, tick_ns),
        "unmap": _of(stages[STAGES_OF_UNMAP], unmap_histogram, tick_ns),
    }


def _of(stages: npt.NDArray[np.int64], histogram: npt.NDArray[np.int64], tick_ns: float) -> dict[str, Any]:
    parts = {name: float(stages[stage]) * tick_ns for name, stage in _TIMED.items()}
    request_ns = float(stages[STAGE_REQUEST]) * tick_ns
    # Two clocks: what was waited and served is told by the hypervisor's, in ns.
    service_ns = min(float(stages[STAGE_REQUEST_SERVICE]), request_ns)
    wait_ns = min(float(stages[STAGE_REQUEST_WAIT]), request_ns - service_ns)
    parts["hypervisor_queue"], parts["hypervisor_service"] = wait_ns, service_ns
    parts["hypervisor_return"] = request_ns - wait_ns - service_ns
    calls = int(histogram.sum())
    return {
        "calls": calls,
        "measured_ns": round(mean(histogram) * calls * tick_ns),
        "total_ns": round(sum(parts.values())),
        "stages_ns": {name: round(value) for name, value in parts.items()},
    }
