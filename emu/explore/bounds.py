"""What is explored: a machine as small as it can be, and what its CPUs do. All of it bounds the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emu.explore.world import Ordering

Operation = Literal["map", "unmap", "queue"]
"""Of a CPU: map a page; unmap the one it has had for longest; put one that is unmapped on the queue, no more."""


class BoundsError(Exception):
    """The bounds contradict each other; the message is one line."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """One machine and its load.

    Attributes:
        domain: its type at the beginning.
        programs: what each CPU does, in order.
        fq_size: entries of a ring, of which one stays empty.
        on_overrun: as `domain.on_overrun`.
        timer: how often the flush timer may fire.
        sleeper: a timer's process sleeps until a timer is armed, and only that.
        switch: the type that somebody writes to sysfs meanwhile.
        granule: pages of a mapping.
        magazine: IOVAs in a magazine of the allocator.
        orders: sizes that the allocator caches.
        preset: the hypervisor's.
        bugs: as `domain.bugs`.
        ordering: of stores.
        policy: as `domain.policy`, or None.
    """

    programs: tuple[tuple[Operation, ...], ...]
    domain: str = "DMA-FQ"
    fq_size: int = 2
    on_overrun: str = "kernel"
    timer: int = 0
    sleeper: bool = False
    switch: str | None = None
    granule: int = 1
    magazine: int = 4
    orders: int = 1
    preset: str = "kvm"
    bugs: tuple[str, ...] = ()
    ordering: Ordering = Ordering.SC
    policy: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.programs) <= 6:
            raise BoundsError(f"--cpus {len(self.programs)}: 1 to 6 can be explored")
        if not 1 <= self.magazine <= 127:
            raise BoundsError(f"--magazine {self.magazine}: must be 1 to 127")
        lazy = {"DMA-FQ", "DMA-SQ"}
        if "queue" in {operation for program in self.programs for operation in program} and self.domain not in lazy:
            raise BoundsError(f"the operation queue needs a domain with a queue, not {self.domain}")
        if self.timer and not lazy & {self.domain, self.switch}:
            raise BoundsError(f"--with-timer: a domain of type {self.domain} has no flush timer")

    @property
    def mapped_before(self) -> list[int]:
        """How many pages each CPU must have mapped for its program not to run out."""
        return [_most_missing(program) for program in self.programs]

    @property
    def aperture_pages(self) -> int:
        """Pages of the IOVA space, page 0 included, which is never handed out."""
        maps = sum(program.count("map") for program in self.programs)
        size = 1 << (self.granule - 1).bit_length()
        return (sum(self.mapped_before) + maps + 1) * size + size


def _most_missing(program: tuple[Operation, ...]) -> int:
    have = missing = 0
    for operation in program:
        have += 1 if operation == "map" else -1
        missing = max(missing, -have)
    return missing
