"""A replay at recorded times beside the kernel that was recorded: counters by phase, flushes, addresses.

Mapped, unmapped and range flushes must agree exactly in every phase, domain-wide flushes exactly in all; one within
20 ms of a phase's edge may count on its other side. Timers fired here when they did there, provided that one was
pending: each one's own due time must lie within 25 ms of that, but for one in twenty, whose interrupt may have come
later on a machine that was busy. Flushes by full rings must happen at the same unmap. Where the kernel ran out of
addresses, as many calls must fail here, to within a fifth: how two CPUs' calls were ordered, the trace does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.analysis.kernel_comparison import Compared, Comparison

TIMER_TOLERANCE_MS = 25.0
LATE_SHARE = 0.05
EDGE_MS = 20.0
ATTEMPTS_SHARE = 0.2
GLOBAL = "Global RPCITs"


@dataclass(frozen=True, slots=True)
class Flushes:
    """Why and when everything was flushed.

    Attributes:
        firings_ms: when the timer fired in the kernel, on the trace's clock.
        due_ms: when it was due here, in the same order; as many unless `unmatched`.
        unmatched: firings of one side that the other does not have.
        full_kernel: (CPU, number of the CPU's unmap) of each flush by a full ring; `full_emu` the same here.
        overruns_kernel: likewise appends that wrapped onto the head of a full ring; `overruns_emu` here.
        overrun_iovas: addresses lost by them here.
    """

    firings_ms: list[float]
    due_ms: list[float]
    unmatched: int
    full_kernel: list[tuple[int, int]]
    full_emu: list[tuple[int, int]]
    overruns_kernel: list[tuple[int, int]]
    overruns_emu: list[tuple[int, int]]
    overrun_iovas: int

    @property
    def largest_difference_ms(self) -> float:
        """Between a firing and its due time here."""
        return max((abs(a - b) for a, b in zip(self.firings_ms, self.due_ms, strict=False)), default=0.0)

    @property
    def beyond_tolerance(self) -> int:
        """Firings that were further than that from their due time here."""
        pairs = zip(self.firings_ms, self.due_ms, strict=False)
        return sum(abs(a - b) > TIMER_TOLERANCE_MS for a, b in pairs)

    @property
    def timers_agree(self) -> bool:
        """Whether those are few enough to be late interrupts."""
        return self.beyond_tolerance <= int(LATE_SHARE * len(self.firings_ms))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        pairs = zip(self.firings_ms, self.due_ms, strict=False)
        same = len(set(self.full_kernel) & set(self.full_emu))
        same_overruns = len(set(self.overruns_kernel) & set(self.overruns_emu))
        return {
            "timer": [{"kernel": round(a, 3), "emu": round(b, 3)} for a, b in pairs],
            "unmatched": self.unmatched,
            "largest_difference": round(self.largest_difference_ms, 3),
            "tolerance": TIMER_TOLERANCE_MS,
            "beyond_tolerance": self.beyond_tolerance,
            "full": {"kernel": len(self.full_kernel), "emu": len(self.full_emu), "at_the_same_unmap": same},
            "overruns": {
                "kernel": len(self.overruns_kernel),
                "emu": len(self.overruns_emu),
                "at_the_same_unmap": same_overruns,
                "lost_iovas": self.overrun_iovas,
            },
        }


@dataclass(slots=True)
class Verification:
    """What came of it.

    Attributes:
        capture: its name. kernel: release, or None. domain: what was run.
        comparison: counters, in all and by phase.
        moved: domain-wide flushes that count on the other side of a phase's edge.
        flushes: see there.
        iova: {"maps", "identical", …}, the classes of all others and the phases, see emu.addresses.compare; None where
            addresses were not compared. They do not decide whether all agrees.
        attempts: allocations that failed, where the capture tells of such.
        notes: sentences for the user.
    """

    capture: str
    kernel: str | None
    domain: str
    comparison: Comparison | None
    moved: int
    flushes: Flushes
    iova: dict[str, Any] | None = None
    attempts: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether all that must agree does."""
        return not self.disagreements()

    def disagreements(self) -> list[str]:
        """What must agree and does not, in sentences."""
        said = []
        if self.comparison:
            said += [_said("in all", row) for row in self.comparison.counters if row.must_agree and row.difference]
            for name, rows in self.comparison.phases:
                said += [_said(f"in {name}", row) for row in rows if row.must_agree and row.difference]
        flushes = self.flushes
        if flushes.unmatched:
            said.append(f"{flushes.unmatched} timer flushes happened on one side only")
        if not flushes.timers_agree:
            said.append(
                f"{flushes.beyond_tolerance} of {len(flushes.firings_ms)} timers were due more than "
                f"{TIMER_TOLERANCE_MS:g} ms from where they fired, by up to {flushes.largest_difference_ms:.1f} ms"
            )
        if flushes.full_kernel != flushes.full_emu:
            said.append("flushes by full rings did not happen at the same unmaps")
        if flushes.overruns_kernel != flushes.overruns_emu:
            said.append("ring overruns did not happen at the same unmaps")
        if self.attempts:
            said += [
                f"{name}: {count['emu']} here, {count['kernel']} in the kernel, more than a fifth apart"
                for key, name in (("failures", "Failed allocations"), ("roll_backs", "Roll-backs"))
                if abs((count := self.attempts[key])["emu"] - count["kernel"]) > ATTEMPTS_SHARE * count["kernel"]
            ]
        return said

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the names are part of the contract."""
        compared = self.comparison.as_dict() if self.comparison else {"counters": {}, "phases": []}
        return {
            "capture": self.capture,
            "kernel": self.kernel,
            "domain": self.domain,
            "agrees": self.agrees,
            "disagreements": self.disagreements(),
            "phases": compared["phases"],
            "counters": compared["counters"],
            "moved_flushes": self.moved,
            "iova": self.iova,
            "attempts": self.attempts,
            "flush_times_ms": self.flushes.as_dict(),
            "notes": self.notes,
        }


def _said(where: str, row: Compared) -> str:
    return f"{row.name} {where}: {row.emu} here, {row.kernel} in the kernel"


def match_firings(
    kernel_ns: npt.NDArray[np.int64], fired_ns: npt.NDArray[np.int64], due_ns: npt.NDArray[np.int64]
) -> tuple[list[float], list[float], int]:
    """Pair the kernel's firings with those here, which happened at the same moment if they are the same.

    Returns:
        The kernel's in ms, the due times here in ms, and how many are left over on either side.
    """
    common, of_kernel, here = np.intersect1d(kernel_ns, fired_ns, return_indices=True)
    unmatched = len(kernel_ns) + len(fired_ns) - 2 * len(common)
    return (kernel_ns[of_kernel] / 1e6).tolist(), (due_ns[here] / 1e6).tolist(), unmatched


def settle_edges(
    comparison: Comparison, flushes_ns: npt.NDArray[np.int64], edges_ns: npt.NDArray[np.int64]
) -> tuple[Comparison, int]:
    """Let flushes within EDGE_MS of a phase's edge count on its other side, where that makes phases agree.

    Args:
        comparison: of the counters.
        flushes_ns: when the domain-wide flushes happened here.
        edges_ns: when the phases changed, on the same clock.

    Returns:
        The comparison, and how many flushes were moved.
    """
    near = int((np.abs(flushes_ns[:, None] - edges_ns[None, :]).min(axis=1, initial=1 << 62) <= EDGE_MS * 1e6).sum())
    moved = 0
    phases = []
    for name, rows in comparison.phases:
        settled = []
        for row in rows:
            if row.name == GLOBAL and row.difference and abs(row.difference) <= near - moved:
                moved += abs(row.difference)
                settled.append(Compared(row.name, row.kernel, row.kernel, row.must_agree))
            else:
                settled.append(row)
        phases.append((name, settled))
    return Comparison(comparison.domain, comparison.counters, phases, comparison.unlike), moved
