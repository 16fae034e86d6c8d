"""The three lines of the kernel's tool, `tools/dma/dma_map_benchmark.c`."""

from __future__ import annotations

from emu.analysis.call_latency import CallLatency

MODES = ("SINGLE_MODE", "SG_MODE")
DIRECTIONS = ("BIDIRECTIONAL", "TO_DEVICE", "FROM_DEVICE")


def benchmark_lines(
    mode: int,
    threads: int,
    seconds: int,
    node: int,
    direction: int,
    granule: int,
    calls: tuple[CallLatency, CallLatency],
) -> list[str]:
    """What the tool prints, a line each; `calls` are those of map and of unmap."""
    mapped, unmapped = calls
    load = f"threads:{threads} seconds:{seconds} node:{node} dir:{DIRECTIONS[direction]} granule:{granule}"
    return [
        f"dma mapping benchmark({MODES[mode]}): {load}",
        f"average map latency(us):{_micro(mapped)}",
        f"average unmap latency(us):{_micro(unmapped)}",
    ]


def _micro(call: CallLatency) -> str:
    return f"{call.average_100ns / 10:.1f} standard deviation:{call.deviation_100ns / 10:.1f}"
