"""The PCI functions of a machine: which CPUs work on each, which slots of the load are theirs, what memory each needs.

Every CPU works on one function, as the affinity of a queue's interrupt makes it do. In the arrays of a segment the
parts of the functions lie one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emu.config import Config, DomainType
from emu.iommu.domain import DOMAIN_TYPES, FQ_DEFAULTS, PERCPU_FQ, S390_TYPES
from emu.iommu.flush_queue import iova_fq_entry
from emu.iommu.iova import IOVA_MAG_SIZE, IOVA_RANGE_CACHE_MAX_SIZE
from emu.workload.program import Workload

_ROOM_FOR_LOST_RANGES = 1 << 18
_UNASKED_RINGS_BYTES = 64 << 20
"""What may be set aside at most for a queue that nobody has spoken of, but might ask for while the load runs."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A kind of queue that a domain may have: how many rings of how many entries."""

    rings: int
    size: int
    timeout_ms: float

    @property
    def entries(self) -> int:
        """Of all rings."""
        return self.rings * self.size


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function, with a domain of its own.

    Attributes:
        number: counted from 0. name: what users read.
        config: the description as it is for this function alone. domain: its scheme, and type the number of that.
        first_cpu, cpus: which CPUs work on it. possible_cpus: of the machine; percpu_rings: rings of a queue that has
            one for each of them, or as many as a policy says.
        first_slot, slots: of the load's table.
        devices: how many do DMA as this function.
    """

    number: int
    name: str
    config: Config
    domain: DomainType
    first_cpu: int
    cpus: int
    possible_cpus: int
    percpu_rings: int
    first_slot: int
    slots: int
    devices: int

    @property
    def type(self) -> int:
        """Number of its domain's type as it begins."""
        return DOMAIN_TYPES[self.domain]

    @property
    def is_ism(self) -> bool:
        """What does DMA is an ISM device."""
        return self.config.device == "ism"

    @property
    def is_legacy(self) -> bool:
        """Its DMA API is the one that s390 had of its own."""
        return self.type in S390_TYPES

    def has_cpu(self, slot: int) -> bool:
        """Whether that CPU works on it."""
        return self.first_cpu <= slot < self.first_cpu + self.cpus

    @property
    def queues(self) -> dict[int, Queue]:
        """The queues of lazy types that there is to be memory for: once the machine runs, none can be had."""
        return {kind: queue for kind in FQ_DEFAULTS if (queue := self._queue_of(kind))}

    def _queue_of(self, kind: int) -> Queue | None:
        if self.is_legacy or self.is_ism:
            return None
        options = self.config.domain
        default_size, default_timeout_ms = FQ_DEFAULTS[kind]
        rings = self.percpu_rings if kind == PERCPU_FQ else 1
        queue = Queue(rings, options.fq_size or default_size, options.fq_timeout_ms or default_timeout_ms)
        ring_bytes = queue.entries * iova_fq_entry.itemsize
        named = [self.type, *(DOMAIN_TYPES[action.type] for action in self.config.machine.timeline if action.type)]
        most_bytes = options.fq_memory_mb << 20
        return queue if ring_bytes <= (most_bytes if kind in named else min(most_bytes, _UNASKED_RINGS_BYTES)) else None

    @property
    def rings(self) -> int:
        """Most rings that any of its queues has; there is one queue at a time."""
        return max((queue.rings for queue in self.queues.values()), default=0)

    @property
    def ring_entries(self) -> int:
        """Most entries that any of its queues has."""
        return max((queue.entries for queue in self.queues.values()), default=0)

    @property
    def aperture_pages(self) -> int:
        """Pages of its address space."""
        return self.config.domain.aperture_pages

    @property
    def reserved(self) -> int:
        """Ranges that are never handed out."""
        return len(self.config.domain.reserved)

    @property
    def ranges(self) -> int:
        """Ranges that can be allocated at once: live, queued, in caches, and room for what overruns lose."""
        if self.is_legacy:
            return 0
        if self.config.domain.iova_ranges:
            return self.config.domain.iova_ranges + self.reserved
        cached = self.possible_cpus * IOVA_RANGE_CACHE_MAX_SIZE * 2 * IOVA_MAG_SIZE
        wanted = self.slots + self.ring_entries + cached
        return min(self.aperture_pages, wanted + wanted // 2 + _ROOM_FOR_LOST_RANGES) + self.reserved

    @property
    def magazines(self) -> int:
        """Of its allocator."""
        if self.is_legacy:
            return 0
        return 2 * IOVA_RANGE_CACHE_MAX_SIZE * self.possible_cpus + self.ranges // IOVA_MAG_SIZE + 64

    @property
    def timers(self) -> int:
        """The queue's, and those of the allocator's depots."""
        return 1 if self.is_legacy else 1 + IOVA_RANGE_CACHE_MAX_SIZE


class Functions(list[Function]):
    """All of a machine, by number."""

    def total(self, of: Callable[[Function], int]) -> int:
        """Elements of an array that holds so many for each."""
        return sum(of(function) for function in self)

    def first(self, number: int, of: Callable[[Function], int]) -> int:
        """Where in such an array the part of one begins."""
        return sum(of(function) for function in self[:number])

    def of_cpu(self, slot: int) -> int:
        """Number of the function that a CPU works on; 0 for any other process."""
        return next((function.number for function in self if function.has_cpu(slot)), 0)


def functions_of(config: Config, domain: DomainType, workload: Workload, percpu_rings: int) -> Functions:
    """The functions of a machine that runs one load, in which those without a type of their own have `domain`."""
    cpus, devices = len(workload.programs), config.machine.devices
    if config.functions == 1 and not config.function:
        alone = Function(0, "function 0", config, domain, 0, cpus, cpus, percpu_rings, 0, workload.slots, devices)
        return Functions([alone])
    found = Functions()
    for number, slots in enumerate(workload.slots_by_function or [workload.slots]):
        own = config.of_function(number)
        found.append(
            Function(
                number=number,
                name=config.function_name(number),
                config=own,
                domain=config.function_type(number) or domain,
                first_cpu=found.total(lambda function: function.cpus),
                cpus=own.machine.cpus,
                possible_cpus=cpus,
                percpu_rings=percpu_rings,
                first_slot=found.total(lambda function: function.slots),
                slots=slots,
                devices=len(range(number, devices, config.functions)),
            )
        )
    return found
