"""One element of `functions` of a run in summary.json: what a PCI function did beside the others, and waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emu.analysis.deaths import most_in_hand
from emu.analysis.run_result import (
    conservation_of,
    exposure_of,
    flush_counts,
    is_denied_its_queue,
    kernel_counters,
    latency_of,
    queue_of,
    seconds_of,
    type_at_end,
    violations_of,
)

if TYPE_CHECKING:
    from emu.machine.function_recording import FunctionRecording


def function_result(part: FunctionRecording, deaths: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Everything that is said about one function; times are ns, rates are per second, as of a whole run.

    Args:
        part: what it did.
        deaths: of processes of the machine; those of other functions' CPUs do not concern it.
    """
    recording = part.recording
    cpus, ctrs = recording.contexts[: recording.cpus], recording.contexts["ctrs"]
    seconds, pairs = seconds_of(cpus), int(cpus["ctrs"]["unmaps"].sum())
    global_flushes = int(ctrs["global_rpcits"].sum())
    own = {*recording.names[: recording.cpus], "timer"}
    in_hand = most_in_hand([death for death in deaths if death["role"] in own])
    conservation = conservation_of(recording, ctrs, part.domain, in_hand)
    violations = violations_of(recording, conservation)
    requests = int(ctrs["requests"].sum())
    return {
        "name": part.name,
        "domain": part.domain,
        "type_at_end": type_at_end(recording),
        "workload": part.config.workload.name if recording.cpus else None,
        "device": part.config.device,
        "cpus": recording.cpus,
        "first_cpu": part.first_cpu if recording.cpus else None,
        "ops": pairs,
        "seconds": seconds,
        "pairs_per_s": pairs / seconds if seconds else 0.0,
        "pages_per_s": int(cpus["ctrs"]["unmapped_pages"].sum()) / seconds if seconds else 0.0,
        "latency_ns": {name: latency_of(recording.histograms[name], recording.tick_ns) for name in ("map", "unmap")},
        "flush_ns": latency_of(recording.histograms["flush"], 1.0),
        "counters": kernel_counters(ctrs),
        "maps": int(ctrs["maps"].sum()),
        "unmaps": int(ctrs["unmaps"].sum()),
        "map_failures": int(ctrs["map_failures"].sum()),
        "flushes": flush_counts(ctrs),
        "iovas_per_flush": int(ctrs["reclaimed"].sum()) / global_flushes if global_flushes else None,
        "queue": queue_of(recording),
        "overruns": int(ctrs["overruns"].sum()),
        "overrun_iovas": int(ctrs["overrun_iovas"].sum()),
        "requests": {
            "count": requests,
            "busy_retries": int(ctrs["busy_retries"].sum()),
            "wait_ns": int(ctrs["request_wait_ns"].sum()),
            "service_ns": int(ctrs["request_service_ns"].sum()),
            "mean_wait_ns": int(ctrs["request_wait_ns"].sum()) / requests if requests else None,
        },
        "host_pages": part.mapped,
        "exposure": exposure_of(recording, ctrs),
        "violations": sum(violations.values()),
        "violations_by_kind": violations,
        "conservation": conservation,
        "device_error": recording.device_in_error,
        "fell_back_to_strict": recording.fq_init_failed or is_denied_its_queue(part.config, part.domain),
    }
