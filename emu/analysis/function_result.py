"""One element of `functions` of a run in summary.json: what a PCI function did beside the others, and waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emu.analysis.deaths import most_in_hand
from emu.analysis.run_result import (
    conservation_of,
    figures_of,
    is_denied_its_queue,
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
    ctrs = recording.contexts["ctrs"]
    own = {*recording.names[: recording.cpus], "timer"}
    in_hand = most_in_hand([death for death in deaths if death["role"] in own])
    conservation = conservation_of(recording, ctrs, part.domain, in_hand)
    violations = violations_of(recording, conservation)
    requests, wait_ns = int(ctrs["requests"].sum()), int(ctrs["request_wait_ns"].sum())
    return {
        "name": part.name,
        "domain": part.domain,
        "type_at_end": type_at_end(recording),
        "workload": part.config.workload.name if recording.cpus else None,
        "device": part.config.device,
        "cpus": recording.cpus,
        "first_cpu": part.first_cpu if recording.cpus else None,
        **figures_of(recording),
        "requests": {
            "count": requests,
            "busy_retries": int(ctrs["busy_retries"].sum()),
            "wait_ns": wait_ns,
            "service_ns": int(ctrs["request_service_ns"].sum()),
            "mean_wait_ns": wait_ns / requests if requests else None,
        },
        "host_pages": part.mapped,
        "violations": sum(violations.values()),
        "violations_by_kind": violations,
        "conservation": conservation,
        "fell_back_to_strict": recording.fq_init_failed or is_denied_its_queue(part.config, part.domain),
    }
