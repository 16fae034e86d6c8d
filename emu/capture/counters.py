"""What the kernel itself counted while a trace was recorded: the JSON description beside the trace.

The counters are those of `debugfs/pci/<dev>/statistics` (`arch/s390/pci/pci_debug.c`), under their names there. They
belong to the *domain*: a device that is attached to a new one begins again at 0. What was counted between the last
reading of the old domain and its end is then unknown, so a whole trace can be compared with the totals only where
nothing restarted; otherwise the phases can, each from its reading before to its reading after things had settled.
A recording that began while the device was in use (`tools/capture.sh`) says what had been counted until then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from emu.capture.events import CaptureError
from emu.capture.ftrace import capture_name

COUNTERS = ("Mapped pages", "Unmapped pages", "Global RPCITs", "Sync Map RPCITs", "Sync RPCITs")
"""The kernel's names for what is compared."""

_ALL_RPCITS = "Refresh operations"
"""The hypervisor's count of every RPCIT of a function, whatever for. It reaches the guest seconds late."""

_OLD_API_UNTIL = (6, 7)
"""The first Linux in which s390 has the DMA API that all have; before, sysfs does not know a type."""

Counts = dict[str, int]
"""A value for each of `COUNTERS` that the kernel has (6.1 has only the first two, x86 none)."""


@dataclass(frozen=True, slots=True)
class PhaseCounters:
    """One phase of the recorded workload, all devices together.

    Attributes:
        name: as in the trace's marks.
        delta: counted while it ran and until things had settled.
        settled: the readings after things had settled.
        restarted: some counter was lower at one of its readings than at the one before.
        interrupted: that happened within the phase, so `delta` says nothing.
    """

    name: str
    delta: Counts
    settled: Counts
    restarted: bool
    interrupted: bool


@dataclass(frozen=True, slots=True)
class KernelCounters:
    """How a trace was recorded, and what the kernel counted.

    Attributes:
        kernel: release, such as `6.12.107+deb13-s390x`.
        machine: its architecture, such as `s390x`, `x86_64` or `amd64`; empty where that is not said.
        domain_type: sysfs' word for it at the end of the recording (`DMA`, `DMA-FQ`, `unknown`); several, joined by
            commas, where groups differ. On s390 before Linux 6.7, where sysfs knows none, `s390-lazy` or `s390-strict`
            as the kernel's command line says.
        vcpus: CPUs of the machine; 0 where that is not said.
        phases: in the order they ran.
        totals: the last readings of every device, summed: since boot, or since the last restart.
        comparable: what a replay must count to agree with the kernel: `totals` less what was counted before the
            recording began, over the whole trace, where nothing restarted; else the sum over `comparable_phases`, each
            with its settling.
        comparable_phases: names of the phases that `comparable` covers; empty when it covers the whole trace.
        restarted: one sentence about where counters began again, empty if they did not.
        refresh_operations: RPCITs in all, as the hypervisor counted them at the last reading, less those before the
            recording began; None where that is not said.
        kept_pages: how many pages more than at the reading before were mapped whenever the counters were read, by the
            phase that begins there (the first, or `(after NAME)`, see `phase_changes_in`).
    """

    kernel: str
    machine: str
    domain_type: str
    vcpus: int
    phases: list[PhaseCounters]
    totals: Counts
    comparable: Counts
    comparable_phases: list[str]
    restarted: str
    refresh_operations: int | None
    kept_pages: Counts

    @property
    def is_lazy(self) -> bool | None:
        """Whether unmaps were batched; None where the kernel does not say."""
        return {"DMA": False, "DMA-FQ": True, "s390-strict": False, "s390-lazy": True}.get(self.domain_type)


def read_counters(capture_path: str | PathLike[str]) -> KernelCounters | None:
    """Read the description `NAME.json` beside `NAME.trace` or `NAME.trace.gz`.

    Returns:
        None when there is none. What the description does not say is left empty.

    Raises:
        CaptureError: it is there, but is not a JSON object.
    """
    path = _description_of(Path(capture_path))
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureError(f"{path} cannot be read as JSON ({error}); repair it or move it away") from error
    if not isinstance(said, dict):
        raise CaptureError(f"{path} is not a JSON object; repair it or move it away")
    return _kernel_counters(said)


def _description_of(capture_path: Path) -> Path:
    return capture_path.parent / f"{capture_name(capture_path)}.json"


def _kernel_counters(said: dict[str, Any]) -> KernelCounters:
    at_start = _readings(said.get("counters_at_start"))
    phases, last_readings = _phases(_object(said.get("phases")), at_start)
    totals = _sum(last_readings.values())
    restarts = [phase.name for phase in phases if phase.restarted]
    compared = [phase for phase in phases if restarts and not phase.interrupted]
    release = re.search(r"Linux (?:version )?(\S+)", str(said.get("kernel_version", "")))
    kernel, machine = release[1] if release else "", str(said.get("arch", ""))
    return KernelCounters(
        kernel=kernel,
        machine=machine,
        domain_type=_domain_type(said, kernel, machine),
        vcpus=_count(said.get("vcpus")) or 0,
        phases=phases,
        totals=totals,
        comparable=_sum(phase.delta for phase in compared)
        if restarts
        else _sum(_since(at_start, last_readings).values()),
        comparable_phases=[phase.name for phase in compared],
        restarted=_about_restarts(restarts),
        refresh_operations=_refresh_operations(said),
        kept_pages={} if restarts else _kept_pages(phases, at_start),
    )


def _domain_type(said: dict[str, Any], kernel: str, machine: str) -> str:
    types, cmdline = said.get("domain_type"), said.get("cmdline")
    told = ", ".join(sorted({str(name) for name in types})) if isinstance(types, list) else ""
    version = re.match(r"(\d+)\.(\d+)", kernel)
    is_old = version is not None and (int(version[1]), int(version[2])) < _OLD_API_UNTIL
    if not is_old or told not in {"", "unknown"} or not isinstance(cmdline, str):
        return told
    if machine != "s390x" and not kernel.endswith("s390x"):
        return told
    return "s390-strict" if "s390_iommu=strict" in cmdline.split() else "s390-lazy"


def _refresh_operations(said: dict[str, Any]) -> int | None:
    """The last readings of all devices, less what was counted before the recording began."""
    first = _refreshes(said.get("counters_at_start"))
    last = dict(first)
    for phase in _object(said.get("phases")).values():
        last |= _refreshes(_object(phase).get("counters_settled"))
    return sum(last.values()) - sum(first.values()) if last else None


def _refreshes(said: object) -> Counts:
    readings = {device: _count(_object(counts).get(_ALL_RPCITS)) for device, counts in _object(said).items()}
    return {device: count for device, count in readings.items() if count is not None}


def _kept_pages(phases: list[PhaseCounters], at_start: dict[str, Counts]) -> Counts:
    if not phases or "Mapped pages" not in phases[0].settled:
        return {}
    first = phases[0]
    before = _still_mapped(first.settled) - _still_mapped(first.delta)
    kept = {first.name: before - _still_mapped(_sum(at_start.values()))}
    for phase in phases:
        kept[f"(after {phase.name})"] = _still_mapped(phase.settled) - before
        before = _still_mapped(phase.settled)
    return kept


def _still_mapped(counts: Counts) -> int:
    return counts.get("Mapped pages", 0) - counts.get("Unmapped pages", 0)


def _about_restarts(phases: list[str]) -> str:
    if not phases:
        return ""
    return (
        f"A new domain was attached before or during {', '.join(phases)}: its counters began again at 0, "
        "so phases are compared instead of the whole trace."
    )


def _phases(said: dict[str, Any], at_start: dict[str, Counts]) -> tuple[list[PhaseCounters], dict[str, Counts]]:
    """The phases, and every device's last readings."""
    phases: list[PhaseCounters] = []
    last = dict(at_start)
    for name, phase in said.items():
        before, settled = (_readings(_object(phase).get(f"counters_{when}")) for when in ("before", "settled"))
        told = _object(phase).get("delta_running_plus_settling")
        delta = _since(before, settled) if told is None else _readings(told)
        interrupted = _went_down(before, settled)
        phases.append(
            PhaseCounters(
                name=name,
                delta=_sum(delta.values()),
                settled=_sum(settled.values()),
                restarted=interrupted or _went_down(last, before),
                interrupted=interrupted,
            )
        )
        last |= settled
    return phases, last


def _went_down(earlier: dict[str, Counts], later: dict[str, Counts]) -> bool:
    return any(
        count < earlier.get(device, {}).get(name, 0)
        for device, counts in later.items()
        for name, count in counts.items()
    )


def _since(earlier: dict[str, Counts], later: dict[str, Counts]) -> dict[str, Counts]:
    """What each device counted between two readings."""
    return {
        device: {name: count - earlier.get(device, {}).get(name, 0) for name, count in counts.items()}
        for device, counts in later.items()
    }


def _readings(said: object) -> dict[str, Counts]:
    """Each device's counters; what else is said (`uptime_s`) is not a device."""
    devices = {name: value for name, value in _object(said).items() if isinstance(value, dict)}
    return {
        device: {name: count for name in COUNTERS if (count := _count(value.get(name))) is not None}
        for device, value in devices.items()
    }


def _sum(readings: Iterable[Counts]) -> Counts:
    total: Counts = {}
    for counts in readings:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def _object(said: object) -> dict[str, Any]:
    return said if isinstance(said, dict) else {}


def _count(said: object) -> int | None:
    """A counter's value; the kernel's have 64 bits."""
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < 1 << 64 else None
