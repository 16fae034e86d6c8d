"""The books of a run: what must hold of IOVAs and flushes, kept apart from the code that is explored.

Entries are made where the emulated kernel calls its own functions: an IOVA is handed out, unmapped, queued, given back;
the hypervisor begins a flush, and has ended it. They know neither counters nor stamps. Two accounts are compared: what
was promised (no IOVA becomes allocatable before a flush that started after its unmap has finished) and what the
hypervisor's shadow table really says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from emu.explore.memory import Records
from emu.explore.world import Cpu, Violation, World
from emu.iommu import iova as allocator
from emu.iommu.domain import DOMAIN_TYPES, PERCPU_FQ, SINGLE_FQ, STRICT
from emu.iommu.flush_queue import SINGLE_QUEUE, iova_fq, iova_fq_entry
from emu.iommu.io_pgtable import iova_to_phys, pte_valid
from emu.iommu.iova import iova_cpu_rcache, iova_magazine, iova_rcache, iova_t
from emu.native.record import int64_t
from emu.native.timer import TIMER_IDLE


class State(IntEnum):
    """Where an IOVA is in its life; one that has no entry is free."""

    ALLOCATED = 1
    MAPPED = 2
    UNMAPPED = 3
    QUEUED = 4


@dataclass(slots=True)
class Iova:
    """One range that is not free.

    Attributes:
        state: where it is. pages: its length. flushes: mask of CPUs whose flush under way began after its unmap.
        covered: such a flush has ended.
    """

    state: State
    pages: int
    flushes: int = 0
    covered: bool = False

    @property
    def key(self) -> tuple[int, ...]:
        """All of it."""
        return self.state, self.pages, self.flushes, self.covered


class _Unwatched:
    """While the books themselves read the machine's memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cpu: Cpu | None = None

    def __enter__(self) -> None:
        self.cpu, self.world.running = self.world.running, None

    def __exit__(self, *_: object) -> None:
        self.world.running = self.cpu


class Books:
    """Keeps the books of one world.

    Args:
        world: what runs.
        records: of its machine.
        domain: the iommu_domain.
        shadow: the hypervisor's io_pgtable, or None where it shadows nothing.
        opening: entries with which every run begins, pfn → Iova.
    """

    def __init__(self, world: World, records: Records, domain: Any, shadow: Any, opening: dict[int, Iova]) -> None:
        self.world = world
        self.records = records
        self.domain = domain
        self.shadow = shadow
        self.opening = opening
        self.iovas: dict[int, Iova] = {}
        self.flushes: dict[int, tuple[int, int]] = {}

    # --- the world's side -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A run begins."""
        self.iovas = {pfn: Iova(iova.state, iova.pages) for pfn, iova in self.opening.items()}
        self.flushes = {}

    def digest(self) -> int:
        """Of all that the books say."""
        iovas = tuple((pfn, *iova.key) for pfn, iova in sorted(self.iovas.items()))
        return hash((iovas, tuple(sorted(self.flushes.items()))))

    def end(self) -> None:
        """Every CPU has done what it had to do: nothing may be missing."""
        with _Unwatched(self.world):
            for check in (self._check_queue, self._check_tables, self._check_allocator, self._check_timer):
                check()
                if self.world.violation:
                    return

    def violate(self, kind: str, text: str) -> None:
        """End the run: this must not happen."""
        self.world.stop(Violation(kind, text))

    # --- entries ----------------------------------------------------------------------------------------------------

    def handed_out(self, pfn: int, pages: int) -> None:
        """The allocator has returned a range."""
        for other, iova in self.iovas.items():
            if pfn < other + iova.pages and other < pfn + pages:
                self.violate("twice", f"IOVA {pfn} is handed out while it is {iova.state.name.lower()}")
        self._must_not_translate(pfn, pages, "is handed out")
        self.iovas[pfn] = Iova(State.ALLOCATED, pages)

    def about_to_map(self, pfn: int, pages: int) -> None:
        """Page-table entries are about to be written."""
        self._must_not_translate(pfn, pages, "is mapped anew")

    def mapped(self, pfn: int, pages: int, phys_pfn: int) -> None:
        """A map has succeeded: its driver will have the device use it."""
        iova = self.iovas.get(pfn)
        if iova is None or iova.state is not State.ALLOCATED or iova.pages != pages:
            self.violate("books", f"a map returns IOVA {pfn}, which it has not been handed out")
            return
        iova.state = State.MAPPED
        for i in range(pages):
            self._must_translate(pfn + i, phys_pfn + i)

    def unmapped(self, pfn: int, pages: int) -> None:
        """Page-table entries have been cleared."""
        iova = self.iovas.get(pfn)
        if iova is None or iova.pages != pages:
            self.violate("books", f"{pages} pages from IOVA {pfn} are unmapped, which is no mapping")
            return
        iova.state = State.UNMAPPED
        iova.flushes, iova.covered = 0, False

    def flush_begins(self, cpu: Cpu, pfn: int, pages: int) -> None:
        """The hypervisor begins to look at a range of the guest's table."""
        self.flushes[cpu.number] = (pfn, pages)
        for first, iova in self.iovas.items():
            if iova.state >= State.UNMAPPED and pfn <= first and first + iova.pages <= pfn + pages:
                iova.flushes |= cpu.bit

    def flush_ends(self, cpu: Cpu) -> None:
        """It has done so, and nothing it saw invalid can be reached any longer."""
        self.flushes.pop(cpu.number, None)
        for iova in self.iovas.values():
            if iova.flushes & cpu.bit:
                iova.flushes &= ~cpu.bit
                iova.covered = True

    def given_back(self, pfn: int, pages: int) -> None:
        """The allocator gets a range back, and may hand it out from now on."""
        iova = self.iovas.get(pfn)
        if iova is None or iova.pages != pages:
            self.violate("twice", f"{pages} pages from IOVA {pfn} are given back, which nobody has been handed out")
            return
        if iova.state is State.MAPPED:
            self.violate("early", f"IOVA {pfn} becomes allocatable while it is mapped")
        if iova.state >= State.UNMAPPED:
            if not iova.covered:
                self.violate(
                    "early", f"IOVA {pfn} becomes allocatable before a flush that started after its unmap has finished"
                )
            self._must_not_translate(pfn, pages, "becomes allocatable")
        del self.iovas[pfn]

    def queued(self, pfn: int) -> None:
        """An IOVA has been put on a ring, or so the caller believes."""
        iova = self.iovas.get(pfn)
        if iova is not None and iova.state is State.UNMAPPED:
            iova.state = State.QUEUED
        with _Unwatched(self.world):
            if self.domain.type == STRICT:
                self.violate("type", f"IOVA {pfn} was queued while the domain's type says DMA")
            self._check_lost()

    def due_for_timer(self) -> frozenset[int]:
        """What a timer that fires now must free, which is all that is queued unless another flush is under way."""
        with _Unwatched(self.world):
            cookie = self.domain.cookie
            if cookie.fq_flush_start_cnt.counter != cookie.fq_flush_finish_cnt.counter:
                return frozenset()
        return frozenset(pfn for pfn, iova in self.iovas.items() if iova.state is State.QUEUED)

    def timer_done(self, due: frozenset[int]) -> None:
        """A timer has flushed and freed."""
        kept = [pfn for pfn in due if pfn in self.iovas and self.iovas[pfn].state is State.QUEUED]
        if kept:
            self.violate("kept", f"IOVA {min(kept)} was queued before the timer fired, which has not freed it")

    # --- checks -----------------------------------------------------------------------------------------------------

    def _must_not_translate(self, pfn: int, pages: int, what: str) -> None:
        if self.shadow is None:
            return
        with _Unwatched(self.world):
            for page in range(pfn, pfn + pages):
                if pte_valid(iova_to_phys(self.shadow, page)):
                    self.violate("stale", f"IOVA {page} {what} while the hypervisor still translates it as before")

    def _must_translate(self, pfn: int, phys_pfn: int) -> None:
        with _Unwatched(self.world):
            for name, table in (("guest's", self.domain.s390.pgtable), ("hypervisor's", self.shadow)):
                if table is not None and iova_to_phys(table, pfn) != phys_pfn << 12:
                    self.violate("table", f"IOVA {pfn} is mapped, but not in the {name} table")

    def _check_lost(self) -> None:
        if any(cpu.buffer for cpu in self.world.cpus):
            # The append itself may still be on its way; at the end nothing is.
            return
        queued = self.in_rings()
        lost = [pfn for pfn, iova in self.iovas.items() if iova.state is State.QUEUED and not queued[pfn]]
        if lost:
            names = ", ".join(map(str, sorted(lost)))
            one = len(lost) == 1
            self.violate(
                "lost",
                f"{len(lost)} IOVA{'' if one else 's'} lost: {names} {'was' if one else 'were'} queued, "
                f"and {'is' if one else 'are'} on no ring",
            )

    def in_rings(self) -> Counter[int]:
        """How often each IOVA is on a ring."""
        found: Counter[int] = Counter()
        for ring in self.rings():
            i, tail, mask = ring.head, ring.tail, ring.mod_mask
            while i != tail:
                found[self.records.at(iova_fq_entry, ring.entries + i * iova_fq_entry.itemsize).iova_pfn] += 1
                i = (i + 1) & mask
        return found

    def rings(self) -> list[Any]:
        """The rings of the queue, if there is one."""
        cookie = self.domain.cookie
        if not (cookie.single_fq if cookie.qt == SINGLE_QUEUE else cookie.percpu_fq):
            return []
        if cookie.qt == SINGLE_QUEUE:
            return [self.records.at(iova_fq, cookie.single_fq)]
        first = cookie.percpu_fq
        return [self.records.at(iova_fq, first + i * iova_fq.itemsize) for i in range(cookie.fq_rings)]

    def _check_queue(self) -> None:
        domain, cookie = self.domain, self.domain.cookie
        self._check_lost()
        for pfn, count in self.in_rings().items():
            iova = self.iovas.get(pfn)
            if count > 1 or iova is None or iova.state is not State.QUEUED:
                self.violate("books", f"IOVA {pfn} is on a ring, but has been given back")
        for pfn, iova in self.iovas.items():
            if iova.state in (State.ALLOCATED, State.UNMAPPED):
                self.violate("lost", f"IOVA {pfn} is neither mapped nor queued, and was not given back")
        if cookie.fq_domain:
            has = SINGLE_FQ if cookie.qt == SINGLE_QUEUE else PERCPU_FQ
            if domain.type != has:
                names = {number: name for name, number in DOMAIN_TYPES.items()}
                self.violate("type", f"a domain of type {names[domain.type]} has the queue of {names[has]}")

    def _check_tables(self) -> None:
        pages = {page for pfn, iova in self.iovas.items() if iova.state is State.MAPPED
                 for page in range(pfn, pfn + iova.pages)}  # fmt: skip
        for page in range(self.domain.s390.aperture_start_pfn, self.domain.s390.aperture_pages):
            guest = iova_to_phys(self.domain.s390.pgtable, page)
            if pte_valid(guest) != (page in pages):
                self.violate("table", f"IOVA {page} is {'not ' if page in pages else 'still '}in the guest's table")
            if page in pages and self.shadow is not None and iova_to_phys(self.shadow, page) != guest:
                self.violate("table", f"IOVA {page} is mapped, but not in the hypervisor's table")

    def _check_allocator(self) -> None:
        iovad = self.domain.cookie.iovad
        used: list[int] = []
        address = iovad.anchor.node.prev
        while address:
            iova = self.records.at(iova_t, address)
            used.append(iova.pfn_lo)
            address = iova.node.prev
        cached = list(self._cached(iovad))
        for pfn, count in Counter(cached).items():
            if count > 1 or pfn in self.iovas:
                self.violate("twice", f"IOVA {pfn} can be handed out twice: it is in the caches {count} ×")
        missing = set(used) - set(cached) - set(self.iovas)
        if missing or set(self.iovas) - set(used):
            self.violate("lost", f"IOVA {min(missing or set(self.iovas) - set(used))} is lost to the allocator")

    def _cached(self, iovad: Any) -> Iterator[int]:
        for order in range(allocator.IOVA_RANGE_CACHE_MAX_SIZE):
            rcache = self.records.at(iova_rcache, iovad.rcaches + order * iova_rcache.itemsize)
            for i in range(iovad.num_online_cpus):
                cpu_rcache = self.records.at(iova_cpu_rcache, rcache.cpu_rcaches + i * iova_cpu_rcache.itemsize)
                yield from self._in_magazine(cpu_rcache.loaded)
                yield from self._in_magazine(cpu_rcache.prev)
            address = rcache.depot
            while address:
                yield from self._in_magazine(address)
                address = self.records.at(iova_magazine, address).next

    def _in_magazine(self, address: int) -> Iterator[int]:
        first = address + iova_magazine.fields["pfns"][1]  # type: ignore[index]
        for i in range(self.records.at(iova_magazine, address)["count"]):
            yield self.records.at(int64_t, first + 8 * i).value

    def _check_timer(self) -> None:
        cookie = self.domain.cookie
        if not cookie.fq_domain or cookie.fq_timer.state != TIMER_IDLE:
            return
        waiting = [pfn for pfn, iova in self.iovas.items() if iova.state is State.QUEUED and not iova.covered]
        if waiting:
            self.violate("unflushed", f"IOVA {min(waiting)} waits for a flush, and no timer is armed that would come")
