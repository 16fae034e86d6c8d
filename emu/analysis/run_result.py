"""From a recording to one element of `runs` in summary.json; pure functions, names as the contract has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emu.config import QUEUED, Config, DomainType
from emu.iommu.counters import KERNEL_NAMES
from emu.iommu.domain import DOMAIN_TYPES
from emu.native.histogram import bucket_bounds, mean, percentile
from emu.workload.program import OP_MARK, Workload

if TYPE_CHECKING:
    from emu.machine.recording import Recording

VIOLATIONS = {
    "addresses": "violations",
    "queued_while_strict": "queued_while_strict",
    "queues_of_another_type": "queues_of_another_type",
}
"""The counter of each kind of violation."""
_TYPE_NAMES = {number: name for name, number in DOMAIN_TYPES.items()}
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def run_result(config: Config, domain: DomainType, workload: Workload, recording: Recording) -> dict[str, Any]:
    """Everything that is said about one run.

    Times are ns, rates are per second; `latency_ns` and `exposure` come from histograms whose buckets are 3 % wide.
    """
    cpus = recording.contexts[: recording.cpus]
    ctrs = recording.contexts["ctrs"]
    seconds = _seconds(cpus)
    pairs = int(cpus["ctrs"]["unmaps"].sum())
    global_flushes = int(ctrs["global_rpcits"].sum())
    violations = {kind: _sum_with_supervisor(recording, counter) for kind, counter in VIOLATIONS.items()}
    return {
        "domain": domain,
        "type_at_end": _TYPE_NAMES[int(recording.domain["type"][0])],
        "engine": config.machine.engine,
        "workload": workload.name,
        "preset": config.hypervisor.preset,
        "cpus": recording.cpus,
        "ops": pairs,
        "seconds": seconds,
        "pairs_per_s": pairs / seconds if seconds else 0.0,
        "pages_per_s": int(cpus["ctrs"]["unmapped_pages"].sum()) / seconds if seconds else 0.0,
        "pairs_by_cpu": [int(count) for count in cpus["ctrs"]["unmaps"]],
        "latency_ns": {
            "map": _latency(recording.histograms["map"], recording.tick_ns),
            "unmap": _latency(recording.histograms["unmap"], recording.tick_ns),
        },
        "counters": _kernel_counters(ctrs),
        "phases": _phases(workload, recording),
        "maps": int(ctrs["maps"].sum()),
        "unmaps": int(ctrs["unmaps"].sum()),
        "map_failures": int(ctrs["map_failures"].sum()),
        "flushes": {
            "full": int(ctrs["flushes_full"].sum()),
            "timeout": int(ctrs["flushes_timeout"].sum()),
            "no_resources": int(ctrs["flushes_no_resources"].sum()),
            "wrap": int(ctrs["flushes_wrap"].sum()),
        },
        "iovas_per_flush": int(ctrs["reclaimed"].sum()) / global_flushes if global_flushes else None,
        "queue": _queue(recording),
        "overruns": int(ctrs["overruns"].sum()),
        "overrun_iovas": int(ctrs["overrun_iovas"].sum()),
        "rcache_flushes": int(ctrs["rcache_flushes"].sum()),
        "locks": _locks(recording),
        "hypervisor": _hypervisor(recording, seconds),
        "exposure": _exposure(recording, ctrs),
        "violations": sum(violations.values()),
        "violations_by_kind": violations,
        "checked": config.machine.check,
        "events": {"recorded": recording.events_recorded, "lost": recording.events_lost}
        if config.machine.record
        else None,
        "conservation": _conservation(recording, ctrs, domain),
        "processes": _processes(recording),
        "segment_bytes": recording.segment_bytes,
        "fell_back_to_strict": recording.fq_init_failed or _is_denied_its_queue(config, domain),
        "device": config.device,
        "device_error": recording.device_in_error,
        "bugs": list(config.domain.bugs),
        "faults": list(config.machine.faults),
        "notes": [*workload.notes, *_notes(config, domain)],
    }


def _is_denied_its_queue(config: Config, domain: DomainType) -> bool:
    return config.device == "ism" and domain in QUEUED


def _notes(config: Config, domain: DomainType) -> list[str]:
    if not _is_denied_its_queue(config, domain):
        return []
    return [f"{domain}: an ISM device has no flush queue, whatever is asked for; the domain is strict."]


def _seconds(cpus: npt.NDArray[Any]) -> float:
    ran = cpus[cpus["started_ns"] > 0]
    if not len(ran):
        return 0.0
    stopped = np.where(ran["stopped_ns"] > 0, ran["stopped_ns"], ran["stopped_ns"].max())
    return max(float(stopped.max() - ran["started_ns"].min()), 0.0) / 1e9


def _latency(histogram: npt.NDArray[np.int64], unit_ns: float) -> dict[str, float]:
    result = {name: round(percentile(histogram, fraction) * unit_ns, 1) for name, fraction in _PERCENTILES.items()}
    counted = np.flatnonzero(histogram)
    result["max"] = round(float(bucket_bounds()[counted[-1] + 1]) * unit_ns, 1) if len(counted) else 0.0
    result["mean"] = round(mean(histogram) * unit_ns, 1)
    return result


def _kernel_counters(ctrs: npt.NDArray[Any]) -> dict[str, int]:
    return {name: int(ctrs[field].sum()) for name, field in KERNEL_NAMES.items()}


def _phases(workload: Workload, recording: Recording) -> list[dict[str, Any]]:
    """Per phase the sum, over CPUs, of what each counted between entering it and entering the next."""
    if not workload.phases or not any((program.ops["code"] == OP_MARK).any() for program in workload.programs):
        return []
    sums = {phase: dict.fromkeys(KERNEL_NAMES, 0) for phase in range(len(workload.phases))}
    for number in range(recording.cpus):
        context = recording.contexts[number]
        marks = recording.marks[number][: context["marks_done"]]
        ends = [*marks["ctrs"][1:], context["ctrs"]]
        for mark, end in zip(marks, ends, strict=True):
            for name, field in KERNEL_NAMES.items():
                sums[int(mark["phase"])][name] += int(end[field] - mark["ctrs"][field])
    return [{"name": name, "counters": sums[phase]} for phase, name in enumerate(workload.phases)]


def _queue(recording: Recording) -> dict[str, Any] | None:
    if not len(recording.rings):
        return None
    queued = int(recording.rings["queued"].sum())
    return {
        "rings": len(recording.rings),
        "size": recording.fq_size,
        "timeout_ms": recording.fq_timeout_ms,
        "depth_mean": float(recording.rings["total_depth"].sum()) / queued if queued else 0.0,
        "depth_max": int(recording.rings["max_depth"].max()),
    }


def _locks(recording: Recording) -> list[dict[str, Any]]:
    rows = []
    for name, locks in recording.locks:
        acquisitions = int(locks["acquisitions"].sum())
        if not acquisitions:
            continue
        contended = int(locks["contended"].sum())
        total = float(locks["total_wait"].sum()) * recording.tick_ns
        rows.append(
            {
                "name": name,
                "count": int(locks["acquisitions"].astype(bool).sum()),
                "acquisitions": acquisitions,
                "contended": contended,
                "total_wait_ns": round(total),
                "avg_wait_ns": round(total / contended) if contended else 0,
                "max_wait_ns": round(float(locks["max_wait"].max()) * recording.tick_ns),
                "taken_over": int(locks["recovered"].sum()),
            }
        )
    return sorted(rows, key=lambda row: -row["total_wait_ns"])


def _hypervisor(recording: Recording, seconds: float) -> dict[str, Any]:
    servers = recording.servers
    requests = int(servers["requests"].sum())
    busy_ns = int(servers["busy_ns"].sum())
    capacity_ns = seconds * recording.server_count * 1e9
    return {
        "requests": requests,
        "global_requests": int(servers["global_requests"].sum()),
        "busy_retries": int(recording.contexts["ctrs"]["busy_retries"].sum()),
        "busy_ns": busy_ns,
        "emulated_ns": int(servers["emulated_ns"].sum()),
        "utilisation": min(busy_ns / capacity_ns, 1.0) if capacity_ns else 0.0,
        "queue_wait_ns": _waits(recording.histograms["wait"], servers, "wait"),
        "schedule_ns": _waits(recording.histograms["schedule"], servers, "schedule"),
        "queue_length": {
            "mean": float(servers["total_queued"].sum()) / requests if requests else 0.0,
            "max": int(servers["max_queued"].max(initial=0)),
        },
        "walked": int(servers["walked"].sum()),
        "changed": int(servers["changed"].sum()),
    }


def _waits(histogram: npt.NDArray[np.int64], servers: npt.NDArray[Any], name: str) -> dict[str, Any]:
    return {
        **_latency(histogram, 1.0),
        "max": int(servers[f"max_{name}_ns"].max(initial=0)),
        "total": int(servers[f"total_{name}_ns"].sum()),
    }


def _exposure(recording: Recording, ctrs: npt.NDArray[Any]) -> dict[str, Any]:
    latency = _latency(recording.histograms["exposure"], recording.tick_ns)
    left = recording.teardown
    longest = (ctrs["exposure_max_ticks"].max(), recording.supervisor["ctrs"]["exposure_max_ticks"])
    return {
        "windows": _sum_with_supervisor(recording, "exposures"),
        "p50_ns": latency["p50"],
        "p99_ns": latency["p99"],
        "max_ns": round(float(max(longest)) * recording.tick_ns, 1),
        "page_seconds": float(_sum_with_supervisor(recording, "exposure_page_ticks")) * recording.tick_ns / 1e9,
        "still_open": int(left["queued"][0]) if left is not None else None,
    }


def _sum_with_supervisor(recording: Recording, counter: str) -> int:
    """Of what the supervisor counts too, when it unbinds the driver or takes the domain down."""
    return int(recording.contexts["ctrs"][counter].sum()) + int(recording.supervisor["ctrs"][counter])


def _conservation(recording: Recording, ctrs: npt.NDArray[Any], domain: DomainType) -> dict[str, Any] | None:
    """The sums that must balance; None after a death, when nobody knows what the dead had in hand."""
    if recording.teardown is None:
        return None
    left = recording.teardown[0]
    translated = domain != "identity"
    unmapped = int(ctrs["unmaps"].sum()) if translated else 0
    sums = {
        "mapped_pages": int(ctrs["mapped_pages"].sum()),
        "unmapped_pages": int(ctrs["unmapped_pages"].sum()),
        "live_pages": int(left["live_pages"]),
        "unmapped": unmapped,
        "reclaimed": _sum_with_supervisor(recording, "reclaimed"),
        "queued": int(left["queued"]),
        "overrun": int(ctrs["overrun_iovas"].sum()),
        "table_pages_left": int(left["table_pages"]),
        "ranges_left": int(left["ranges_left"]),
        "lost_iovas": int(ctrs["lost_iovas"].sum()),
    }
    sums["holds"] = (
        sums["mapped_pages"] - sums["unmapped_pages"] == sums["live_pages"]
        and sums["queued"] + sums["reclaimed"] + sums["overrun"] == unmapped
        and sums["table_pages_left"] == 0
        and sums["ranges_left"] == sums["overrun"]
        and sums["lost_iovas"] == 0
    )
    return sums


def _processes(recording: Recording) -> list[dict[str, Any]]:
    rows = []
    for name, code, context in zip(recording.names, recording.exits, recording.contexts, strict=True):
        rows.append(
            {
                "role": name,
                "pid": int(context["pid"]),
                "exit": code,
                "cpu_s": round(float(context["user_us"] + context["system_us"]) / 1e6, 4),
                "voluntary_switches": int(context["voluntary_switches"]),
                "involuntary_switches": int(context["involuntary_switches"]),
                "private_bytes": int(context["private_bytes"]) or None,
            }
        )
    return rows
