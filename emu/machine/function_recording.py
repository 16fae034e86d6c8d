"""A finished run, function by function: what each one's CPUs did, and what timer and supervisor did for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.config import Config, DomainType
from emu.iommu.flush_queue import SINGLE_QUEUE, iova_fq
from emu.machine.functions import Function
from emu.machine.layout import Layout
from emu.machine.recording import SEEN_BY_FUNCTION, Recording
from emu.native.histogram import BUCKETS

_LONGEST = "exposure_max_ticks"


@dataclass(frozen=True, slots=True)
class FunctionRecording:
    """One function of a finished run.

    Attributes:
        name: what users read. config: the description as it is for this function alone. domain: its scheme.
        first_cpu: the first of the CPUs that work on it.
        recording: of its CPUs, with what timer and supervisor did for it; no servers, which are everybody's.
        mapped: pages that the host holds mapped for it in the end, before all is taken down.
    """

    name: str
    config: Config
    domain: DomainType
    first_cpu: int
    recording: Recording
    mapped: int


def by_function(layout: Layout, recording: Recording) -> list[FunctionRecording]:
    """Take a recording apart, after the books have been made where they could be."""
    return [_of(layout, recording, function) for function in layout.functions]


def _of(layout: Layout, recording: Recording, function: Function) -> FunctionRecording:
    number, segment, functions = function.number, layout.segment, len(layout.functions)
    first, last = function.first_cpu, function.first_cpu + function.cpus
    timer = _share(layout, recording.contexts[layout.timer], number, 0)
    rows = layout.histogram_rows(number)
    domain = recording.domain[number : number + 1]
    known = segment["functions"][number]
    cookie = domain["cookie"]
    own = replace(
        recording,
        contexts=np.concatenate([recording.contexts[first:last], timer]),
        supervisor=_share(layout, recording.supervisor, number, functions)[0],
        names=[*recording.names[first:last], recording.names[layout.timer]],
        exits=[*recording.exits[first:last], recording.exits[layout.timer]],
        cpus=function.cpus,
        domain=domain,
        servers=recording.servers[:0],
        histograms={
            name: segment[f"{name}_histogram"].reshape(-1, BUCKETS)[rows].sum(axis=0) for name in SEEN_BY_FUNCTION
        },
        rings=rings_of(layout, function, domain),
        marks=recording.marks[first:last],
        findings=recording.findings[number::functions],
        devices=recording.devices[number::functions],
        iotlb_hits=_iotlb_hits(layout, function),
        fq_size=int(cookie["fq_size"][0]),
        fq_timeout_ms=float(cookie["fq_timeout_ns"][0]) / 1e6,
        fq_init_failed=bool(domain["fq_init_failed"][0]),
        device_in_error=bool(known.device_in_error),
        stages=None,
        most_pages=max(
            (int(program.ops["pages"].max(initial=0)) for program in layout.workload.programs[first:last]), default=0
        ),
        teardown=None if recording.teardown is None else recording.teardown[number : number + 1],
    )
    return FunctionRecording(function.name, function.config, function.domain, first, own, int(known.mapped))


def rings_of(layout: Layout, function: Function, domain: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rings of the queue that a function's domain has, of which there may be none; `domain` has shape (1,)."""
    cookie = domain["cookie"]
    if not cookie["fq_domain"][0]:
        return np.zeros(0, iova_fq)
    first = layout.first_ring(function.number)
    return np.array(
        layout.segment["rings"][first : first + (1 if cookie["qt"][0] == SINGLE_QUEUE else function.possible_cpus)]
    )


def _iotlb_hits(layout: Layout, function: Function) -> int:
    if not function.devices:
        return 0
    first = layout.functions.first(function.number, lambda other: other.devices)
    return int(layout.segment["iotlbs"]["hits"][first : first + function.devices].sum())


def _share(layout: Layout, context: Any, number: int, first_ledger: int) -> npt.NDArray[Any]:
    """A context with nothing in its counters but what it did for one function; shape (1,)."""
    functions = len(layout.functions)
    ledgers = layout.segment["ledgers"]["ctrs"][first_ledger : first_ledger + functions]
    share = np.array(context).reshape(1).copy()
    for name in ledgers.dtype.names:
        counted, entered = int(context["ctrs"][name]), ledgers[name]
        # What is in no ledger yet is the function's that the context names.
        if name == _LONGEST:
            rest = counted if int(context["function"]) == number else 0
            share["ctrs"][name] = max(int(entered[number]), rest)
        else:
            rest = counted - int(entered.sum()) if int(context["function"]) == number else 0
            share["ctrs"][name] = int(entered[number]) + rest
    return share


def note_longest(layout: Layout, context: Any, first_ledger: int) -> None:
    """Have a copied context, too, say which was the longest exposure it has seen, whichever function's it was."""
    ledgers = layout.segment["ledgers"]["ctrs"][first_ledger : first_ledger + len(layout.functions)]
    context["ctrs"][_LONGEST] = max(int(context["ctrs"][_LONGEST]), int(ledgers[_LONGEST].max()))
