"""Every address that a captured kernel handed out beside the one that the emulated allocator hands out there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emu.addresses.allocator import Allocator
from emu.addresses.aperture import Aperture, aperture_of
from emu.addresses.log import Log
from emu.addresses.reasons import IDENTICAL, INFERRED, UNEXPLAINED, VERIFIED
from emu.addresses.repair import OutOfMemoryError
from emu.addresses.replay import Outcome, Replay
from emu.capture.ftrace import Capture
from emu.config import DomainType

KINDS: tuple[DomainType, ...] = ("DMA", "DMA-FQ", "DMA-SQ")
"""Domains whose addresses come from that allocator."""


@dataclass(frozen=True, slots=True)
class AddressComparison:
    """What came of it.

    Attributes:
        maps: allocations, in the kernel as here.
        identical: those that got the kernel's address, in a state that earlier repairs may have put right.
        identical_from_the_start: how many did before the first that did not, with nothing repaired.
        others: how many did not, by reason, most frequent first; see emu.addresses.reasons.
        phases: (name, maps, identical) in their order; "(before)" is what came before the first.
        violations: pages that the allocator had in use and was to hand out, or had free and was given back.
    """

    maps: int
    identical: int
    identical_from_the_start: int
    others: dict[str, int]
    phases: list[tuple[str, int, int]] = field(default_factory=list)
    violations: int = 0

    def count(self, reasons: tuple[str, ...]) -> int:
        """How many have one of these reasons."""
        return sum(self.others.get(reason, 0) for reason in reasons)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the names are part of the contract."""
        verified, inferred = self.count(VERIFIED), self.count(INFERRED)
        return {
            "maps": self.maps,
            "identical": self.identical,
            "identical_from_the_start": self.identical_from_the_start,
            "verified": verified,
            "inferred": inferred,
            "explained": verified + inferred,
            "unexplained": self.count(UNEXPLAINED),
            "others": self.others,
            "phases": [{"name": name, "maps": maps, "identical": same} for name, maps, same in self.phases],
            "violations": self.violations,
        }


def compare_addresses(
    capture: Capture,
    domain: DomainType,
    tick_ns: int,
    aperture: Aperture | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> AddressComparison | str:
    """Replay a capture's calls in the order of its trace, and compare every address.

    Args:
        capture: of one domain, with every map and unmap of every CPU; where its type changes, so does ours.
        domain: the type, where the capture does not tell of a change; its queue, where that needs one.
        tick_ns: the kernel's tick.
        aperture: the address space; None: as the addresses tell.
        on_progress: told the part of the trace that is done, 0 to 1.

    Returns:
        The comparison, or one sentence that says why there is none.
    """
    if domain not in KINDS:
        return f"Addresses are not compared: those of {domain} come from another allocator."
    if len({int(owner) for owner in capture.events["owner"][capture.mappings["map_event"]]}) > 1:
        return "Addresses are not compared: the capture is of several domains, each with addresses of its own."
    needed = aperture_of(capture)
    if needed is None:
        return "Addresses are not compared: they reach higher than any that can be emulated."
    space = aperture or needed
    log = Log(capture)
    types = capture.domain_types if len(capture.domain_types) > 1 else [(0, domain)]
    # A queue that comes later must be there from the beginning.
    with_queue: DomainType = "DMA-SQ" if domain == "DMA" and any(name != "DMA" for _, name in types) else domain

    def make() -> Allocator:
        return Allocator(with_queue, capture.cpus, space, live=log.most_live, is_checked=needed.is_inside(space))

    replay = Replay(log, make, tick_ns, types)
    try:
        with replay:
            replay.run(on_progress)
    except OutOfMemoryError:
        return "Addresses are not compared: there are more ranges in use than there is memory for here."
    return _summed(capture, replay.outcomes, replay.violations)


def _summed(capture: Capture, outcomes: list[Outcome], violations: int) -> AddressComparison:
    reasons = Counter(outcome.reason for outcome in outcomes)
    identical = reasons.pop(IDENTICAL, 0)
    first = next((k for k, outcome in enumerate(outcomes) if outcome.reason != IDENTICAL), len(outcomes))
    return AddressComparison(
        maps=len(outcomes),
        identical=identical,
        identical_from_the_start=first,
        others=dict(reasons.most_common()),
        phases=_by_phase(capture, outcomes),
        violations=violations,
    )


def _by_phase(capture: Capture, outcomes: list[Outcome]) -> list[tuple[str, int, int]]:
    counts: dict[str, list[int]] = {}
    changes, name = list(capture.phase_changes), "(before)"
    for outcome in outcomes:
        while changes and changes[0].event <= outcome.event:
            name = changes.pop(0).name
        count = counts.setdefault(name, [0, 0])
        count[0] += 1
        count[1] += outcome.reason == IDENTICAL
    return [(name, maps, identical) for name, (maps, identical) in counts.items()]
