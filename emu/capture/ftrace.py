"""Kernel traces in text form: what was mapped and unmapped, on which CPU, in which order.

A trace says less than one would like. A scatter-gather mapping is one `map` line for each physically contiguous chunk
and *one* later `unmap` line, so which chunks belong to one map call has to be worked out. A trace may begin in the
middle of the machine's life, lose events when its buffer overflows, or be cut off. None of that is fatal: what cannot
be used is counted in the `CaptureReport`, and `CaptureError` is raised only where nothing usable is left.

The lines are those of tracefs `trace`, of `trace-cmd report` and of `perf script`; which, the text tells. Tracepoints
`map` and `unmap`: `include/trace/events/iommu.h`; a scatter-gather map call: `iommu_map_sg()` in
`drivers/iommu/iommu.c`.

The text is read in blocks and never held. What is kept is 32 bytes for each event (`event_t`), 32 more for those that
tell of a ring (`ring_state_t`), 48 for each map call (`mapping_t`) and 8 for each chunk mapped; while calls are worked
out, 16 more for each chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emu.capture.events import MAP, QUEUED, RPCIT, UNMAP, CaptureError, CaptureReport
from emu.capture.lines import Progress, blocks_of_lines, opened
from emu.capture.mappings import ENTRIES as MAPPING_ENTRIES
from emu.capture.mappings import group_mappings
from emu.capture.parser import Parser
from emu.capture.phases import PhaseChange, domain_types_in, phase_changes_in, phases_begun
from emu.capture.rpcits import has_maps_in_rpcits, with_maps_of_rpcits
from emu.capture.scanner import scan_lines

ENTRIES = (scan_lines, *MAPPING_ENTRIES)
"""What must be compiled to read a capture; `read_capture` does it where nobody has."""


@dataclass(slots=True)
class Capture:
    """A kernel trace, read.

    Attributes:
        name: see `capture_name`.
        path: the file.
        cpus: CPUs of the traced machine: the header's count, more if an event names a higher one.
        events: all events used, in trace order, shape (n,), dtype `event_t`.
        ring_states: what probes in the flush queue said, in trace order, shape (r,), dtype `ring_state_t`.
        owners: the pointers that events belong to, as printed; the first, 0, stands for those not told.
        devices: names of the devices that were attached to a domain, each once; `ATTACH` events refer to them.
        marks: texts that `MARK` events refer to.
        mappings: the map calls, in the order of their first chunk, shape (m,), dtype `mapping_t`.
        chunks: indices into `events`, mapping after mapping, each in the order of addresses, shape (map events,).
        phases: the names in `NAME.begin` marks, each once.
        phase_changes: where the phase changes, see `phase_changes_in`.
        domain_types: (time_ns, type) wherever the domain's type is known to change, in sysfs' words; empty when the
            trace does not say, see `domain_types_in`.
        report: what could not be used.
        paddrs: the physical byte address that each `MAP` event maps, -1 where its line does not say, in trace order,
            shape (map events,); None where it was not asked for.
    """

    name: str
    path: Path
    cpus: int
    events: npt.NDArray[np.void]
    ring_states: npt.NDArray[np.void]
    owners: list[int]
    devices: list[str]
    marks: list[str]
    mappings: npt.NDArray[np.void]
    chunks: npt.NDArray[np.int64]
    phases: list[str]
    phase_changes: list[PhaseChange]
    domain_types: list[tuple[int, str]]
    report: CaptureReport
    paddrs: npt.NDArray[np.int64] | None = None


def read_capture(
    path: str | PathLike[str],
    progress: Progress | None = None,
    kept_pages: Mapping[str, int] | None = None,
    *,
    physical: bool = False,
) -> Capture:
    """Read a kernel trace.

    Args:
        path: the text, plain or gzip'd (told by its content, not its name).
        progress: called now and then with the bytes of the file consumed and their total.
        kept_pages: `KernelCounters.kept_pages`, used only where maps have to be taken from RPCITs.
        physical: keep the physical addresses too, 8 bytes for each map event: see `emu.capture.attempts`.

    Raises:
        CaptureError: it cannot be read, or holds neither a map event nor RPCITs that stand for maps.
    """
    path = Path(path)
    parser = Parser(physical=physical)
    with opened(path) as file:
        for block in blocks_of_lines(file, parser.report, progress):
            parser.feed(block)
    events, ring_states, report = parser.events(), parser.ring_states(), parser.report
    by_owner = parser.has_address_spaces
    if not report.map_events and has_maps_in_rpcits(events, report):
        events = with_maps_of_rpcits(events, parser.marks, report, kept_pages or {})
        by_owner = len(np.unique(events["owner"][events["kind"] == MAP])) > 1
    if not report.map_events:
        raise CaptureError(_why_useless(path, events, report))
    _use_queued_for_missing_unmaps(events, report)
    mappings, chunks = group_mappings(events, report, by_owner=by_owner and not report.queued_as_unmaps)
    return Capture(
        name=capture_name(path),
        path=path,
        cpus=max(parser.header_cpus, parser.highest_cpu + 1),
        events=events,
        ring_states=ring_states,
        owners=parser.owners(),
        devices=parser.devices,
        marks=parser.marks,
        mappings=mappings,
        chunks=chunks,
        phases=phases_begun(parser.marks),
        phase_changes=phase_changes_in(events, parser.marks),
        domain_types=domain_types_in(events, parser.marks),
        report=report,
        paddrs=parser.paddrs(),
    )


def _use_queued_for_missing_unmaps(events: npt.NDArray[np.void], report: CaptureReport) -> None:
    kinds = events["kind"]
    queued = kinds == QUEUED
    if not report.unmap_events and (count := int(np.count_nonzero(queued))):
        kinds[queued] = UNMAP
        report.unmap_events = count
        report.queued_as_unmaps = True


def capture_name(path: Path) -> str:
    """The file's name without `.gz`, and without `.trace` or `.txt` before it."""
    return re.sub(r"(?:\.trace|\.txt)?(?:\.gz)?$", "", path.name, count=1) or path.name


def _why_useless(path: Path, events: npt.NDArray[np.void], report: CaptureReport) -> str:
    if report.truncated:
        return f"{path} is a damaged gzip file with no map event before the damage; copy it again"
    if not report.lines:
        return f"{path} is empty; record a trace with the events iommu:map and iommu:unmap"
    found = [f"{report.lines} lines"]
    found += [f"{n} RPCITs" for n in [np.count_nonzero(events["kind"] == RPCIT)] if n]
    found += [f"{n} unmaps" for n in [report.unmap_events] if n]
    found += [f"{n} broken lines" for n in [report.broken_lines] if n]
    what_to_do = "record with iommu:map and iommu:unmap (s390x before Linux 6.7: tracefs' text with the probe rpcit)"
    return f"{path} has no map events ({', '.join(found)}); {what_to_do}"
