"""What a run leaves in its segment, copied out: plain arrays that analysis works on after the segment has gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from emu.iommu.flush_queue import iova_fq
from emu.iommu.stages import STAGES
from emu.machine.context import ROLE_HYPERVISOR
from emu.machine.device import device_t
from emu.machine.layout import HISTOGRAMS, Layout
from emu.native.events import event_t
from emu.native.histogram import BUCKETS

SEEN_BY_FUNCTION = ("map", "unmap", "exposure", "flush")
"""Histograms that can be told apart by function; the others are the servers'."""


class Named(Protocol):
    """A process, thread or fiber: its name and, once it has ended, how."""

    name: str
    exit: int | None


@dataclass(slots=True)
class Recording:
    """A finished run.

    Attributes:
        contexts: every process's context but the supervisor's; shape (n,), dtype cpu_t.
        supervisor: the supervisor's context, after teardown if there was one.
        names, exits: of those processes.
        cpus: how many of them are CPUs; they come first.
        domain: of each function, shape (functions,). hypervisor: shape (1,).
        servers: what served requests, shape (n,), dtype server_t: the hypervisor's, or every context when inline.
        histograms: summed over processes; `flush`, `wait` and `schedule` in ns, the others in ticks.
        rings: of the queue that the domain had at the end, shape (rings,), dtype iova_fq; none where there are several
            functions.
        locks: (name, records), dtype spinlock_t.
        marks: shape (cpus, marks), dtype mark_t.
        devices: what each of those that do DMA did, shape (n,), dtype device_t; iotlb_hits: of all of them.
        findings: every process's, for each function, the supervisor's last; dtype findings_t.
        teardown: of each function, shape (functions,), or None when what a dead process had left could not be repaired.
        tick_ns: ns of one tick.
        most_pages: of one mapping of the load.
        log: what the event log is to tell of, dtype event_t.
        stages: where the time of maps and unmaps went, shape (2, STAGES), summed over CPUs; None where not measured.
        start_ns, start_ticks: when the first CPU started, on the machine's clock and in ticks.
        policy: name and key of the policy that was asked; None for Linux's.
        fq_init_failed: there was no memory for the queue. device_in_error: the ISM device has gone into error.
    """

    contexts: npt.NDArray[Any]
    supervisor: Any
    names: list[str]
    exits: list[int | None]
    cpus: int
    domain: npt.NDArray[Any]
    hypervisor: npt.NDArray[Any]
    servers: npt.NDArray[Any]
    server_count: int
    histograms: dict[str, npt.NDArray[np.int64]]
    rings: npt.NDArray[Any]
    locks: list[tuple[str, npt.NDArray[Any]]]
    marks: npt.NDArray[Any]
    findings: npt.NDArray[Any]
    devices: npt.NDArray[Any]
    iotlb_hits: int
    segment_bytes: int
    fq_size: int
    fq_timeout_ms: float
    tick_ns: float
    fq_init_failed: bool
    device_in_error: bool
    most_pages: int = 0
    events_recorded: int = 0
    events_lost: int = 0
    log: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, event_t))
    stages: npt.NDArray[np.int64] | None = None
    policy: dict[str, str] | None = None
    start_ns: int = 0
    start_ticks: int = 0
    teardown: npt.NDArray[Any] | None = None


def record(layout: Layout, members: Sequence[Named]) -> Recording:
    """Copy a stopped machine's segment."""
    segment = layout.segment
    everybody = segment.copy_of("contexts")
    contexts = everybody[: layout.supervisor]
    domain = segment.copy_of("domain")
    hypervisor = segment.copy_of("hypervisor")
    serving = np.array([layout.role_of(slot) == ROLE_HYPERVISOR for slot in range(layout.supervisor)])
    if not layout.servers:
        serving[:] = True
    return Recording(
        contexts=contexts,
        supervisor=everybody[layout.supervisor],
        names=[member.name for member in members],
        exits=[member.exit for member in members],
        cpus=layout.cpus,
        domain=domain,
        hypervisor=hypervisor,
        servers=segment.copy_of("servers")[: layout.supervisor][serving],
        server_count=max(layout.servers, 1),
        histograms={name: segment[f"{name}_histogram"].reshape(-1, BUCKETS).sum(axis=0) for name in HISTOGRAMS},
        rings=_rings(layout, domain),
        locks=locks_of(segment.copy_of, domain, hypervisor),
        marks=segment.copy_of("marks").reshape(layout.cpus, layout.marks_per_cpu),
        findings=segment.copy_of("findings"),
        devices=segment.copy_of("devices") if layout.devices else np.zeros(0, device_t),
        iotlb_hits=int(segment["iotlbs"]["hits"].sum()) if layout.devices else 0,
        segment_bytes=segment.size,
        fq_size=int(domain["cookie"]["fq_size"][0]),
        fq_timeout_ms=float(domain["cookie"]["fq_timeout_ns"][0]) / 1e6,
        tick_ns=_tick_ns(contexts[: layout.cpus]),
        fq_init_failed=bool(domain["fq_init_failed"].any()),
        device_in_error=bool(segment["functions"]["device_in_error"].any()),
        stages=_stages(layout),
        policy={"name": layout.policy.name, "key": layout.policy.source.key} if layout.policy else None,
        start_ns=_start(contexts[: layout.cpus], "started_ns"),
        start_ticks=_start(contexts[: layout.cpus], "started_ticks"),
        most_pages=max((int(program.ops["pages"].max(initial=0)) for program in layout.workload.programs), default=0),
    )


def _rings(layout: Layout, domain: Any) -> npt.NDArray[Any]:
    cookie = domain["cookie"]
    if len(cookie) > 1 or not cookie["fq_domain"][0]:
        return np.zeros(0, iova_fq)
    return layout.segment.copy_of("rings")[: int(cookie["fq_rings"][0])]


def locks_of(
    copy_of: Callable[[str], npt.NDArray[Any]], domain: Any, hypervisor: Any
) -> list[tuple[str, npt.NDArray[Any]]]:
    """Name and records of all locks of a machine.

    Args:
        copy_of: copies an array of the segment.
        domain: of each function, copied already.
        hypervisor: the same.
    """
    iovad = domain["cookie"]["iovad"]
    locks = [
        ("iova_rbtree_lock", iovad["iova_rbtree_lock"]),
        ("iova_magazine_lock", iovad["magazine_lock"]),
        ("iommu_bitmap_lock", domain["zdev"]["iommu_bitmap_lock"]),
        ("hypervisor lock", hypervisor["lock"]),
    ]
    if domain["rings"].any():
        locks.append(("iova_fq.lock", copy_of("rings")["lock"]))
    if iovad["rcaches"].any():
        locks.append(("iova_cpu_rcache.lock", copy_of("cpu_rcaches")["lock"]))
        locks.append(("iova_rcache.lock", copy_of("rcaches")["lock"]))
    return locks


def _stages(layout: Layout) -> npt.NDArray[np.int64] | None:
    if not layout.config.machine.breakdown:
        return None
    return np.array(layout.segment["stages"]).reshape(layout.cpus, 2, STAGES).sum(axis=0)


def _start(cpus: npt.NDArray[Any], clock: str) -> int:
    started = cpus[cpus["started_ns"] > 0]
    return int(started[clock][np.argmin(started["started_ns"])]) if len(started) else 0


def _tick_ns(cpus: npt.NDArray[Any]) -> float:
    """Length of a tick, from the CPU that ran longest."""
    spans = cpus["stopped_ns"] - cpus["started_ns"]
    longest = int(np.argmax(spans))
    ticks = int(cpus["stopped_ticks"][longest] - cpus["started_ticks"][longest])
    return float(spans[longest]) / ticks if ticks > 0 and spans[longest] > 0 else 1.0
