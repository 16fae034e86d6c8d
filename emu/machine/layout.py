"""From a description to a segment: plans the memory of a machine and points its records at each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu.config import Config, DomainType, cores
from emu.hypervisor.iotlb import iotlb_t
from emu.hypervisor.state import arm_smmu_cmdq, hypervisor_t, request_t, server_t, smmu_cmd
from emu.iommu.domain import DOMAIN_TYPES, FQ_DEFAULTS, PERCPU_FQ, S390_TYPES, iommu_domain
from emu.iommu.flush_queue import iova_fq, iova_fq_entry
from emu.iommu.group import BUGS, iommu_group
from emu.iommu.io_pgtable import (
    PAGE_SHIFT,
    ZPCI_PT_BITS,
    ZPCI_PT_SIZE,
    ZPCI_TABLE_BITS,
    ZPCI_TABLE_SIZE,
)
from emu.iommu.iova import IOVA_MAG_SIZE, IOVA_RANGE_CACHE_MAX_SIZE, iova_cpu_rcache, iova_magazine, iova_rcache, iova_t
from emu.iommu.recorded import recorded_flush_t
from emu.iommu.s390_iommu import PCI_FUNC_TYPE_ISM
from emu.iommu.stages import STAGES
from emu.machine.context import (
    ROLE_CPU,
    ROLE_DEVICE,
    ROLE_HYPERVISOR,
    ROLE_SUPERVISOR,
    ROLE_TIMER,
    control_t,
    cpu_t,
    mark_t,
    slot_t,
)
from emu.machine.device import BURST, LATE_SCALE, device_t
from emu.machine.lifecycle import teardown_t
from emu.machine.lock_names import lock_id
from emu.machine.policy import Policy
from emu.native.bitmap import bitmap_bytes
from emu.native.cost import COSTS
from emu.native.events import event_ring_t, event_t, init_ring
from emu.native.histogram import BUCKETS
from emu.native.lock import owner_word
from emu.native.record import CACHE_LINE, pointer_to
from emu.native.segment import SegmentPlan
from emu.native.timer import firing_t, timer_base_t
from emu.native.virtual import LINES_REMEMBERED, PS, START_PS, fiber_t, init_world, turn_t, world_t
from emu.oracle.findings import findings_t
from emu.oracle.pages import oracle_t, own_flush_t
from emu.workload.program import OP_MARK, RecordedTimes, Workload, op_t

EVENTS_PER_CPU = 1 << 16
LOG_EVENTS_PER_CPU = 1 << 13
VIRTUAL_EVENTS_PER_CPU = 1 << 13
"""Slots of a ring: with every operation, with what is noted always, and on virtual clocks, where nobody records while a
ring is emptied, and thousands of rings are not too much."""
HISTOGRAMS = ("map", "unmap", "exposure", "wait", "schedule")
_UNLIMITED = 1 << 62
_ROOM_FOR_LOST_RANGES = 1 << 18
_UNASKED_RINGS_BYTES = 64 << 20
"""What may be set aside at most for a queue that nobody has spoken of, but might ask for while the load runs."""
_POLL_NS = 20_000
_GUEST_SPINS = 2_000


@dataclass(frozen=True, slots=True)
class _Queue:
    """A kind of queue that the domain may have: how many rings of how many entries."""

    rings: int
    size: int
    timeout_ms: float

    @property
    def entries(self) -> int:
        return self.rings * self.size


def _whole_lines(state: Any) -> int:
    """Bytes of a record in cache lines that it shares with nothing."""
    return -(-int(state.itemsize) // CACHE_LINE) * CACHE_LINE


class Layout:
    """The memory of one machine.

    Attributes:
        segment: holds everything below under the name of the array. cpus: emulated CPUs; contexts 0 to cpus - 1 are
        theirs, then come the timer's, the servers', the devices' and the supervisor's. fq_size: entries of a ring of
        the domain as it begins; 0 where there is no queue. is_ism: what does DMA is an ISM device.
        folder: of the run, which the segment names to those who look for it; None where there is none.
        policy: what the queue does otherwise than Linux's, or None.
    """

    def __init__(
        self,
        config: Config,
        domain_type: DomainType,
        workload: Workload,
        *,
        real_time: bool,
        folder: Path | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.config = config
        self.policy = policy
        self.workload = workload
        self.type = DOMAIN_TYPES[domain_type]
        self.cpus = len(workload.programs)
        self.servers = config.servers
        self.timer = self.cpus
        self.first_server = self.cpus + 1
        self.first_device = self.first_server + self.servers
        self.devices = config.machine.devices
        self.supervisor = self.first_device + self.devices
        self.contexts = self.supervisor + 1
        self.is_ism = config.device == "ism"
        self._queues = {kind: queue for kind in FQ_DEFAULTS if (queue := self._queue_of(kind))}
        self.fq_size = self._queues[self.type].size if self.type in self._queues else 0
        self.aperture_start_pfn = config.domain.aperture_start >> PAGE_SHIFT
        self.aperture_pages = config.domain.aperture_mb << (20 - PAGE_SHIFT)
        self.is_virtual = config.machine.engine == "sim"
        small = [fault.factor for fault in config.machine.parsed_faults if fault.kind == "small-event-ring"]
        real = EVENTS_PER_CPU if config.machine.record else LOG_EVENTS_PER_CPU
        self.events_per_cpu = min([VIRTUAL_EVENTS_PER_CPU if self.is_virtual else real, *small])
        self.spare_cores = 0 if self.is_virtual else cores() - self.cpus - self.servers
        about = self._about(domain_type, folder)
        self.segment = self._plan().create(private=self.is_virtual, about=about)
        self._fill(real_time=real_time)

    @property
    def load_seconds(self) -> float | None:
        """How long the load is to run, in s; None where it runs for a number of operations, or to its end."""
        machine = self.config.machine
        timed = machine.ops is None and any(program.repeats for program in self.workload.programs)
        return machine.seconds if timed else None

    def _about(self, domain_type: DomainType, folder: Path | None) -> dict[str, Any]:
        """What those who attach to the segment may want to know."""
        return {
            "pid": os.getpid(),
            "folder": str(folder.resolve()) if folder else None,
            "domain": domain_type,
            "workload": self.workload.name,
            "cpus": self.cpus,
            "servers": self.servers,
            "names": [self.name_of(slot) for slot in range(self.supervisor)],
            "seconds": self.load_seconds,
            "config": self.config.model_dump(mode="json"),
        }

    # --- planning ---------------------------------------------------------------------------------------------------

    def _queue_of(self, kind: int) -> _Queue | None:
        """The queue of a lazy type, if there is to be memory for it: once the machine runs, none can be had."""
        if self.type in S390_TYPES or self.is_ism:
            return None
        options = self.config.domain
        default_size, default_timeout_ms = FQ_DEFAULTS[kind]
        rings = 1
        if kind == PERCPU_FQ:
            rings = self.policy.rings_for(self.cpus) if self.policy else self.cpus
        queue = _Queue(rings, options.fq_size or default_size, options.fq_timeout_ms or default_timeout_ms)
        ring_bytes = queue.entries * iova_fq_entry.itemsize
        named = [self.type, *(DOMAIN_TYPES[action.type] for action in self.config.machine.timeline if action.type)]
        most_bytes = options.fq_memory_mb << 20
        return queue if ring_bytes <= (most_bytes if kind in named else min(most_bytes, _UNASKED_RINGS_BYTES)) else None

    def _rings(self) -> int:
        """Most rings that any of the queues has; there is one queue at a time."""
        return max((queue.rings for queue in self._queues.values()), default=0)

    def _ring_entries(self) -> int:
        return max((queue.entries for queue in self._queues.values()), default=0)

    def _iova_ranges(self) -> int:
        """Ranges that can be allocated at once: live, queued, in caches, and room for what overruns lose."""
        if self.config.domain.iova_ranges:
            return self.config.domain.iova_ranges + len(self.config.domain.reserved)
        cached = self.cpus * IOVA_RANGE_CACHE_MAX_SIZE * 2 * IOVA_MAG_SIZE
        wanted = self.workload.slots + self._ring_entries() + cached
        return min(self.aperture_pages, wanted + wanted // 2 + _ROOM_FOR_LOST_RANGES) + len(self.config.domain.reserved)

    def _plan(self) -> SegmentPlan:
        plan = SegmentPlan()
        plan.add("control", control_t, 1)
        plan.add("contexts", cpu_t, self.contexts)
        plan.add("dead_generation", np.int64, self.contexts)
        plan.add("group", iommu_group, 1)
        plan.add("domain", iommu_domain, 1)
        plan.add("timer_base", timer_base_t, 1)
        plan.add("timers", np.int64, 1 + IOVA_RANGE_CACHE_MAX_SIZE)
        plan.add("teardown", teardown_t, 1)
        plan.add("findings", findings_t, self.contexts)
        # On virtual clocks one writes at a time, and all can write to the same.
        self.histograms = 1 if self.is_virtual else self.contexts
        for name in HISTOGRAMS:
            plan.add(f"{name}_histogram", np.int64, self.histograms * BUCKETS)
        if self.is_virtual:
            plan.add("world", world_t, 1)
            plan.add("fibers", fiber_t, self.contexts)
            plan.add("turns", turn_t, self.contexts)
            plan.add("turn_of", np.int64, self.contexts)
            plan.add("lines", np.int64, 2 * LINES_REMEMBERED)
        self._plan_hypervisor(plan)
        self._plan_load(plan)
        if self.type in S390_TYPES:
            self._plan_legacy(plan)
        else:
            self._plan_allocator(plan)
        if self._queues:
            plan.add("rings", iova_fq, self._rings())
            plan.add("ring_entries", iova_fq_entry, self._ring_entries())
            if self.policy:
                self._plan_policy(plan, self.policy)
        if self.config.machine.check:
            plan.add("oracle", oracle_t, 1)
            plan.add("oracle_words", np.int64, self.aperture_pages)
            plan.add("own_flushes", own_flush_t, self.contexts)
        if self.devices:
            plan.add("devices", device_t, self.devices)
            plan.add("iotlbs", iotlb_t, self.devices)
        return plan

    def _plan_policy(self, plan: SegmentPlan, policy: Policy) -> None:
        """What it keeps: of each ring and of all together, in cache lines of their own."""
        if policy.ring_state is not None:
            plan.add("policy_of_rings", np.uint8, self._rings() * _whole_lines(policy.ring_state), CACHE_LINE)
        if policy.shared_state is not None:
            plan.add("policy_of_all", np.uint8, _whole_lines(policy.shared_state), CACHE_LINE)

    def _plan_hypervisor(self, plan: SegmentPlan) -> None:
        self.ring_size = 1 << (4 * self.contexts).bit_length()
        plan.add("hypervisor", hypervisor_t, 1)
        plan.add("requests", request_t, self.contexts)
        plan.add("request_ring", np.int64, self.ring_size)
        plan.add("servers", server_t, self.contexts)
        if self.config.hypervisor.service == "cmdq":
            plan.add("cmdq", arm_smmu_cmdq, 1)
            plan.add("cmds", smmu_cmd, self.config.hypervisor.cmdq_entries)
            plan.add("valid_map", np.uint8, bitmap_bytes(self.config.hypervisor.cmdq_entries))
        first, last = self.aperture_start_pfn, self.aperture_start_pfn + self.aperture_pages - 1
        region_bits = ZPCI_PT_BITS + ZPCI_TABLE_BITS
        # A table more than the aperture needs for every process that may lose a race to install one.
        self.segment_tables = (last >> region_bits) - (first >> region_bits) + 1 + self.contexts
        self.page_tables = (last >> ZPCI_PT_BITS) - (first >> ZPCI_PT_BITS) + 1 + self.contexts
        for name in ("guest", "shadow"):
            if name == "shadow" and not self.config.hypervisor.shadows:
                continue
            plan.add(f"{name}_region_table", np.int64, ZPCI_TABLE_SIZE // 8, ZPCI_TABLE_SIZE)
            plan.add(f"{name}_segment_tables", np.uint8, self.segment_tables * ZPCI_TABLE_SIZE, ZPCI_TABLE_SIZE)
            plan.add(f"{name}_page_tables", np.uint8, self.page_tables * ZPCI_PT_SIZE, ZPCI_PT_SIZE)
        if not self.config.hypervisor.shadows:
            plan.add("shadow_region_table", np.int64, ZPCI_TABLE_SIZE // 8, ZPCI_TABLE_SIZE)

    def _plan_load(self, plan: SegmentPlan) -> None:
        plan.add("slots", slot_t, self.workload.slots)
        plan.add("segments", np.int32, len(self.workload.segments) + 1)
        plan.add("ops", op_t, sum(len(program.ops) for program in self.workload.programs) + 1)
        self.marks_per_cpu = 1 + max((int((p.ops["code"] == OP_MARK).sum()) for p in self.workload.programs), default=0)
        plan.add("marks", mark_t, self.marks_per_cpu * self.cpus)
        if self.workload.recorded:
            plan.add("recorded_firings", firing_t, len(self.workload.recorded.firings) + 1)
            plan.add("recorded_flushes", recorded_flush_t, len(self.workload.recorded.flushes) + 1)
        plan.add("event_rings", event_ring_t, self.first_device)
        plan.add("events", event_t, self.first_device * self.events_per_cpu)
        if self.config.machine.breakdown:
            plan.add("stages", np.int64, self.cpus * 2 * STAGES)

    def _plan_legacy(self, plan: SegmentPlan) -> None:
        plan.add("iommu_bitmap", np.uint8, bitmap_bytes(self.aperture_pages))
        plan.add("lazy_bitmap", np.uint8, bitmap_bytes(self.aperture_pages))
        plan.add("unmapped_at", np.int64, self.aperture_pages)

    def _plan_allocator(self, plan: SegmentPlan) -> None:
        self.ranges = self._iova_ranges()
        self.magazines = 2 * IOVA_RANGE_CACHE_MAX_SIZE * self.cpus + self.ranges // IOVA_MAG_SIZE + 64
        plan.add("iova_ranges", iova_t, self.ranges)
        plan.add("magazines", iova_magazine, self.magazines)
        plan.add("rcaches", iova_rcache, IOVA_RANGE_CACHE_MAX_SIZE)
        plan.add("cpu_rcaches", iova_cpu_rcache, IOVA_RANGE_CACHE_MAX_SIZE * self.cpus)
        plan.add("reserved", np.int64, 2 * len(self.config.domain.reserved) + 1)

    # --- filling ----------------------------------------------------------------------------------------------------

    def _fill(self, *, real_time: bool) -> None:
        self._fill_domain()
        self._fill_hypervisor()
        if self.type not in S390_TYPES:
            self._fill_allocator()
        if self.config.machine.check:
            self._fill_oracle()
        if self.devices:
            self._fill_devices()
        self._fill_timers()
        self._fill_load()
        for slot in range(self.contexts):
            self._fill_context(slot)
        self._fill_event_rings()
        self._name_locks()
        self._fill_programs(real_time=real_time)
        if self.is_virtual:
            self._fill_world()
        if self.workload.recorded:
            self._fill_recorded(self.workload.recorded)

    def _fill_domain(self) -> None:
        at, domain, options = self.segment.address, self.segment["domain"][0], self.config.domain
        domain.wanted_type = self.type
        domain.dma_limit_pfn = self._dma_limit_pfn()
        domain.pci_32bit_workaround = 1
        domain.s390.aperture_start_pfn = self.aperture_start_pfn
        domain.s390.aperture_pages = self.aperture_pages
        domain.s390.tlb_refresh = self.config.hypervisor.shadows
        domain.s390.pft = PCI_FUNC_TYPE_ISM if self.is_ism else 0
        self._fill_table(domain.s390.pgtable, "guest")
        group = self.segment["group"][0]
        group.default_domain = at("domain")
        group.bugs = sum({BUGS[name] for name in options.bugs if name in BUGS})
        cookie = domain.cookie
        cookie.num_possible_cpus = self.cpus
        cookie.wait_on_overrun = options.on_overrun == "wait"
        if self._queues and "fq-alloc" not in self.config.machine.faults:
            domain.rings = at("rings")
            domain.ring_entries = at("ring_entries")
        for kind, queue in self._queues.items():
            fq_options = domain.percpu_options if kind == PERCPU_FQ else domain.single_options
            fq_options.rings = queue.rings
            fq_options.fq_size = queue.size
            fq_options.fq_timeout_ns = round(queue.timeout_ms * 1e6)
        if "policy_of_all" in self.segment:
            cookie.policy = at("policy_of_all")
        if "policy_of_rings" in self.segment and self.policy:
            rings = self.segment["rings"]
            rings["policy"] = at("policy_of_rings") + _whole_lines(self.policy.ring_state) * np.arange(len(rings))
        if self.type in S390_TYPES:
            zdev = domain.zdev
            # Page 0 is never handed out, as 0 says that a map failed.
            zdev.start_pfn = max(self.aperture_start_pfn, 1)
            last_pfn = min(self._dma_limit_pfn(), self.aperture_start_pfn + self.aperture_pages - 1)
            zdev.iommu_pages = last_pfn - zdev.start_pfn + 1
            zdev.iommu_bitmap = at("iommu_bitmap")
            zdev.lazy_bitmap = at("lazy_bitmap")
            zdev.unmapped_at = at("unmapped_at")
            zdev.reuses_unflushed = "reuse-unflushed" in options.bugs

    def _fill_oracle(self) -> None:
        at, oracle = self.segment.address, self.segment["oracle"][0]
        domain, hv = self.segment["domain"][0], self.segment["hypervisor"][0]
        oracle.start_pfn = self.aperture_start_pfn
        oracle.pages = self.aperture_pages
        oracle.words = at("oracle_words")
        oracle.own_flushes = at("own_flushes")
        oracle.guest_table = hv.guest_table
        oracle.shadow_table = pointer_to(hv.shadow) if hv.shadows else 0
        domain.s390.oracle = hv.oracle = at("oracle")
        domain.zdev.oracle = domain.cookie.iovad.oracle = at("oracle")

    def _fill_devices(self) -> None:
        at, machine, hv = self.segment.address, self.config.machine, self.segment["hypervisor"][0]
        hv.devices = self.devices
        hv.iotlbs = at("iotlbs")
        for number, device in enumerate(self.segment["devices"]):
            device.random = 1 + (machine.seed * 64 + number) * 2654435761 % 0xFFFFFFFE
            device.late = round(machine.late_share * LATE_SCALE)
            device.burst_ns = round(machine.dma_ns * BURST)
            device.slots = self.workload.slots
            device.iotlb = at("iotlbs", number)
            device.oracle = at("oracle")

    def _dma_limit_pfn(self) -> int:
        reach = (1 << self.config.domain.dma_bits) - 1 >> PAGE_SHIFT
        return min(reach, self.aperture_start_pfn + self.aperture_pages - 1)

    def _fill_table(self, table: Any, name: str) -> None:
        at = self.segment.address
        table.region_table = at(f"{name}_region_table")
        if name == "guest" or self.config.hypervisor.shadows:
            table.segment_tables = at(f"{name}_segment_tables")
            table.page_tables = at(f"{name}_page_tables")
            table.segment_tables_max = self.segment_tables
            table.page_tables_max = self.page_tables

    def _fill_hypervisor(self) -> None:
        at, hv, model = self.segment.address, self.segment["hypervisor"][0], self.config.hypervisor
        hv.intercept_ns = round(model.intercept_ns)
        hv.walk_ps = round(model.walk_ns * 1000)
        hv.change_ps = round(model.change_ns * 1000)
        hv.absent_counts = model.absent_entries == "count"
        hv.shadows = model.shadows
        hv.mapping_limit = model.mapping_limit or _UNLIMITED
        hv.queue_limit = model.queue_limit
        hv.is_ism = self.is_ism
        hv.is_inline = model.service == "inline"
        hv.servers = self.servers
        hv.poll_ns = _POLL_NS if self.spare_cores > 0 else 0
        hv.guest_spins = _GUEST_SPINS if self.spare_cores > 0 else 0
        hv.ring = at("request_ring")
        hv.ring_mask = self.ring_size - 1
        hv.requests = at("requests")
        if model.service == "cmdq":
            hv.cmdq = at("cmdq")
            cmdq = self.segment["cmdq"][0]
            cmdq.entries = model.cmdq_entries
            cmdq.is_patched = model.cmdq_patched
            cmdq.cmds, cmdq.valid_map = at("cmds"), at("valid_map")
        hv.guest_table = at("domain") + iommu_domain.fields["s390"][1]  # type: ignore[index]
        self._fill_table(hv.shadow, "shadow")
        for slot in range(self.contexts):
            server = self.segment["servers"][slot]
            server.wait_histogram = self._histogram("wait", slot)
            server.schedule_histogram = self._histogram("schedule", slot)

    def _histogram(self, name: str, slot: int) -> int:
        return self.segment.address(f"{name}_histogram", slot % self.histograms * BUCKETS)

    def _fill_allocator(self) -> None:
        at, iovad = self.segment.address, self.segment["domain"][0].cookie.iovad
        ranges = self.segment["iova_ranges"]
        ranges["node"]["next"][:-1] = at("iova_ranges") + iova_t.itemsize * np.arange(1, self.ranges)
        iovad.free_nodes = at("iova_ranges")
        magazines = self.segment["magazines"]
        magazines["next"][:-1] = at("magazines") + iova_magazine.itemsize * np.arange(1, self.magazines)
        iovad.free_magazines = at("magazines")
        iovad.num_online_cpus = self.cpus
        iovad.max_global_mags = self.config.domain.depot_magazines
        iovad.rcaches = at("rcaches")
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
            self.segment["rcaches"][order].cpu_rcaches = at("cpu_rcaches", order * self.cpus)
        domain = self.segment["domain"][0]
        domain.reserved = at("reserved")
        domain.reserved_count = len(self.config.domain.reserved)
        for i, (first, last) in enumerate(self.config.domain.reserved):
            self.segment["reserved"][2 * i : 2 * i + 2] = (first >> PAGE_SHIFT, last >> PAGE_SHIFT)

    def _fill_timers(self) -> None:
        at, base, timers = self.segment.address, self.segment["timer_base"][0], self.segment["timers"]
        base.tick_ns = 1_000_000_000 // self.config.machine.hz
        if self.is_virtual:
            base.jiffies_start_ns = START_PS // PS + round(self.config.machine.jiffies_start_ms * 1e6)
        base.timers = at("timers")
        cookie = at("domain") + iommu_domain.fields["cookie"][1]  # type: ignore[index]
        timers[0] = cookie + self.segment["domain"].dtype["cookie"].fields["fq_timer"][1]
        base.count = 1
        if self.type not in S390_TYPES:
            work = iova_rcache.fields["work"][1]  # type: ignore[index]
            for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
                timers[1 + order] = at("rcaches", order) + work
            base.count += IOVA_RANGE_CACHE_MAX_SIZE

    def _fill_world(self) -> None:
        segment, costs = self.segment, self.config.costs
        init_world(
            segment["world"][0],
            segment["fibers"],
            segment["turns"],
            segment["turn_of"],
            segment["lines"],
            slack_ns=costs.slack_ns,
            costs_ns=[getattr(costs, f"{name}_ns") for name in COSTS],
            seed=self.config.machine.seed,
        )
        for slot in range(self.contexts):
            # A virtual context begins with its fiber where others have a mark of their own.
            segment["contexts"][slot].native = segment.address("fibers", slot)

    def _fill_load(self) -> None:
        segments = self.workload.segments
        self.segment["segments"][: len(segments)] = segments
        self.segment["teardown"][0].slots = self.workload.slots
        start = 0
        for program in self.workload.programs:
            self.segment["ops"][start : start + len(program.ops)] = program.ops
            start += len(program.ops)

    def name_of(self, slot: int) -> str:
        """What users read: "cpu 3", "timer", "hypervisor"."""
        if slot < self.cpus:
            return f"cpu {slot}"
        if slot == self.timer:
            return "timer"
        if slot >= self.first_device:
            return f"device {slot - self.first_device}" if self.devices > 1 else "device"
        return f"hypervisor {slot - self.first_server}" if self.servers > 1 else "hypervisor"

    def _fill_recorded(self, recorded: RecordedTimes) -> None:
        at, segment, start_ns = self.segment.address, self.segment, START_PS // PS
        firings, flushes = segment["recorded_firings"][:-1], segment["recorded_flushes"][:-1]
        firings["at_ns"], firings["cpu"] = recorded.firings["at_ns"] + start_ns, recorded.firings["cpu"]
        for name in ("cause_ns", "begin_ns", "end_ns", "resume_ns"):
            flushes[name] = recorded.flushes[name] + start_ns
        flushes["cpu"] = recorded.flushes["cpu"]
        base, cookie = segment["timer_base"][0], segment["domain"][0].cookie
        base.recorded, base.recorded_count = at("recorded_firings"), len(firings)
        cookie.fq_timer.is_recorded = 1
        cookie.recorded.first, cookie.recorded.count = at("recorded_flushes"), len(flushes)

    def role_of(self, slot: int) -> int:
        """The role of a context."""
        if slot < self.cpus:
            return ROLE_CPU
        if slot == self.timer:
            return ROLE_TIMER
        if slot >= self.first_device:
            return ROLE_SUPERVISOR if slot == self.supervisor else ROLE_DEVICE
        return ROLE_HYPERVISOR

    def _fill_context(self, slot: int) -> None:
        at, cpu, role = self.segment.address, self.segment["contexts"][slot], self.role_of(slot)
        control_fields = control_t.fields
        cpu.id = slot if role == ROLE_CPU else 0
        cpu.slot = slot
        cpu.role = role
        cpu.generation = 1
        cpu.owner = owner_word(slot, 1)
        cpu.dead_generation = at("dead_generation")
        cpu.control = at("control")
        cpu.abort = at("control") + control_fields["abort"][1]  # type: ignore[index]
        watched = "cpus_retired" if role == ROLE_TIMER else "timer_retired"
        cpu.retired = at("control") + control_fields[watched][1]  # type: ignore[index]
        cpu.domain = at("domain")
        cpu.group = at("group")
        cpu.hypervisor = at("hypervisor")
        cpu.request = at("requests", slot)
        cpu.server = at("servers", slot)
        cpu.timers = at("timer_base")
        cpu.findings = at("findings", slot)
        if role == ROLE_DEVICE:
            cpu.dma_device = at("devices", slot - self.first_device)
        for name in ("map", "unmap", "exposure"):
            cpu[f"{name}_histogram"] = self._histogram(name, slot)
        cpu.slots = at("slots")
        cpu.segments = at("segments")
        cpu.pair_limit = _UNLIMITED

    def _fill_event_rings(self) -> None:
        """One for each CPU, the timer and each server."""
        at, contexts = self.segment.address, self.segment["contexts"]
        for slot in range(self.first_device):
            init_ring(self.segment["event_rings"][slot], at("events", slot * self.events_per_cpu), self.events_per_cpu)
            contexts[slot].events = at("event_rings", slot)
            contexts[slot].records = self.config.machine.record
            if self.config.machine.breakdown and slot < self.cpus:
                contexts[slot].stages = at("stages", slot * 2 * STAGES)

    def _name_locks(self) -> None:
        """Have each lock say which it is."""
        cookie = self.segment["domain"][0].cookie
        cookie.iovad.iova_rbtree_lock.id = lock_id("tree")
        cookie.iovad.magazine_lock.id = lock_id("magazines")
        self.segment["domain"][0].zdev.iommu_bitmap_lock.id = lock_id("bitmap")
        self.segment["hypervisor"][0].lock.id = lock_id("hypervisor")
        for array, kind in (("rings", "ring"), ("cpu_rcaches", "cpu_rcache"), ("rcaches", "depot")):
            if array in self.segment:
                locks = self.segment[array]["lock"]
                locks["id"] = lock_id(kind) + np.arange(len(locks))

    def _fill_programs(self, *, real_time: bool) -> None:
        start, pairs = 0, self.config.machine.ops
        for number, program in enumerate(self.workload.programs):
            cpu = self.segment["contexts"][number]
            cpu.ops = self.segment.address("ops", start)
            cpu.op_count = len(program.ops)
            cpu.loop_start = program.loop_start
            cpu.real_time = real_time
            cpu.marks = self.segment.address("marks", number * self.marks_per_cpu)
            if pairs is not None and program.repeats:
                cpu.pair_limit = -(-pairs // self.cpus)
            start += len(program.ops)
