"""From a recording to one element of `runs` in summary.json; pure functions, names as the contract has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emu.analysis.breakdown import breakdown
from emu.analysis.deaths import most_in_hand
from emu.analysis.flushes import CAUSES
from emu.analysis.violations import BOOKS, books_out_of_balance, first_violations
from emu.config import QUEUED, Config, DomainType
from emu.iommu.counters import KERNEL_NAMES
from emu.iommu.domain import DOMAIN_TYPES
from emu.native.histogram import bucket_bounds, mean, percentile
from emu.oracle.findings import VIOLATION_KINDS
from emu.workload.program import OP_MARK, Workload

if TYPE_CHECKING:
    from emu.machine.recording import Recording

COUNTED_VIOLATIONS = ("queued_while_strict", "queues_of_another_type")
"""Kinds that are counters of every process, of the same names."""
_TYPE_NAMES = {number: name for name, number in DOMAIN_TYPES.items()}
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def run_result(
    config: Config,
    domain: DomainType,
    workload: Workload,
    recording: Recording,
    deaths: Sequence[dict[str, Any]] = (),
    functions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that is said about one run; `functions` are what is said about each, where there are several.

    Times are ns, rates are per second; `latency_ns` and `exposure` come from histograms whose buckets are 3 % wide.
    """
    ctrs = recording.contexts["ctrs"]
    figures = figures_of(recording)
    if functions:
        conservation = _conservation_of_all(functions)
        violations = _violations_of_all(recording, functions)
    else:
        conservation = conservation_of(recording, ctrs, domain, most_in_hand(deaths))
        violations = violations_of(recording, conservation)
    return {
        "domain": domain,
        "type_at_end": type_at_end(recording),
        "engine": config.machine.engine,
        "workload": workload.name,
        "preset": config.hypervisor.preset,
        "cpus": recording.cpus,
        **figures,
        "pairs_by_cpu": [int(count) for count in ctrs["unmaps"][: recording.cpus]],
        "histograms": _histograms(recording),
        "phases": _phases(workload, recording),
        "flush_timeout_ns": {
            "mean": _timeout_ticks(ctrs) * recording.tick_ns,
            "max": float(ctrs["timeout_max_ticks"].max()) * recording.tick_ns,
        },
        "rcache_flushes": int(ctrs["rcache_flushes"].sum()),
        "locks": _locks(recording),
        "breakdown": _breakdown(recording),
        "hypervisor": _hypervisor(recording, figures["seconds"]),
        "violations": sum(violations.values()),
        "violations_by_kind": violations,
        "first_violations": first_violations(recording),
        "checked": config.machine.check,
        "events": {"recorded": recording.events_recorded, "lost": recording.events_lost}
        if config.machine.record
        else None,
        "conservation": conservation,
        "processes": _processes(recording),
        "clock": {
            "tick_ns": recording.tick_ns,
            "start_ticks": recording.start_ticks,
            "start_ns": recording.start_ns,
            "is_virtual": config.machine.engine == "sim",
        },
        "segment_bytes": recording.segment_bytes,
        "fell_back_to_strict": recording.fq_init_failed or is_denied_its_queue(config, domain),
        "device": config.device,
        "policy": recording.policy,
        "bugs": list(config.domain.bugs),
        "faults": list(config.machine.faults),
        "notes": [*workload.notes, *_notes(config, domain, functions)],
        "functions": list(functions),
    }


def figures_of(recording: Recording) -> dict[str, Any]:
    """What CPUs and timer did and what it took them, said alike of a machine and of one of its functions."""
    cpus, ctrs = recording.contexts[: recording.cpus], recording.contexts["ctrs"]
    seconds, pairs = _seconds(cpus), int(cpus["ctrs"]["unmaps"].sum())
    global_flushes = int(ctrs["global_rpcits"].sum())
    return {
        "ops": pairs,
        "seconds": seconds,
        "pairs_per_s": pairs / seconds if seconds else 0.0,
        "pages_per_s": int(cpus["ctrs"]["unmapped_pages"].sum()) / seconds if seconds else 0.0,
        "latency_ns": {name: _latency(recording.histograms[name], recording.tick_ns) for name in ("map", "unmap")},
        "flush_ns": _latency(recording.histograms["flush"], 1.0),
        "counters": _kernel_counters(ctrs),
        "maps": int(ctrs["maps"].sum()),
        "unmaps": int(ctrs["unmaps"].sum()),
        "map_failures": int(ctrs["map_failures"].sum()),
        "flushes": {cause: int(ctrs[f"flushes_{cause}"].sum()) for cause in CAUSES},
        "iovas_per_flush": int(ctrs["reclaimed"].sum()) / global_flushes if global_flushes else None,
        "queue": _queue(recording),
        "overruns": int(ctrs["overruns"].sum()),
        "overrun_iovas": int(ctrs["overrun_iovas"].sum()),
        "exposure": _exposure(recording, ctrs),
        "device_error": recording.device_in_error,
    }


def type_at_end(recording: Recording) -> str:
    """The type that the domain had in the end; of several functions the first one's."""
    return _TYPE_NAMES[int(recording.domain["type"][0])]


def violations_of(recording: Recording, conservation: dict[str, Any] | None) -> dict[str, int]:
    """How many of each kind: found while it ran, counted by every process, and seen in the books."""
    counts = recording.findings["counts"].sum(axis=0)
    return {
        **{kind: int(count) for kind, count in zip(VIOLATION_KINDS, counts, strict=True)},
        **{kind: _sum_with_supervisor(recording, kind) for kind in COUNTED_VIOLATIONS},
        **books_out_of_balance(conservation, recording.most_pages),
        "flushes_not_done": int(recording.servers["not_served"].sum()),
    }


def _timeout_ticks(ctrs: npt.NDArray[Any]) -> float:
    """How long a timer's flush took on average; 0 where there was none."""
    return float(ctrs["timeout_ticks"].sum()) / max(int(ctrs["flushes_timeout"].sum()), 1)


def _violations_of_all(recording: Recording, functions: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The same over several functions: books are each one's own, and what one lacks another's surplus does not mend."""
    books = {kind: sum(own["violations_by_kind"][kind] for own in functions) for kind in BOOKS}
    return {**violations_of(recording, None), **books}


def is_denied_its_queue(config: Config, domain: DomainType) -> bool:
    """Whether a type has a queue, and the device must not have one."""
    return config.device == "ism" and domain in QUEUED


def _notes(config: Config, domain: DomainType, functions: Sequence[dict[str, Any]]) -> list[str]:
    if functions:
        denied = [own["name"] for own in functions if own["device"] == "ism" and own["fell_back_to_strict"]]
    else:
        denied = [domain] if is_denied_its_queue(config, domain) else []
    return [f"{who}: an ISM device has no flush queue, whatever is asked for; the domain is strict." for who in denied]


def _seconds(cpus: npt.NDArray[Any]) -> float:
    """From when the first of these CPUs started until the last one stopped."""
    ran = cpus[cpus["started_ns"] > 0]
    if not len(ran):
        return 0.0
    stopped = np.where(ran["stopped_ns"] > 0, ran["stopped_ns"], ran["stopped_ns"].max())
    return max(float(stopped.max() - ran["started_ns"].min()), 0.0) / 1e9


def _latency(histogram: npt.NDArray[np.int64], unit_ns: float) -> dict[str, float]:
    """Percentiles, maximum and mean, in ns, of a histogram whose values are of `unit_ns`."""
    result = {name: round(percentile(histogram, fraction) * unit_ns, 1) for name, fraction in _PERCENTILES.items()}
    counted = np.flatnonzero(histogram)
    result["max"] = round(float(bucket_bounds()[counted[-1] + 1]) * unit_ns, 1) if len(counted) else 0.0
    result["mean"] = round(mean(histogram) * unit_ns, 1)
    return result


def _histograms(recording: Recording) -> dict[str, list[list[float]]]:
    """Whole histograms, without empty buckets: [upper bound in ns, count] of each, the lowest first."""
    units = {"map": recording.tick_ns, "unmap": recording.tick_ns, "exposure": recording.tick_ns, "wait": 1.0}
    upper = bucket_bounds()[1:]
    found = {}
    for name, unit_ns in units.items():
        counts = recording.histograms[name]
        counted = np.flatnonzero(counts)
        bounds = np.round(upper[counted] * unit_ns, 1).tolist()
        found[name] = [[bound, int(count)] for bound, count in zip(bounds, counts[counted], strict=True)]
    return found


def _kernel_counters(ctrs: npt.NDArray[Any]) -> dict[str, int]:
    """The counters that the kernel has, under its names."""
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
    """The flush queue; None where there is none, or one for each of several functions."""
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


def _breakdown(recording: Recording) -> dict[str, Any] | None:
    if recording.stages is None:
        return None
    histograms = recording.histograms
    return breakdown(recording.stages, histograms["map"], histograms["unmap"], recording.tick_ns)


def _hypervisor(recording: Recording, seconds: float) -> dict[str, Any]:
    servers = recording.servers
    requests = int(servers["requests"].sum())
    busy_ns = int(servers["busy_ns"].sum())
    capacity_ns = seconds * recording.server_count * 1e9
    return {
        "requests": requests,
        "global_requests": int(servers["global_requests"].sum()),
        "busy_retries": int(recording.contexts["ctrs"]["busy_retries"].sum()),
        "command_queue": _command_queue(recording),
        "busy_ns": busy_ns,
        "emulated_ns": int(servers["emulated_ns"].sum()),
        "utilisation": min(busy_ns / capacity_ns, 1.0) if capacity_ns else 0.0,
        "waited": int(recording.histograms["wait"][1:].sum()),
        "queue_wait_ns": _waits(recording.histograms["wait"], servers, "wait"),
        "schedule_ns": _waits(recording.histograms["schedule"], servers, "schedule"),
        "queue_length": {
            "mean": float(servers["total_queued"].sum()) / requests if requests else 0.0,
            "max": int(servers["max_queued"].max(initial=0)),
        },
        "walked": int(servers["walked"].sum()),
        "changed": int(servers["changed"].sum()),
        "served_again": int(servers["served_again"].sum()),
        "completions": {name: int(servers[name].sum()) for name in ("dropped", "duplicated", "reordered")},
    }


def _command_queue(recording: Recording) -> dict[str, int] | None:
    if not recording.hypervisor["cmdq"][0]:
        return None
    ctrs = recording.contexts["ctrs"]
    return {"attempts": int(ctrs["cmdq_attempts"].sum()), "full": int(ctrs["cmdq_full"].sum())}


def _waits(histogram: npt.NDArray[np.int64], servers: npt.NDArray[Any], name: str) -> dict[str, Any]:
    return {
        **_latency(histogram, 1.0),
        "max": int(servers[f"max_{name}_ns"].max(initial=0)),
        "total": int(servers[f"total_{name}_ns"].sum()),
    }


def _exposure(recording: Recording, ctrs: npt.NDArray[Any]) -> dict[str, Any]:
    """For how long, and how much, could be reached after its unmap."""
    latency = _latency(recording.histograms["exposure"], recording.tick_ns)
    left = recording.teardown
    longest = (ctrs["exposure_max_ticks"].max(), recording.supervisor["ctrs"]["exposure_max_ticks"])
    return {
        "windows": _sum_with_supervisor(recording, "exposures"),
        "p50_ns": latency["p50"],
        "p99_ns": latency["p99"],
        "max_ns": round(float(max(longest)) * recording.tick_ns, 1),
        "page_seconds": float(_sum_with_supervisor(recording, "exposure_page_ticks")) * recording.tick_ns / 1e9,
        "devices": _devices(recording),
        "still_open": int(left["queued"].sum()) if left is not None else None,
    }


def _devices(recording: Recording) -> dict[str, int] | None:
    """What became of the accesses of devices; None without any."""
    if not len(recording.devices):
        return None
    names = ("accesses", "live", "faults", "unmapping", "stale", "stale_to_others", "undecided")
    counts = {name: int(recording.devices[name].sum()) for name in names}
    return {"count": len(recording.devices), **counts, "iotlb_hits": recording.iotlb_hits}


def _sum_with_supervisor(recording: Recording, counter: str) -> int:
    """Of what the supervisor counts too, when it unbinds the driver or takes the domain down."""
    return int(recording.contexts["ctrs"][counter].sum()) + int(recording.supervisor["ctrs"][counter])


def conservation_of(
    recording: Recording, ctrs: npt.NDArray[Any], domain: DomainType, in_hand: int
) -> dict[str, Any] | None:
    """The sums that must balance, but for what the dead can have had in hand; None where that is not repaired."""
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
        "in_hand_of_the_dead": in_hand,
    }
    return {**sums, "holds": not any(books_out_of_balance(sums, recording.most_pages).values())}


def _conservation_of_all(functions: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    books = [own["conservation"] for own in functions]
    if not all(books):
        return None
    sums: dict[str, Any] = {name: sum(own[name] for own in books) for name in books[0]}
    return {**sums, "holds": all(own["holds"] for own in books)}


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
