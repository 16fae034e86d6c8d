"""The one description of a run: machine, domain, hypervisor, workload. Files (TOML), presets and flags all end here.

A preset describes a hypervisor and is a TOML file of the package; a machine file is the user's TOML; flags come last.
`Config.model_validate` is strict: an unknown key, a wrong unit or a contradiction is an error, never ignored.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from emu.fault import TO_COMPLETIONS, Fault, parse_fault
from emu.policy import PolicyError, find_policy, read_policy

DomainType = Literal["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict", "identity"]
QUEUED: frozenset[str] = frozenset({"DMA-FQ", "DMA-SQ"})
DEFAULT_DOMAINS: tuple[DomainType, ...] = ("DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "identity")
S390_DOMAINS: frozenset[str] = frozenset({"s390-lazy", "s390-strict"})
MAX_CPUS = 4096
MAX_FUNCTIONS = 16
MAX_DMBS = 1920 - 32
"""Buffers an ISM device can have registered: ISM_NR_DMBS less the first word of its bitmap (drivers/s390/net/ism.h)."""
DMB_SIZES_KB = tuple(16 << order for order in range(7))
"""Sizes of the buffers of SMC-D: SMC_BUF_MIN_SIZE, doubled up to SMCD_DMBE_SIZES times (net/smc/smc_core.c)."""
PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "kvm"

Nanoseconds = Annotated[float, Field(ge=0, le=1e12)]


class ConfigError(Exception):
    """The description of a run is wrong; the message is one line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)


class Action(_Section):
    """Something done to the machine while its load runs: `type` or `driver`."""

    at_s: float = Field(ge=0, le=86_400, description="when, in s since the start of the load")
    type: DomainType | None = Field(None, description="written to sysfs `iommu_group/type`")
    driver: Literal["unbind", "bind"] | None = Field(None, description="done to the device's driver")
    function: int | None = Field(
        None, ge=0, lt=MAX_FUNCTIONS, description="of which function, counted from 0, where there are several"
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> Action:
        if (self.type is None) == (self.driver is None):
            raise ValueError(f"the action at {self.at_s:g} s needs either type or driver")
        return self


class MachineConfig(_Section):
    """The emulated machine and how long it runs."""

    cpus: int = Field(
        default_factory=lambda: default_cpus(),  # noqa: PLW0108 - defined below
        ge=1,
        le=MAX_CPUS,
        description="emulated CPUs",
    )
    functions: int = Field(
        1,
        ge=1,
        le=MAX_FUNCTIONS,
        description="PCI functions, each with a domain of its own, which share the hypervisor; CPUs are dealt out to "
        "them evenly, or as `[[function]]` says, see [several functions](functions.md)",
    )
    engine: Literal["processes", "threads", "sim"] = Field(
        "processes", description="what a CPU is; `sim`: a virtual clock, for machines larger than this one"
    )
    seconds: float = Field(1.5, gt=0, le=86_400, description="run time of each domain, in s")
    ops: int | None = Field(
        None,
        ge=1,
        lt=2**63,
        description="map+unmap pairs over all CPUs, rounded up to the same number for each; replaces `seconds`",
    )
    seed: int = Field(1, ge=0, lt=2**63, description="of everything random")
    hz: Literal[100, 250, 300, 1000] = Field(250, description="timer ticks a second")
    jiffies_start_ms: float = Field(
        0.0,
        ge=-3_600_000,
        le=3_600_000,
        description="where jiffies are counted from, in ms after the start of a run on virtual clocks: timers fire at "
        "whole jiffies and, the longer they run, at multiples of 8, 64, …",
    )
    pin: bool = Field(True, description="bind CPUs to cores when there are enough")
    record: bool = Field(
        False, description="write every map, unmap, request and wait for a lock to events-*.bin in the run's folder"
    )
    breakdown: bool = Field(
        False, description="measure where the time of maps and unmaps goes: two readings of a clock for each stage"
    )
    check: bool = Field(
        True,
        description="watch every operation: no address is reused before a flush that began after its unmap has ended, "
        "none is in use twice, and the shadow table is as the guest's",
    )
    devices: int = Field(
        0, ge=0, le=64, description="devices that do DMA through an IOTLB while the load runs; needs `check`"
    )
    dma_ns: Nanoseconds = Field(10_000.0, description="time between two accesses of a device, on average")
    late_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="part of a device's accesses that go to addresses it has used before, mapped or not",
    )
    timeline: list[Action] = Field(
        default_factory=list,
        description='what is done while the load runs: `{ at_s = 0.5, type = "DMA-FQ" }` writes the type to sysfs, '
        '`{ at_s = 0.7, driver = "unbind" }` takes the driver from the device, and `"bind"` gives it back',
    )
    faults: list[str] = Field(
        default_factory=list,
        description="what fails on purpose, as in `kill:cpu1@0.3s`, see [faults](faults.md); `fq-alloc`: there is no "
        "memory for a flush queue",
    )
    on_death: Literal["stop", "continue"] = Field(
        "stop",
        description="what the machine does when the process of a CPU dies; `continue`: the others go on, without it",
    )
    restart: list[Literal["hypervisor", "timer"]] = Field(
        default_factory=list, description="whose process is started anew when it has died"
    )

    @field_validator("faults")
    @classmethod
    def _are_faults(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_fault(text)
        return value

    @property
    def parsed_faults(self) -> list[Fault]:
        """The faults, understood."""
        return [parse_fault(text) for text in self.faults]


def _is_power_of_two(value: int | None) -> int | None:
    if value is not None and value & (value - 1):
        raise ValueError(f"must be a power of two, as {1 << value.bit_length()} is")
    return value


class DomainConfig(_Section):
    """The IOMMU domain: which schemes to run, in turn, and their options."""

    types: list[DomainType] = Field(default_factory=lambda: list(DEFAULT_DOMAINS), min_length=1)
    fq_size: int | None = Field(None, ge=2, le=1 << 24, description="entries of a ring; default 256, single 32768")
    fq_timeout_ms: float | None = Field(None, gt=0, le=3_600_000, description="default 10 ms, single 1000 ms")
    on_overrun: Literal["kernel", "wait"] = Field("kernel", description="what an append to a full ring does")
    aperture_start: int = Field(0x1_0000_0000, ge=0, lt=1 << 42, description="first IOVA, in bytes")
    aperture_mb: int = Field(4096, ge=1, le=1 << 22, description="size of the IOVA space, in MiB")
    device: Literal["pci", "ism"] | None = Field(
        None, description="what does DMA; an ISM device never gets a queue; default ism under the load ism, else pci"
    )
    dma_bits: int = Field(64, ge=20, le=64, description="address bits that the device can drive")
    reserved: list[Annotated[tuple[int, int], Strict(strict=False)]] = Field(
        default_factory=list, description="IOVA ranges never handed out: first and last byte of each"
    )
    iova_ranges: int | None = Field(None, ge=64, le=1 << 28, description="memory for that many allocated ranges")
    depot_magazines: int = Field(
        0,
        ge=0,
        le=1 << 20,
        description="full magazines of each size that the allocator's depot has room for (MAX_GLOBAL_MAGS, 32 before "
        "Linux 6.7); what is in one more goes back to the tree; 0 for any number",
    )
    fq_memory_mb: int = Field(1024, ge=0, le=1 << 20, description="most memory the rings may take, in MiB")
    policy: str | None = Field(
        None,
        description="what decides about flush queues instead of Linux: a Python file, beside the description that "
        "names it, or the name of one that comes with emu, see [policies](policies.md)",
    )
    bugs: list[Literal["init-fq-before-type", "queue-before-type", "reuse-unflushed"]] = Field(
        default_factory=list,
        description="bugs on purpose; of a switch to a lazy type: the queue is built from the type not yet set; "
        "the queue is used while the type still says DMA; of `s390-lazy` as Linux had it: when the host is out of "
        "resources, what is unmapped during the flush is reused after it",
    )

    _power_of_two = field_validator("fq_size")(_is_power_of_two)

    @property
    def aperture_pages(self) -> int:
        """Pages of the IOVA space."""
        return self.aperture_mb << 8

    @field_validator("aperture_start")
    @classmethod
    def _page_aligned(cls, value: int) -> int:
        if value % 4096:
            raise ValueError("must be a multiple of 4096")
        return value

    @field_validator("types")
    @classmethod
    def _no_repetition(cls, value: list[DomainType]) -> list[DomainType]:
        if len(set(value)) != len(value):
            raise ValueError("names a domain twice")
        return value


class HypervisorConfig(_Section):
    """Who flushes, and what a flush costs."""

    preset: str = Field(DEFAULT_PRESET, description="where the other values come from unless given")
    shadows: bool = Field(description="it shadows the guest's table, and must be told of every map too")
    intercept_ns: Nanoseconds = Field(description="cost of the trap itself")
    walk_ns: Nanoseconds = Field(description="cost for each inspected entry")
    change_ns: Nanoseconds = Field(description="cost for each changed entry")
    absent_entries: Literal["skip", "count"] = Field(description="whether entries of absent tables are inspected")
    mapping_limit: int = Field(0, ge=0, le=1 << 40, description="most pages the host can hold mapped; 0 for no limit")
    servers: int = Field(1, ge=1, le=64, description="how many requests are served at a time")
    queue_limit: int = Field(
        0,
        ge=0,
        le=2 * MAX_CPUS,
        description="most requests that may wait to be served; another is answered busy, and the guest tries it again "
        "after 1 µs; 0 for no limit",
    )
    service: Literal["process", "inline", "cmdq"] = Field(
        "process",
        description="who serves: a process, the trapping CPU, or an SMMUv3 through the command queue of Linux's driver",
    )
    cmdq_entries: int = Field(65_536, ge=4, le=1 << 19, description="cmdq: commands that the queue has room for")
    cmdq_patched: bool = Field(
        False,
        description="cmdq: places in the queue are reserved by an addition that cannot fail, as a series of patches of "
        "2020 has it, not by compare-and-exchange",
    )

    @field_validator("cmdq_entries")
    @classmethod
    def _is_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"must be a power of two, as {1 << value.bit_length()} is")
        return value


class WorkloadConfig(_Section):
    """The load. Which of the numbers matter depends on the name."""

    name: Literal["map_benchmark", "nvme", "nic", "ism"] = "nvme"
    queue_depth: int = Field(32, ge=1, le=65_536, description="requests under way on each CPU")
    granule: int = Field(1, ge=1, le=1024, description="map_benchmark: pages of each mapping")
    hold_ns: Nanoseconds = Field(0, description="map_benchmark: how long a mapping is held")
    block_kb: dict[int, float] = Field(
        default_factory=lambda: {4: 0.7, 16: 0.15, 64: 0.1, 128: 0.05},
        description="nvme: share of each block size in KiB",
    )
    completion: Literal["same", "other"] = Field("same", description="nvme: CPU on which a request completes")
    think_ns: Nanoseconds = Field(
        0,
        description="nvme: what else a request takes of its CPU, between a completion and the next map, on average; "
        "exponentially distributed",
    )
    ring: int = Field(256, ge=1, le=65_536, description="nic: receive buffers of each CPU")
    batch: int = Field(32, ge=1, le=4096, description="nic: buffers refilled and unmapped together")
    dmbs: int = Field(64, ge=1, le=MAX_DMBS, description="ism: registered buffers of each CPU")
    dmb_kb: dict[int, float] = Field(
        default_factory=lambda: {16: 0.1, 64: 0.7, 256: 0.15, 1024: 0.05},
        description="ism: share of each buffer size in KiB, a power of two from 16 to 1024",
    )

    @field_validator("block_kb", "dmb_kb", mode="before")
    @classmethod
    def _sizes_are_numbers(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        sizes = [int(size) for size in value]
        if len(set(sizes)) < len(sizes):
            raise ValueError("names a size twice")
        return dict(zip(sizes, value.values(), strict=True))

    @field_validator("block_kb", "dmb_kb")
    @classmethod
    def _shares(cls, value: dict[int, float]) -> dict[int, float]:
        if not all(0 <= share < math.inf for share in value.values()):
            raise ValueError("a share must be a number from 0 up")
        if not any(value.values()):
            raise ValueError("needs at least one size with a share above 0")
        return value

    @field_validator("block_kb")
    @classmethod
    def _block_sizes(cls, value: dict[int, float]) -> dict[int, float]:
        for size in value:
            if size < 1 or size > 4096:
                raise ValueError(f"block size {size} KiB is not in 1…4096")
        return value

    @field_validator("dmb_kb")
    @classmethod
    def _dmb_sizes(cls, value: dict[int, float]) -> dict[int, float]:
        for size in value:
            if size not in DMB_SIZES_KB:
                raise ValueError(f"buffer size {size} KiB is not one of {', '.join(map(str, DMB_SIZES_KB))}")
        return value


class FunctionConfig(_Section):
    """One of several PCI functions; a table `[[function]]` for each. What it does not say is as for the machine."""

    name: str | None = Field(None, min_length=1, max_length=32, description="in results; else its number, from 0")
    cpus: int = Field(1, ge=0, le=MAX_CPUS, description="emulated CPUs that work on it and on no other; 0: it is idle")
    type: DomainType | None = Field(None, description="its scheme, whichever of `domain.types` the others have")
    device: Literal["pci", "ism"] | None = Field(None, description="what does DMA")
    fq_size: int | None = Field(None, ge=2, le=1 << 24, description="entries of a ring of its queue")
    fq_timeout_ms: float | None = Field(None, gt=0, le=3_600_000, description="of its queue")
    workload: WorkloadConfig = Field(
        default_factory=WorkloadConfig, description="keys of `[workload]` that are others for this one"
    )

    _power_of_two = field_validator("fq_size")(_is_power_of_two)


class CostsConfig(_Section):
    """What steps of a CPU cost on the virtual clocks of `sim`; `emu doctor --calibrate` measures them on a machine."""

    map_ns: Nanoseconds = Field(24.0, description="a map and its part of the load's loop, apart from the following")
    unmap_ns: Nanoseconds = Field(24.0, description="an unmap and its part of the loop, apart from the following")
    map_page_ns: Nanoseconds = Field(2.2, description="each page mapped")
    unmap_page_ns: Nanoseconds = Field(2.1, description="each page unmapped")
    check_page_ns: Nanoseconds = Field(4.3, description="each page that the check looks at, at map and at unmap")
    bitmap_page_ns: Nanoseconds = Field(4.0, description="each page taken from the old s390 bitmap or given back")
    queue_ns: Nanoseconds = Field(9.0, description="an append to a flush queue")
    reclaim_ns: Nanoseconds = Field(3.4, description="each IOVA freed after a flush")
    lock_ns: Nanoseconds = Field(4.4, description="a lock that is free, taken and given back")
    transfer_ns: Nanoseconds = Field(22.0, description="more for a lock, or a cache line, that another CPU had last")
    tree_ns: Nanoseconds = Field(19.0, description="a range allocated from the tree, or given back to it")
    request_ns: Nanoseconds = Field(140.0, description="a request to the hypervisor, beyond the emulated time")
    wake_ns: Nanoseconds = Field(0.0, description="until a sleeper runs that was woken, or whose time is over")
    relax_ns: Nanoseconds = Field(24.0, description="one look at a word that has not changed")
    slack_ns: Nanoseconds = Field(
        1000.0, description="how far a CPU may run ahead of the others in the midst of an operation; 0 to 1000"
    )


class Config(_Section):
    """A whole run."""

    machine: MachineConfig = Field(default_factory=MachineConfig)
    domain: DomainConfig = Field(default_factory=DomainConfig)
    hypervisor: HypervisorConfig
    workload: WorkloadConfig = Field(default_factory=WorkloadConfig)
    costs: CostsConfig = Field(default_factory=CostsConfig)
    function: list[FunctionConfig] = Field(default_factory=list, max_length=MAX_FUNCTIONS)

    @property
    def lazy_types(self) -> frozenset[str]:
        """Types with a flush queue that a domain of this run begins with, or is switched to."""
        switched_to = {action.type for action in self.machine.timeline if action.type}
        return QUEUED & {*self.domain.types, *(own.type for own in self.function if own.type), *switched_to}

    @property
    def functions(self) -> int:
        """PCI functions of the machine."""
        return self.machine.functions

    def function_name(self, number: int) -> str:
        """What a function is called in results."""
        return (self.function and self.function[number].name) or f"function {number}"

    def function_type(self, number: int) -> DomainType | None:
        """The scheme that is a function's own; None where it has whichever runs."""
        return self.function[number].type if self.function else None

    def of_function(self, number: int) -> Config:
        """The description as it would be for a machine of this function alone."""
        share, more = divmod(self.machine.cpus, self.functions)
        own = self.function[number] if self.function else FunctionConfig(cpus=share + (number < more))
        machine = {
            "cpus": own.cpus,
            "functions": 1,
            # The first has the load that it would have alone.
            "seed": self.machine.seed + number,
            "timeline": [action for action in self.machine.timeline if action.function in (None, number)],
        }
        domain = {name: value for name in _OF_DOMAIN if (value := getattr(own, name)) is not None}
        workload = {name: getattr(own.workload, name) for name in own.workload.model_fields_set}
        parts = {"machine": machine, "domain": domain, "workload": workload}
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in parts.items()}
        return self.model_copy(update={**changed, "function": []})

    @model_validator(mode="after")
    def _switching_starts_strict(self) -> Config:
        if self.machine.timeline and "types" not in self.domain.model_fields_set:
            self.domain.types = ["DMA"]
        return self

    @model_validator(mode="after")
    def _functions_make_sense(self) -> Config:
        if self.function:
            self._count_functions()
        if self.functions > 1:
            self._check_timeline_of_functions()
        for types in ({own.type or domain for own in self.function} for domain in self.domain.types):
            if types & S390_DOMAINS and types - S390_DOMAINS:
                raise ValueError(
                    "function: the s390-* schemes are another kernel's DMA API; all functions have one of them, or none"
                )
        for number, own in enumerate(self.function):
            if own.fq_size or own.fq_timeout_ms:
                switched_to = {action.type for action in self.machine.timeline if action.function == number}
                if not QUEUED & {*([own.type] if own.type else self.domain.types), *switched_to}:
                    raise ValueError(f"function {number}: fq_size and fq_timeout_ms need a type with a flush queue")
        return self

    def _count_functions(self) -> None:
        """See that the machine has as many functions, CPUs and types as they say."""
        machine, domain, known = self.machine, self.domain, [own.type for own in self.function if own.type]
        for key, count in (("functions", len(self.function)), ("cpus", sum(own.cpus for own in self.function))):
            if key in machine.model_fields_set and getattr(machine, key) != count:
                raise ValueError(f"machine.{key} = {getattr(machine, key)}, but [[function]] has {count}; leave it out")
            setattr(machine, key, count)
        if not 1 <= machine.cpus <= MAX_CPUS:
            raise ValueError(f"function: {machine.cpus} CPUs in all; there must be 1 to {MAX_CPUS}")
        if len(known) == len(self.function):
            if "types" in domain.model_fields_set and domain.types != known[:1]:
                raise ValueError("domain.types: every [[function]] has a type of its own; leave out one or the other")
            domain.types = known[:1]
        elif known and "types" not in domain.model_fields_set:
            # Those that can stand beside them.
            domain.types = [name for name in domain.types if (name in S390_DOMAINS) == (known[0] in S390_DOMAINS)]

    def _check_timeline_of_functions(self) -> None:
        for action in self.machine.timeline:
            if action.driver:
                raise ValueError(
                    f"machine.timeline: driver at {action.at_s:g} s: drivers are unbound on machines of one function"
                )
            if action.function is None or action.function >= self.functions:
                raise ValueError(
                    f"machine.timeline: type at {action.at_s:g} s: give its function, from 0 to {self.functions - 1}"
                )

    @model_validator(mode="after")
    def _no_contradiction(self) -> Config:
        if self.machine.ops is not None and "seconds" in self.machine.model_fields_set:
            raise ValueError("machine.ops and machine.seconds contradict each other; give one")
        if self.hypervisor.service == "inline" and self.hypervisor.servers > 1:
            raise ValueError(
                "hypervisor.servers > 1 contradicts service = inline: every CPU serves itself, one at a time"
            )
        self._command_queue_makes_sense()
        if self.machine.devices and not self.machine.check:
            raise ValueError("machine.devices needs machine.check, which knows what an access ought to find")
        given = {key for key in self.domain.model_fields_set if getattr(self.domain, key) is not None}
        queue_options = {"fq_size", "fq_timeout_ms", "on_overrun", "policy"} & given
        if queue_options and not self.lazy_types:
            raise ValueError(
                f"domain.{min(queue_options)} needs a domain with a flush queue; add DMA-FQ or DMA-SQ to types"
            )
        end = self.domain.aperture_start + (self.domain.aperture_mb << 20)
        if end > 1 << 42:
            raise ValueError("domain.aperture_start + aperture_mb ends above 2^42, the reach of a three-level table")
        if self.domain.dma_bits < 64 and 1 << self.domain.dma_bits <= self.domain.aperture_start:
            raise ValueError("domain.dma_bits ends below domain.aperture_start: the device reaches no address")
        for first, last in self.domain.reserved:
            if not 0 <= first < last < 1 << 64 or first % 4096 or (last + 1) % 4096:
                raise ValueError("domain.reserved needs whole pages: [first byte, last byte] with first < last")
        return self

    def _command_queue_makes_sense(self) -> None:
        model, posters = self.hypervisor, self.machine.cpus + 1
        if model.service != "cmdq":
            fields = HypervisorConfig.model_fields
            options = [key for key in ("cmdq_entries", "cmdq_patched") if getattr(model, key) != fields[key].default]
            if options:
                raise ValueError(f"hypervisor.{options[0]} needs service = cmdq, where there is a command queue")
        elif model.servers > 1:
            raise ValueError(
                "hypervisor.servers > 1 contradicts service = cmdq: one SMMU consumes its commands in turn"
            )
        elif model.queue_limit:
            raise ValueError("hypervisor.queue_limit contradicts service = cmdq: who finds no room in the queue waits")
        elif model.cmdq_patched and model.cmdq_entries < 2 * posters:
            raise ValueError(
                f"hypervisor.cmdq_patched needs room for a flush of each CPU and the timer at once: "
                f"cmdq_entries of at least {1 << (2 * posters - 1).bit_length()}"
            )

    @model_validator(mode="after")
    def _faults_make_sense(self) -> Config:
        machine = self.machine
        if machine.engine != "processes" and (machine.on_death == "continue" or machine.restart):
            key = "restart" if machine.restart else "on_death"
            raise ValueError(f"machine.{key} is about processes that die; those of engine = {machine.engine} cannot")
        if machine.on_death == "continue" and self.hypervisor.service == "inline" and self.hypervisor.queue_limit:
            raise ValueError(
                "machine.on_death = continue contradicts hypervisor.queue_limit with service = inline: nobody can "
                "tell whether the dead had been counted as waiting"
            )
        seen: set[tuple[str, str]] = set()
        for fault in machine.parsed_faults:
            reason = self._why_not(fault)
            if not reason and not fault.is_to_process and (fault.kind, fault.role) in seen:
                reason = f"there is another {fault.kind}; give one"
            if reason:
                raise ValueError(f"machine.faults: {fault.text}: {reason}")
            seen.add((fault.kind, fault.role))
        return self

    def _why_not(self, fault: Fault) -> str | None:
        """Why a fault cannot happen on this machine, or None."""
        machine, inline = self.machine, self.hypervisor.service == "inline"
        if fault.is_to_process and machine.engine != "processes":
            return f"there is no process to {fault.kind} with engine = {machine.engine}; use processes"
        if inline and (fault.kind in (*TO_COMPLETIONS, "dead") or (fault.is_to_process and fault.role == "hypervisor")):
            return "with hypervisor.service = inline every CPU serves itself; there is no process of the hypervisor"
        if self.hypervisor.service == "cmdq" and fault.kind in TO_COMPLETIONS:
            return "with hypervisor.service = cmdq a completion is a word of the queue, which does not go astray"
        count = {"cpu": machine.cpus, "hypervisor": self.hypervisor.servers}.get(fault.role, 0)
        if fault.number is not None and fault.number >= count:
            return f"there are {count} of them, counted from 0"
        if fault.at_s is not None and machine.ops is None and fault.at_s >= machine.seconds:
            return f"the load ends before that, after {machine.seconds:g} s"
        return None

    @property
    def device(self) -> Literal["pci", "ism"]:
        """What does DMA."""
        return self.domain.device or ("ism" if self.workload.name == "ism" else "pci")

    @property
    def servers(self) -> int:
        """Processes of the hypervisor."""
        return 0 if self.hypervisor.service == "inline" else self.hypervisor.servers

    def to_toml(self) -> str:
        """The resolved description; reading it back gives an equal Config."""
        data = self.model_dump(exclude_none=True)
        if self.machine.ops is not None:
            del data["machine"]["seconds"]
        if not self.lazy_types:
            for name in ("fq_size", "fq_timeout_ms", "on_overrun"):
                data["domain"].pop(name, None)
        if self.hypervisor.service != "cmdq":
            for name in ("cmdq_entries", "cmdq_patched"):
                data["hypervisor"].pop(name, None)
        # What a function does not say of itself would not be as for all when it is read back.
        data["function"] = [own.model_dump(exclude_unset=True, exclude_none=True) for own in self.function]
        for workload in (data["workload"], *(own.get("workload", {}) for own in data["function"])):
            for name in {"block_kb", "dmb_kb"} & workload.keys():
                workload[name] = {str(size): share for size, share in workload[name].items()}
        if not self.function:
            del data["function"]
        return tomli_w.dumps(data)


_OF_DOMAIN = ("device", "fq_size", "fq_timeout_ms")
"""Keys of a function that are those of `[domain]`."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def default_cpus() -> int:
    """2 to 4 emulated CPUs, leaving a core for the hypervisor where there is one."""
    return max(2, min(4, cores() - 1))


def presets() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data; raises ConfigError where it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give a TOML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; give a TOML file") from None
    except (ValueError, RecursionError) as error:  # also integers of thousands of digits, and arrays as deep
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _preset(name: Any) -> dict[str, Any]:
    if name not in presets():
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(presets())}")
    return read_toml(PRESETS / f"{name}.toml")


def _merge(base: dict[str, Any], over: Mapping[str, Any], where: str) -> None:
    for section, values in over.items():
        if section == "function":
            base[section] = values
            continue
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: {section} must be a table, as in [{section}]")
        base.setdefault(section, {}).update(values)


_COMPLAINTS = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be more than {gt}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "too_short": "must not be empty",
    "list_type": "must be a list",
}


def _shown(value: Any) -> str:
    """A value that was given, in a line: a number of thousands of digits has no other form that Python would print."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def complaint(error: ValidationError, where: str) -> str:
    """What is wrong with a description, as one line: where, what, and what it must be."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).isdigit())
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "no such key; see the reference of the config"
    elif first["type"] == "missing":
        message = "is missing; give it"
    elif first["type"] in _COMPLAINTS:
        message = f"{_COMPLAINTS[first['type']].format(**first.get('ctx', {}))}, not {_shown(first['input'])}"
    elif first["type"] != "value_error":
        message = f"{message}, not {_shown(first['input'])}"
    return " ".join(f"{where}: {place}: {message}".split()) if place else f"{where}: {message}"


def _read_costs(path: Path) -> dict[str, Any]:
    """A file of `emu doctor --calibrate`: one section, [costs]."""
    data = read_toml(path)
    others = sorted(data.keys() - {"costs"})
    if others:
        raise ConfigError(f"{path}: {others[0]} is not about costs, and only [costs] may be in it")
    if not isinstance(data.get("costs"), Mapping):
        raise ConfigError(f"{path} has no [costs]; emu doctor --calibrate writes such a file")
    return data


def load(
    machine_file: Path | Config | None = None,
    preset: str | None = None,
    overrides: Iterable[tuple[str, str, Any]] = (),
    costs_file: Path | None = None,
    others: frozenset[str] = frozenset(),
) -> Config:
    """Put a description together: preset, then machine file, then costs, then single values.

    Args:
        machine_file: the user's TOML, or a description that single values are to change, or None.
        preset: name of the hypervisor preset; None takes the file's, or `kvm`.
        overrides: (section, key, value); None values are left out.
        costs_file: a TOML file whose only section is [costs], or None.
        others: sections of the machine file that are about something else, and not looked at.

    Raises:
        ConfigError: with one line that says what is wrong, where, and what to do.
    """
    if isinstance(machine_file, Config):
        # Only what was given: what follows from other values may follow otherwise from changed ones.
        from_file = machine_file.model_dump(exclude_unset=True, exclude_none=True)
        machine_file = None
    else:
        from_file = read_toml(machine_file) if machine_file else {}
        from_file = {section: values for section, values in from_file.items() if section not in others}
    given = [(section, key, value) for section, key, value in overrides if value is not None]
    preset = next((value for section, key, value in given if (section, key) == ("hypervisor", "preset")), preset)
    hypervisor = from_file.get("hypervisor", {})
    name = hypervisor.get("preset", DEFAULT_PRESET) if isinstance(hypervisor, Mapping) else DEFAULT_PRESET
    if preset is not None:
        # A preset named on the command line stands for all of its numbers, whatever the file says.
        name = preset
        from_file.pop("hypervisor", None)
    data: dict[str, Any] = {}
    _merge(data, _preset(name), f"preset {name}")
    _place_policy(from_file.get("domain"), machine_file.parent if machine_file else Path.cwd())
    _merge(data, from_file, str(machine_file))
    costs = _read_costs(costs_file) if costs_file else {}
    _merge(data, costs, str(costs_file))
    data.setdefault("hypervisor", {})["preset"] = name
    _override(data, given)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            complaint(error, _culprit(error, machine_file, (costs_file, costs.get("costs", {})), given))
        ) from None
    is_typed = any((section, key) == ("domain", "policy") for section, key, _ in given)
    _check_policy(config, "command line" if is_typed or not machine_file else str(machine_file))
    return config


def _override(data: dict[str, Any], given: Iterable[tuple[str, str, Any]]) -> None:
    """Put single values into a description."""
    for section, key, value in given:
        if section == "function":
            raise ConfigError(f"command line: function.{key}: what [[function]] says is said in a machine file")
        data.setdefault(section, {})[key] = value
        if (section, key) == ("machine", "ops"):
            data["machine"].pop("seconds", None)
        elif (section, key) == ("machine", "seconds"):
            data["machine"].pop("ops", None)
        elif (section, key) == ("domain", "policy"):
            _place_policy(data["domain"], Path.cwd())


def _check_policy(config: Config, where: str) -> None:
    """See that the policy that a description names can be read; `where` it is named."""
    if config.domain.policy is None:
        return
    try:
        read_policy(config.domain.policy)
    except PolicyError as error:
        raise ConfigError(f"{where}: domain.policy: {error}") from None


def _place_policy(domain: Any, folder: Path) -> None:
    """Have a section that names a policy's file name it wherever we are."""
    if isinstance(domain, dict) and isinstance(domain.get("policy"), str):
        domain["policy"] = find_policy(domain["policy"], folder)


def _culprit(
    error: ValidationError,
    machine_file: Path | None,
    costs: tuple[Path | None, Mapping[str, Any]],
    given: list[tuple[str, str, Any]],
) -> str:
    """Where the first wrong value came from."""
    place = error.errors(include_url=False)[0]["loc"]
    costs_file, keys = costs
    if any(place[: len(path)] == path for path in ((section, key) for section, key, _ in given)):
        return "command line"
    if place[:1] == ("costs",) and place[1:2] and place[1] in keys:
        return str(costs_file)
    return str(machine_file) if machine_file else "command line"
