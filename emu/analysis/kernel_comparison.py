"""A replay beside the kernel it was recorded from: the five counters, and which of them must agree.

What a replay maps and unmaps is what the kernel did, so those counters agree exactly. How often everything is flushed
depends on how many unmaps fit between two ticks of a timer, which a replay that runs as fast as it can does not keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emu.capture.counters import COUNTERS, KernelCounters

_ALL_RPCITS = "RPCITs in all"
"""For kernels that do not count them apart."""
_OLD_API = ("s390-lazy", "s390-strict")
_STRICT = {"DMA": True, "s390-strict": True, "DMA-FQ": False, "DMA-SQ": False, "s390-lazy": False}


@dataclass(frozen=True, slots=True)
class Compared:
    """One counter.

    Attributes:
        name: the kernel's, or `RPCITs in all`: what the hypervisor of a kernel counted that does not count them apart.
        kernel: its value there.
        emu: its value here.
        must_agree: a difference is an error.
    """

    name: str
    kernel: int
    emu: int
    must_agree: bool

    @property
    def difference(self) -> int:
        """How much more was counted here."""
        return self.emu - self.kernel


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run beside the kernel.

    Attributes:
        domain: the run's domain.
        counters: over the whole trace, or over the phases that can be compared.
        phases: (name, counters) of every phase that can be compared, each with its settling.
        unlike: in what the run is not like the recorded machine, so that counters differ rightly; empty if in nothing.
    """

    domain: str
    counters: list[Compared]
    phases: list[tuple[str, list[Compared]]]
    unlike: str

    @property
    def agrees(self) -> bool:
        """Whether everything that must agree does."""
        return all(not row.must_agree or row.difference == 0 for row in self.counters)

    def as_dict(self) -> dict[str, Any]:
        """For summary.json: `domain`, `agrees`, `counters` and `phases`, {NAME: {"kernel", "emu"}}."""
        return {
            "domain": self.domain,
            "agrees": self.agrees,
            "counters": _pairs(self.counters),
            "phases": [{"name": name, "counters": _pairs(rows)} for name, rows in self.phases],
        }


def compare(
    run: Mapping[str, Any],
    kernel: KernelCounters,
    *,
    shadows: bool,
    types_seen: Sequence[str],
    at_recorded_times: bool = False,
) -> Comparison | None:
    """Put a run's counters beside the kernel's.

    Args:
        run: an element of `runs` in summary.json.
        kernel: what the kernel counted.
        shadows: the run's hypervisor must be told of maps, as that of the captured s390 guest.
        types_seen: the domain types that the capture is known to have had, in turn.
        at_recorded_times: everything was done when it was recorded, also to the domain's type: flushes by timers must
            agree too.

    Returns:
        None where the kernel had no such counters.
    """
    if not kernel.comparable:
        return None
    emu = {phase["name"]: phase["counters"] for phase in run["phases"]}
    phases = [
        (phase.name, phase.delta, _sum([emu.get(phase.name), emu.get(f"{phase.name} (settling)")]))
        for phase in kernel.phases
        if not phase.interrupted
    ]
    whole = run["counters"]
    if kernel.comparable_phases:
        whole = _sum([counts for name, _, counts in phases if name in kernel.comparable_phases])
    unlike = "" if at_recorded_times and _switches(run) else _unlike(run, kernel, types_seen)
    must_agree = _must_agree(run, shadows=shadows, alike=not unlike)
    if at_recorded_times:
        names = ("Mapped pages", "Unmapped pages", "Global RPCITs", *(("Sync Map RPCITs",) if shadows else ()))
        must_agree |= {*names, "Sync RPCITs"} if not unlike else set()
    return Comparison(
        domain=run["domain"],
        counters=_rows(kernel.comparable, whole, must_agree) + _all_rpcits(run, kernel, alike=not unlike),
        phases=[(name, _rows(delta, counts, must_agree)) for name, delta, counts in phases],
        unlike=unlike,
    )


def _switches(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was written to sysfs while the load ran, and not refused."""
    return [switch for switch in run.get("switches", ()) if not switch["errno"]]


def _was_unbound(run: Mapping[str, Any]) -> bool:
    return any(switch["driver"] for switch in _switches(run))


def _unlike(run: Mapping[str, Any], kernel: KernelCounters, types_seen: Sequence[str]) -> str:
    domain = run["domain"]
    if domain not in _STRICT:
        return "nothing is translated, so nothing need agree"
    if _was_unbound(run):
        return "the driver was unbound on the way, so nothing need agree"
    if _switches(run):
        return "the type was switched on the way, so Sync RPCITs need not agree"
    if len(types_seen) > 1:
        return f"the kernel went through {' → '.join(types_seen)}, this run did not, so Sync RPCITs need not agree"
    if kernel.is_lazy is None or _STRICT[domain] is kernel.is_lazy:
        return f"the kernel's domain was {kernel.domain_type or 'unknown'}, so Sync RPCITs need not agree"
    return ""


def _must_agree(run: Mapping[str, Any], *, shadows: bool, alike: bool) -> set[str]:
    if run["domain"] not in _STRICT or _was_unbound(run):
        return set()
    names = {"Mapped pages", "Unmapped pages"}
    if shadows:
        names.add("Sync Map RPCITs")
    if alike:
        names.add("Sync RPCITs")
    return names


def _rows(kernel: Mapping[str, int], emu: Mapping[str, int], must_agree: set[str]) -> list[Compared]:
    return [Compared(name, kernel[name], emu.get(name, 0), name in must_agree) for name in COUNTERS if name in kernel]


def _all_rpcits(run: Mapping[str, Any], kernel: KernelCounters, *, alike: bool) -> list[Compared]:
    """Every RPCIT, where the kernel knows no kinds of them; they follow no timer in the DMA API that s390 had then."""
    if kernel.refresh_operations is None or kernel.domain_type not in _OLD_API:
        return []
    emu = sum(run["counters"][name] for name in COUNTERS if name.endswith("RPCITs"))
    must_agree = alike and run["domain"] in _OLD_API
    return [Compared(_ALL_RPCITS, kernel.refresh_operations, emu, must_agree)]


def _sum(parts: Sequence[Mapping[str, int] | None]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in parts:
        for name, value in (counts or {}).items():
            total[name] = total.get(name, 0) + value
    return total


def _pairs(rows: Sequence[Compared]) -> dict[str, dict[str, int]]:
    return {row.name: {"kernel": row.kernel, "emu": row.emu} for row in rows}
