"""The figures of a cell: what of a run's summary has a column of its own, and in which direction it is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Run = Mapping[str, Any]


def _at(*path: str) -> Callable[[Run], Any]:
    def read(run: Run) -> Any:
        value: Any = run
        for name in path:
            if value is None:
                return None
            value = value[name]
        return value

    return read


def _exposed(name: str) -> Callable[[Run], Any]:
    """A time of exposure; None where it is not known: no flush ended, or everything is always reachable."""

    def read(run: Run) -> Any:
        exposure = run["exposure"]
        never_flushed = not exposure["windows"] and exposure["still_open"]
        return None if never_flushed or run["domain"] == "identity" else exposure[name]

    return read


_FIGURES: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "ops": ("BIGINT", _at("ops")),
    "seconds": ("DOUBLE", _at("seconds")),
    "pairs_per_s": ("DOUBLE", _at("pairs_per_s")),
    "pages_per_s": ("DOUBLE", _at("pages_per_s")),
    "map_p50_ns": ("DOUBLE", _at("latency_ns", "map", "p50")),
    "map_p99_ns": ("DOUBLE", _at("latency_ns", "map", "p99")),
    "unmap_p50_ns": ("DOUBLE", _at("latency_ns", "unmap", "p50")),
    "unmap_p99_ns": ("DOUBLE", _at("latency_ns", "unmap", "p99")),
    "global_rpcits": ("BIGINT", _at("counters", "Global RPCITs")),
    "sync_map_rpcits": ("BIGINT", _at("counters", "Sync Map RPCITs")),
    "sync_rpcits": ("BIGINT", _at("counters", "Sync RPCITs")),
    "flushes_full": ("BIGINT", _at("flushes", "full")),
    "flushes_timeout": ("BIGINT", _at("flushes", "timeout")),
    "flushes_no_resources": ("BIGINT", _at("flushes", "no_resources")),
    "flushes_wrap": ("BIGINT", _at("flushes", "wrap")),
    "flushes_early": ("BIGINT", _at("flushes", "early")),
    "iovas_per_flush": ("DOUBLE", _at("iovas_per_flush")),
    "queue_size": ("BIGINT", _at("queue", "size")),
    "queue_timeout_ms": ("DOUBLE", _at("queue", "timeout_ms")),
    "queue_depth_max": ("BIGINT", _at("queue", "depth_max")),
    "overruns": ("BIGINT", _at("overruns")),
    "map_failures": ("BIGINT", _at("map_failures")),
    "hypervisor_utilisation": ("DOUBLE", _at("hypervisor", "utilisation")),
    "hypervisor_wait_p99_ns": ("DOUBLE", _at("hypervisor", "queue_wait_ns", "p99")),
    "exposure_p50_ns": ("DOUBLE", _exposed("p50_ns")),
    "exposure_p99_ns": ("DOUBLE", _exposed("p99_ns")),
    "exposure_max_ns": ("DOUBLE", _exposed("max_ns")),
    "exposure_page_seconds": ("DOUBLE", _at("exposure", "page_seconds")),
    "exposure_still_open": ("BIGINT", _at("exposure", "still_open")),
    "segment_bytes": ("BIGINT", _at("segment_bytes")),
    "violations": ("BIGINT", _at("violations")),
}
COLUMNS: dict[str, str] = {name: kind for name, (kind, _) in _FIGURES.items()}
"""Types in SQL, by name."""

_MORE_IS_BETTER = frozenset({"pairs_per_s", "pages_per_s", "iovas_per_flush"})
OBJECTIVES: dict[str, str] = {
    name: "maximize" if name in _MORE_IS_BETTER else "minimize"
    for name in COLUMNS
    if name not in ("ops", "seconds", "queue_size", "queue_timeout_ms")
}
"""What a search may look for, and whether the most or the least of it, in the words of optuna."""


def figures(run: Run) -> dict[str, Any]:
    """The figures of one element of `runs` in summary.json; None where a run has no such thing."""
    return {name: read(run) for name, (_, read) in _FIGURES.items()}
