"""Exposure: for how long a device could still reach pages that the driver had unmapped."""

from __future__ import annotations

from typing import Any

from emu.native.compile import inline
from emu.native.histogram import record_value


@inline
def close_window(cpu: Any, unmapped_at: int, flushed_at: int, pages: int) -> None:
    """Note that a flush that finished at `flushed_at` ended the reach into pages unmapped at `unmapped_at` (ticks)."""
    window = max(flushed_at - unmapped_at, 0)
    record_value(cpu.exposure_histogram, window)
    cpu.ctrs.exposures += 1
    cpu.ctrs.exposure_page_ticks += window * int(pages)
    cpu.ctrs.exposure_max_ticks = max(cpu.ctrs.exposure_max_ticks, window)
