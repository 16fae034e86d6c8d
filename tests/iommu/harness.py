"""A machine without processes: one history of calls, each on a named CPU, made step by step from Python."""

import numpy as np

from emu.config import load
from emu.hypervisor.functions import function_of
from emu.hypervisor.rpcit import rpcit
from emu.hypervisor.state import hypervisor_t
from emu.iommu.dma import dma_map, dma_unmap
from emu.iommu.domain import iommu_domain
from emu.iommu.flush_queue import (
    SINGLE_QUEUE,
    fq_flush_iotlb,
    fq_flush_timeout,
    fq_ring_free,
    iommu_dma_init_fq,
    iova_fq,
    iova_fq_entry,
)
from emu.iommu.group import iommu_group, iommu_group_store_type
from emu.iommu.io_pgtable import ZPCI_PTE_INVALID, iova_to_phys, set_pte
from emu.iommu.iova import (
    IOVA_RANGE_CACHE_MAX_SIZE,
    alloc_iova_fast,
    free_all_cached_iovas,
    free_iova_fast,
    iova_depot_work_func,
    iova_magazine,
    iova_rcache,
    iova_t,
)
from emu.iommu.pci_insn import zpci_refresh_trans
from emu.iommu.s390_iommu import int32_t, s390_iommu_unmap_pages
from emu.iommu.tracepoints import CAUSE_FULL
from emu.machine.context import cpu_t
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine, teardown_machine, unbind_driver
from emu.native.atomics import fetch_add, write_once
from emu.native.compile import compile_entries, entry
from emu.native.record import deref, element
from emu.native.time import now_ticks
from emu.native.timer import TIMER_IDLE, TIMER_PENDING
from emu.oracle.findings import VIOLATION_KINDS
from emu.oracle.pages import begin_flush, end_flush, oracle_t
from emu.workload.program import Program, Workload, op_t

MAP, MAP_SG, UNMAP = 0, 1, 2
FLUSH_TIMEOUT, BEGIN_FLUSH, END_FLUSH, FLUSH, FREE_RINGS = 3, 4, 5, 6, 7
ALLOC, FREE, FREE_ALL_CACHED, DEPOT_WORK = 8, 9, 10, 11
PTE, SHADOW_PTE, RPCIT, INIT_FQ, STORE_TYPE, REFRESH = 12, 13, 14, 15, 16, 17
CLEAR, SET_SHADOW_PTE = 18, 19

NO_FLUSH_RCACHE = 1 << 62
"""Added to the limit of an allocation that must not empty the caches."""

_SEGMENT_BYTES = int32_t.itemsize


@entry
def history_call(context, cpu_id, call, a, b, c):  # noqa: C901, PLR0911, PLR0912 - one branch for each call
    """One call on behalf of a CPU. A single entry, so that what the calls share is compiled once."""
    cpu = deref(cpu_t, context)
    cpu.id = cpu_id
    domain = deref(iommu_domain, cpu.domain)
    cookie = domain.cookie
    if call == MAP:
        return dma_map(cpu, domain, a, b, 0, 1)
    if call == MAP_SG:
        pages = 0
        for i in range(b, b + c):
            pages += element(int32_t, cpu.segments, i).value
        return dma_map(cpu, domain, a, pages, cpu.segments + b * _SEGMENT_BYTES, c)
    if call == UNMAP:
        dma_unmap(cpu, domain, a, b)
    elif call == FLUSH_TIMEOUT:
        fq_flush_timeout(cpu, cookie)
    elif call == FLUSH:
        fq_flush_iotlb(cpu, cookie, CAUSE_FULL, 0)
    elif call == BEGIN_FLUSH:
        fetch_add(cookie.fq_flush_start_cnt, "counter", 1)
        return begin_flush(deref(oracle_t, cookie.iovad.oracle))
    elif call == END_FLUSH:
        end_flush(deref(oracle_t, cookie.iovad.oracle), a)
        write_once(cookie, "fq_flush_finished_at", now_ticks(cpu))
        fetch_add(cookie.fq_flush_finish_cnt, "counter", 1)
    elif call == FREE_RINGS:
        if cookie.qt == SINGLE_QUEUE:
            fq_ring_free(cpu, cookie, deref(iova_fq, cookie.single_fq))
        else:
            for i in range(cookie.num_possible_cpus):
                fq_ring_free(cpu, cookie, element(iova_fq, cookie.percpu_fq, i))
    elif call == ALLOC:
        return alloc_iova_fast(cpu, cookie.iovad, a, b & ~NO_FLUSH_RCACHE, (b & NO_FLUSH_RCACHE) == 0)
    elif call == FREE:
        free_iova_fast(cpu, cookie.iovad, a, b)
    elif call == FREE_ALL_CACHED:
        free_all_cached_iovas(cpu, cookie.iovad)
    elif call == DEPOT_WORK:
        iova_depot_work_func(cpu, element(iova_rcache, cookie.iovad.rcaches, a))
    elif call == PTE:
        return iova_to_phys(domain.s390.pgtable, a)
    elif call == SHADOW_PTE:
        return iova_to_phys(function_of(deref(hypervisor_t, cpu.hypervisor), 0).shadow, a)
    elif call == RPCIT:
        return rpcit(cpu, domain.s390.fh, a, b, c != 0)
    elif call == REFRESH:
        return zpci_refresh_trans(cpu, domain.s390.fh, a, b, c != 0)
    elif call == INIT_FQ:
        return iommu_dma_init_fq(cookie, domain.s390, a, b)
    elif call == STORE_TYPE:
        return iommu_group_store_type(cpu, deref(iommu_group, cpu.group), a)
    elif call == CLEAR:
        s390_iommu_unmap_pages(cpu, domain.s390, a, b)
    elif call == SET_SHADOW_PTE:
        return set_pte(function_of(deref(hypervisor_t, cpu.hypervisor), 0).shadow, cpu.spares, a, b)
    return 0


ENTRIES = (init_machine, teardown_machine, unbind_driver, history_call)

FREE_OF_COST = {"intercept_ns": 0.0, "walk_ns": 0.0, "change_ns": 0.0, "service": "inline"}


class History:
    """A domain and the calls made on it; unless told otherwise flushes cost nothing, and timers fire when told.

    Attributes:
        ctrs: what was counted. domain: the iommu_domain. group: its iommu_group. layout: the memory of it all.
    """

    def __init__(
        self, domain="DMA", cpus=1, segments=(), hypervisor=(), preset="kvm", machine=(), faults=(), **options
    ):
        compile_entries(ENTRIES)
        overrides = [("machine", "cpus", cpus), ("machine", "faults", list(faults)), ("domain", "types", [domain])]
        overrides += [("machine", key, value) for key, value in dict(machine).items()]
        overrides += [("hypervisor", key, value) for key, value in {**FREE_OF_COST, **dict(hypervisor)}.items()]
        overrides += [("domain", key, value) for key, value in options.items()]
        empty = Program(np.zeros(0, op_t), 0)
        workload = Workload("history", [empty] * cpus, 1, segments=np.array(segments, np.int32))
        self.cpus = cpus
        self._flushes = []
        self.layout = Layout(load(preset=preset, overrides=overrides), domain, workload, real_time=False)
        self.context = self.layout.segment.address("contexts", self.layout.supervisor)
        self.ctrs = self.layout.segment["contexts"][self.layout.supervisor].ctrs
        self.findings = self.layout.segment["findings"]
        self.oracle = self.layout.segment["oracle"][0]
        self.domain = self.layout.segment["domain"][0]
        self.group = self.layout.segment["group"][0]
        self.iovad = self.domain.cookie.iovad
        self.hypervisor = self.layout.segment["hypervisor"][0]
        self.server = self.layout.segment["servers"][self.layout.supervisor]
        init_machine(self.context)

    @property
    def violations(self):
        """What the oracle has found so far, of all kinds, in every context."""
        return int(self.findings["counts"].sum())

    def found(self, kind):
        """The same of one kind, by its name."""
        return int(self.findings["counts"][:, VIOLATION_KINDS.index(kind)].sum())

    def close(self):
        self.layout.segment.unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, call, a=0, b=0, c=0, *, cpu=0):
        return int(history_call(self.context, cpu, call, a, b, c))

    # The DMA API.

    def map(self, pages=1, cpu=0, phys_pfn=1 << 20):
        return self.call(MAP, phys_pfn, pages, cpu=cpu)

    def map_sg(self, first_segment, nents, cpu=0, phys_pfn=1 << 20):
        return self.call(MAP_SG, phys_pfn, first_segment, nents, cpu=cpu)

    def unmap(self, pfn, pages=1, cpu=0):
        self.call(UNMAP, pfn, pages, cpu=cpu)

    def map_and_unmap(self, count=1, pages=1, cpu=0):
        """So many pairs, one after another; returns the pfns."""
        pfns = []
        for _ in range(count):
            pfns.append(self.map(pages, cpu))
            assert pfns[-1], "no address left"
            self.unmap(pfns[-1], pages, cpu)
        return pfns

    def pte(self, pfn):
        return self.call(PTE, pfn)

    def is_mapped(self, pfn):
        return not self.pte(pfn) & ZPCI_PTE_INVALID

    # The allocator.

    def alloc(self, pages=1, cpu=0, limit_pfn=None, flush_rcache=True):
        limit = int(self.domain.dma_limit_pfn) if limit_pfn is None else limit_pfn
        return self.call(ALLOC, pages, limit | (0 if flush_rcache else NO_FLUSH_RCACHE), cpu=cpu)

    def free(self, pfn, pages=1, cpu=0):
        self.call(FREE, pfn, pages, cpu=cpu)

    def free_all_cached(self):
        self.call(FREE_ALL_CACHED)

    def pending_depot_works(self):
        """Orders whose depot worker is scheduled."""
        rcaches = self.layout.segment["rcaches"]
        return [o for o in range(IOVA_RANGE_CACHE_MAX_SIZE) if rcaches[o].work.state == TIMER_PENDING]

    def run_depot_work(self, order):
        work = self.layout.segment["rcaches"][order].work
        work.state = TIMER_IDLE
        self.call(DEPOT_WORK, order, cpu=int(work.armed_by))

    def depot_size(self, order=0):
        return int(self.layout.segment["rcaches"][order].depot_size)

    def magazine(self, which, cpu=0, order=0):
        """What is in a CPU's `loaded` or `prev` magazine, oldest first."""
        cpu_rcache = self.layout.segment["cpu_rcaches"][order * self.cpus + cpu]
        magazine = deref(iova_magazine, int(cpu_rcache[which]))
        return magazine.pfns[: magazine["count"]].tolist()

    def allocated_ranges(self):
        """(first, last) pfn of every range in the tree but the anchor, in order."""
        ranges = []
        address = int(self.iovad.anchor.node.prev)
        while address:
            iova = deref(iova_t, address)
            ranges.append((int(iova.pfn_lo), int(iova.pfn_hi)))
            address = int(iova.node.prev)
        return ranges[::-1]

    # The queue.

    def fire_flush_timer(self, cpu=0):
        self.domain.cookie.fq_timer.state = TIMER_IDLE
        self.call(FLUSH_TIMEOUT, cpu=cpu)

    def flush(self):
        self.call(FLUSH)

    def begin_flush(self):
        """Another CPU enters fq_flush_iotlb(), and is not seen again before end_flush(). Returns its number."""
        number = self.call(BEGIN_FLUSH)
        self._flushes.append(number)
        return number

    def end_flush(self, number=None):
        """The flush of that number ends, or the one that began first."""
        number = number or self._flushes[0]
        self._flushes.remove(number)
        self.call(END_FLUSH, number)

    def free_rings(self, cpu=0):
        self.call(FREE_RINGS, cpu=cpu)

    def rings(self):
        return self.layout.segment["rings"]

    def depth(self, ring=0):
        fq = self.rings()[ring]
        return int((fq.tail - fq.head) & fq.mod_mask)

    def queued_pfns(self, ring=0):
        """What is on a ring, first to be freed first."""
        fq = self.rings()[ring]
        return [
            int(element(iova_fq_entry, int(fq.entries), (int(fq.head) + i) & int(fq.mod_mask)).iova_pfn)
            for i in range(self.depth(ring))
        ]

    def timer_is_armed(self):
        return self.domain.cookie.fq_timer.state == TIMER_PENDING

    # Sysfs.

    def store_type(self, domain_type):
        """Write one of emu.iommu.domain's types; returns 0 or -errno."""
        return self.call(STORE_TYPE, domain_type)

    def unbind(self):
        unbind_driver(self.context, self.layout.segment.address("teardown"))

    # The hypervisor.

    def rpcit(self, pfn, pages=1, *, is_global=False):
        return self.call(RPCIT, pfn, pages, int(is_global))

    def refresh(self, pfn, pages=1, *, is_global=False):
        """The same as the guest's kernel does it; 0 or an errno."""
        return self.call(REFRESH, pfn, pages, int(is_global))

    def clear(self, pfn, pages=1):
        """Invalidate table entries, and nothing else of an unmap."""
        self.call(CLEAR, pfn, pages)

    def set_shadow_pte(self, pfn, pte):
        self.call(SET_SHADOW_PTE, pfn, pte)

    def shadow_pte(self, pfn):
        return self.call(SHADOW_PTE, pfn)

    # The end.

    def teardown(self):
        """Take the domain down and say what was found; see teardown_t."""
        report = self.layout.segment["teardown"][0]
        teardown_machine(self.context, self.layout.segment.address("teardown"))
        return report
