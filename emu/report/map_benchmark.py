"""The three lines of the kernel's tool, `tools/dma/dma_map_benchmark.c`."""

from __future__ import annotations

from emu.analysis.call_latency import CallLatency

MODES = ("SINGLE_MODE", "SG_MODE")
DIRECTIONS = ("BIDIRECTIONAL", "TO_DEVICE", "FROM_DEVICE")


def benchmark_lines(
    mode: int, threads: int, seconds: int, node: int, direction: int, granule: int, calls: tuple[CallLatency, CallLatency]
) -> list[str]:
    """What the tool prints, a line each; `calls` are those of map and of unmap."""
    mapped, unmapped = calls
    return [
        f"dma mapping benchmark({MODES[mode]}): threads:{threads} seconds:{seconds} node:{node} "
        f"dir:{DIRECTIONS[direction]} granule:{granule}",
        f"average map latency(us):{_micro(mapped.average_100ns)} standard deviation:{_micro(mapped.deviation_100ns)}",
        f"average unmap latency(us):{_micro(unmapped.average_100ns)} "
        f"standard deviation:{_micro(unmapped.deviation_100ns)}",
    ]


def _micro(units: int) -> str:
    return f"{units / 10:.1f}"
