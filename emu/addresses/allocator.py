"""A domain's address allocator and flush queue without a machine around them, made to go step by step.

The memory is a machine's, private to this process; nothing is mapped, and flushes are two counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from emu.addresses.aperture import Aperture
from emu.addresses.peek import DEPOT
from emu.addresses.steps import DEPOT_WORK, FIND, iova_step
from emu.config import DomainType, load
from emu.iommu.flush_queue import SINGLE_QUEUE
from emu.iommu.iova import IOVA_RANGE_CACHE_MAX_SIZE
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine
from emu.native.compile import compile_entries
from emu.native.timer import TIMER_IDLE
from emu.workload.program import Program, Workload, op_t

ENTRIES = (init_machine, iova_step)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the caches a pfn lies; `code` is what the steps take, 0 is nowhere."""

    code: int

    @property
    def source(self) -> int:
        """LOADED, PREV, DEPOT or NOWHERE."""
        return self.code & 7

    @property
    def depth(self) -> int:
        """How many lie above it in its magazine."""
        return (self.code >> 16) & 0xFFFF

    @property
    def magazine(self) -> tuple[int, int]:
        """Tells magazines apart: the source, and the CPU or which of the depot's, 0 being the top."""
        return (self.source, self.code >> 32 if self.source == DEPOT else (self.code >> 3) & 0x1FFF)

    def at_depth(self, depth: int) -> Place:
        """A place in the same magazine."""
        return Place(self.code & ~(0xFFFF << 16) | depth << 16)


class Allocator:
    """The allocator and the queue of one domain.

    Args:
        domain: its type; a lazy one has its queue from the beginning.
        cpus: emulated CPUs.
        aperture: what addresses there are.
        live: most ranges that are in use at once.
        is_checked: count pages that are handed out or given back twice; then no pfn may lie outside of the aperture.

    Attributes:
        layout: its memory. cookie: the domain's iommu_dma_cookie. rings: numbers of the queue's rings.
    """

    def __init__(
        self, domain: DomainType, cpus: int, aperture: Aperture, *, live: int = 1, is_checked: bool = True
    ) -> None:
        compile_entries(ENTRIES)
        overrides: list[tuple[str, str, Any]] = [
            ("machine", "cpus", cpus),
            ("machine", "engine", "sim"),
            ("machine", "check", is_checked),
            ("domain", "types", [domain]),
            ("domain", "aperture_start", aperture.start),
            ("domain", "aperture_mb", aperture.mib),
            ("domain", "reserved", list(aperture.reserved)),
            # Where a ring is full without the kernel's having been, the emulated kernel flushes by itself, at no cost.
            ("hypervisor", "service", "inline"),
            *(("hypervisor", name, 0.0) for name in ("intercept_ns", "walk_ns", "change_ns")),
        ]
        empty = Program(np.zeros(0, op_t), 0)
        workload = Workload("addresses", [empty] * cpus, live)
        self.layout = Layout(load(overrides=overrides), domain, workload, real_time=False)
        segment = self.layout.segment
        self._context = segment.address("contexts", self.layout.supervisor)
        self._findings = segment["findings"][self.layout.supervisor]
        self.cookie = segment["domain"][0].cookie
        init_machine(self._context)
        queues = 1 if self.cookie.qt == SINGLE_QUEUE else cpus
        self.rings = range(queues if self.cookie.fq_domain else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self.layout.segment.unlink()

    @property
    def violations(self) -> int:
        """Pages handed out or given back twice so far."""
        return int(self._findings.counts.sum())

    def step(self, step: int, a: int = 0, b: int = 0, c: int = 0, *, cpu: int = 0) -> int:
        """One of emu.addresses.steps, on behalf of a CPU."""
        return int(iova_step(self._context, cpu, step, a, b, c))

    def find(self, pfn: int, order: int) -> Place:
        """Where in the caches a range of 2^order pages lies."""
        return Place(self.step(FIND, pfn, order) if order < IOVA_RANGE_CACHE_MAX_SIZE else 0)

    def timer_fired(self) -> None:
        """The queue's timer is no longer pending; whatever is queued next arms it."""
        self.cookie.fq_timer_on.counter = 0
        self.cookie.fq_timer.state = TIMER_IDLE

    def run_depot_work(self, order: int) -> None:
        """Have the worker of a depot run, on the CPU that armed it."""
        work = self.layout.segment["rcaches"][order].work
        work.state = TIMER_IDLE
        self.step(DEPOT_WORK, order, cpu=int(work.armed_by))

    def depot_size(self, order: int) -> int:
        """Magazines in a depot."""
        return int(self.layout.segment["rcaches"][order].depot_size)
