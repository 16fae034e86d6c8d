"""What was waited for, in the terms of `perf lock contention`: every lock of a run, and the hypervisor's queue."""

from __future__ import annotations

from typing import Any

HYPERVISOR_QUEUE = "hypervisor queue"

_CALLERS = {
    "iova_rbtree_lock": "alloc_iova, free_iova, magazine_free_pfns",
    "iova_magazine_lock": "magazine_alloc, magazine_free",
    "iova_cpu_rcache.lock": "iova_rcache_get, iova_rcache_insert",
    "iova_rcache.lock": "iova_rcache_get, iova_rcache_insert, iova_depot_work_func",
    "iova_fq.lock": "queue_iova, fq_flush_timeout",
    "iommu_bitmap_lock": "dma_alloc_address, dma_free_address",
    "hypervisor lock": "serve_request",
    HYPERVISOR_QUEUE: "rpcit",
}
"""The functions of the emulated kernel that take each."""


def contention(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that processes of a run waited for, the dearest first.

    Args:
        run: an element of `runs` in summary.json.

    Returns:
        `lock`, `count` (of that name), `acquisitions`, `contended`, `total_wait_ns`, `max_wait_ns`, `avg_wait_ns` (over
        contended ones), `taken_over` (from dead owners), `type` (spinlock or queue) and `caller` of each.
    """
    rows = [
        {
            "lock": lock["name"],
            **{key: lock.get(key) for key in ("count", "acquisitions", "contended")},
            **{key: lock.get(key) for key in ("total_wait_ns", "max_wait_ns", "avg_wait_ns", "taken_over")},
            "type": "spinlock",
            "caller": _CALLERS.get(lock["name"], ""),
        }
        for lock in run["locks"]
    ]
    if run["hypervisor"]["requests"]:
        rows.append(_queue(run["hypervisor"]))
    return sorted(rows, key=lambda row: -(row["total_wait_ns"] or 0))


def _queue(hypervisor: dict[str, Any]) -> dict[str, Any]:
    waits, waited = hypervisor["queue_wait_ns"], hypervisor.get("waited")
    return {
        "lock": HYPERVISOR_QUEUE,
        "count": 1,
        "acquisitions": hypervisor["requests"],
        "contended": waited,
        "total_wait_ns": waits.get("total"),
        "max_wait_ns": waits["max"],
        "avg_wait_ns": round(waits["total"] / waited) if waited else waited,
        "taken_over": 0,
        "type": "queue",
        "caller": _CALLERS[HYPERVISOR_QUEUE],
    }
