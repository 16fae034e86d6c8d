"""Compiled Python against C, side by side: what the hot path costs, and whether it costs more than it must.

    python tools/bench_hot_path.py [--quick] [--json]

The yardstick is `reference/hot_path.c`, the project's own C of the same algorithm on the same records. It is compiled
on the spot with `cc -O2`, its structs generated from the NumPy dtypes, and works at the same addresses of the same
segment. Before anything is timed both sides start from one saved state and must leave the same one behind, times
aside. Then they take turns of whole cycles (so many fillings of the ring, never half a one), and what counts is the
median of the ratios of neighbouring turns: absolute times on a shared machine say little. This process is bound to one
core and nothing contends.

What one operation is; the loops are the functions `bench_*` here and in C:

lock   `spin_lock` + `spin_unlock`: compare-and-exchange with the owner's word, count of acquisitions, exchange.
iova   `alloc_iova_fast` + `free_iova_fast` of one page, out of this CPU's magazine and back, its lock taken twice.
ring   `queue_iova` on a single ring of 256: barrier, ring lock, freeing of what is flushed (each with its exposure in
       the histogram and `free_iova_fast` into magazines and depot), stamp with the cycle counter, append, unlock.
       Every 255th finds the ring full and flushes: an RPCIT, served inline, at no emulated cost, over an aperture of
       16 MiB. IOVAs are taken from the caches in batches before each timed stretch.
pair   `dma_map` + `dma_unmap` of one page, as a CPU of the machine does them, on DMA-SQ with its defaults (ring of
       32768, preset lpar, aperture 4 GiB) and the check off: allocator, walk of three levels and exchange of the entry,
       both ways, ring as above, four more reads of the cycle counter, two histograms. Tables and ranges exist before.
naive  the same four as plain Python would first be written: dicts, lists and multiprocessing.Lock.

scaling  two CPUs over one: pairs a second of whole machines (map_benchmark, DMA-FQ, preset lpar, check off, and
         on_overrun = wait, so that no IOVA is lost), while other programs leave both cores alone. `apart`: mappings of
         eight pages, whose table entries fill a cache line, and rings of 128, which the magazines can take in, so that
         the CPUs meet only in the flush; this one has the limit. `default`: one page and rings of 256, where two CPUs
         may, as in the kernel, get neighbouring entries in one line and swap magazines through the depot.
startup  wall time of `emu run` less the time its CPUs ran: start, stop and result together, so an upper bound of the
         time to the first operation.
memory   private bytes of the largest CPU process of those runs, and their segments.

Exit code 0: within the issue's limits, or skipped with a reason; 1: not; 2: the two sides disagree, or a run failed.
"""

# ruff: noqa: E402 - this checkout's emu must be found first

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from numba.core import config as numba_config

from emu.analysis.environment import environment
from emu.config import DomainType, cores, load
from emu.experiment import MachineError, run_machine
from emu.hypervisor import functions, service, state
from emu.iommu import counters, dma, domain, flush_queue, io_pgtable, iova, s390_iommu, s390_legacy
from emu.machine import context
from emu.machine.calibration import bound_to_one_core
from emu.machine.context import cpu_t
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine
from emu.machine.policy import policy_of
from emu.native import atomics, clock, histogram, lock, rbtree, timer
from emu.native import time as time_of_cpu
from emu.native.compile import compile_entries, entry
from emu.native.histogram import record_value
from emu.native.record import deref, element, int64_t
from emu.native.segment import SegmentError
from emu.native.time import now_ns, now_ticks
from emu.workload.build import build_workload

REFERENCE = ROOT / "tools" / "reference" / "hot_path.c"
CFLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-shared", "-fPIC")

MOST_TIMES_C = {"ring": 1.10, "pair": 1.50}
"""What the cases that have a limit may take."""
LEAST_SCALING = 1.7
MOST_OTHERS = 0.1
"""Cores that other programs may use while two CPUs are measured, and how many such repetitions make a verdict."""
LEAST_COUNTED = 3
MOST_START_S = 2.0
MOST_EXTRA_START_S = 1.0
MOST_PRIVATE_BYTES = 25_000_000


class Unavailable(Exception):  # noqa: N818 - no error: the benchmark is skipped
    """There is nothing to compare with; the message is the reason, one line."""


class Disagreement(Exception):  # noqa: N818 - what is wrong is not here
    """The two sides do not do the same, or a machine did not run; the message is one line."""


# --- the loops, as in reference/hot_path.c --------------------------------------------------------------------------


@entry
def bench_lock(address: int, rounds: int) -> int:
    """Take and give back the ring's lock; returns ns."""
    cpu = deref(cpu_t, address)
    fq = deref(flush_queue.iova_fq, deref(domain.iommu_domain, cpu.domain).cookie.single_fq)
    since_ns = now_ns(cpu)
    for _ in range(rounds):
        lock.spin_lock(cpu, fq.lock)
        lock.spin_unlock(cpu, fq.lock)
    return now_ns(cpu) - since_ns


@entry
def bench_iova(address: int, rounds: int) -> int:
    """Allocate and free one page; returns ns."""
    cpu = deref(cpu_t, address)
    dom = deref(domain.iommu_domain, cpu.domain)
    since_ns = now_ns(cpu)
    for _ in range(rounds):
        pfn = iova.alloc_iova_fast(cpu, dom.cookie.iovad, 1, dom.dma_limit_pfn, True)
        iova.free_iova_fast(cpu, dom.cookie.iovad, pfn, 1)
    return now_ns(cpu) - since_ns


@entry
def bench_ring(address: int, pfns: int, batch: int, rounds: int) -> int:
    """Queue IOVAs in batches; `pfns` has room for one. Returns the ns spent in queueing."""
    cpu = deref(cpu_t, address)
    dom = deref(domain.iommu_domain, cpu.domain)
    spent_ns = 0
    for _ in range(rounds):
        for i in range(batch):
            pfn = iova.alloc_iova_fast(cpu, dom.cookie.iovad, 1, dom.dma_limit_pfn, True)
            element(int64_t, pfns, i).value = pfn
        since_ns = now_ns(cpu)
        for i in range(batch):
            flush_queue.queue_iova(cpu, dom.cookie, element(int64_t, pfns, i).value, 1)
        spent_ns += now_ns(cpu) - since_ns
    return spent_ns


@entry
def bench_pair(address: int, rounds: int) -> int:
    """Map and unmap one page, each timed as the machine does; returns ns."""
    cpu = deref(cpu_t, address)
    dom = deref(domain.iommu_domain, cpu.domain)
    since_ns = now_ns(cpu)
    for i in range(rounds):
        since = now_ticks(cpu)
        pfn = dma.dma_map(cpu, dom, (i & 0xFF) + 1, 1, 0, 1)
        record_value(cpu.map_histogram, now_ticks(cpu) - since)
        since = now_ticks(cpu)
        dma.dma_unmap(cpu, dom, pfn, 1)
        record_value(cpu.unmap_histogram, now_ticks(cpu) - since)
    return now_ns(cpu) - since_ns


ENTRIES = (init_machine, bench_lock, bench_iova, bench_ring, bench_pair)


# --- the C side -----------------------------------------------------------------------------------------------------

_MIRRORED = (atomics, clock, histogram, lock, time_of_cpu, timer, rbtree, io_pgtable, s390_iommu, s390_legacy, iova)
_MIRRORED += (flush_queue, counters, domain, state, functions, service, context)


def _records() -> dict[str, np.dtype[Any]]:
    """All record dtypes of those modules, inner ones first: a module's imports come before what is made of them."""
    found = {}
    for module in _MIRRORED:
        found |= {name: value for name, value in vars(module).items() if isinstance(value, np.dtype) and value.names}
    return found


def _constants() -> dict[str, int]:
    """All their whole numbers, private ones without the underscore, but for names that are not the same everywhere."""
    found: dict[str, set[int]] = {}
    for module in _MIRRORED:
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, int):
                found.setdefault(name.lstrip("_"), set()).add(int(value))
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


_RECORDS = _records()
_C_TYPES = {"i8": "int64_t", "i4": "int32_t", "u4": "uint32_t"}


def _declaration(name: str, form: np.dtype[Any]) -> str:
    """A member of a C struct."""
    base, shape = form.subdtype or (form, ())
    if base.names:
        kind = "struct " + next(record for record, dtype in _RECORDS.items() if dtype == base)
    else:
        kind = _C_TYPES[base.str.lstrip("<>=|")]
    return f"\t{kind} {name}{''.join(f'[{size}]' for size in shape)};"


def _struct(record: str, dtype: np.dtype[Any]) -> Iterator[str]:
    """A C struct with the dtype's padding spelled out, and assertions that the compiler agrees."""
    yield f"struct {record} {{"
    end = 0
    offsets = {name: int(dtype.fields[name][1]) for name in dtype.names}  # type: ignore[index,union-attr]
    for name, offset in offsets.items():
        if offset > end:
            yield f"\tchar before_{name}[{offset - end}];"
        yield _declaration(name, dtype[name])
        end = offset + dtype[name].itemsize
    if dtype.itemsize > end:
        yield f"\tchar after_all[{dtype.itemsize - end}];"
    yield "};"
    for name, offset in offsets.items():
        yield f'_Static_assert(offsetof(struct {record}, {name}) == {offset}, "{record}.{name}");'
    yield f'_Static_assert(sizeof(struct {record}) == {dtype.itemsize}, "{record}");'


def layout_header() -> str:
    """layout.h: the records and constants of emu in C."""
    lines = ["/* Generated from emu's modules by tools/bench_hot_path.py. */"]
    lines += [f"#define {name} {value}{'' if abs(value) < 1 << 31 else 'LL'}" for name, value in _constants().items()]
    for record, dtype in _RECORDS.items():
        lines += _struct(record, dtype)
    return "\n".join(lines) + "\n"


def _compiler_name() -> str:
    return os.environ.get("CC", "cc")


def find_compiler() -> str | None:
    """The C compiler, $CC or cc."""
    return shutil.which(_compiler_name())


def _version_of_compiler() -> list[str]:
    done = subprocess.run([_compiler_name(), "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[:1]


def build_reference(folder: Path) -> ctypes.CDLL:
    """Compile the reference into a folder and load it.

    Raises:
        Unavailable: when the compiler refuses.
    """
    (folder / "layout.h").write_text(layout_header())
    target = folder / "hot_path.so"
    command = [_compiler_name(), *CFLAGS, f"-I{folder}", "-o", str(target), str(REFERENCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise Unavailable(f"{_compiler_name()} cannot compile {REFERENCE.name}: {problem}")
    library = ctypes.CDLL(str(target))
    for name, arguments in {"bench_lock": 2, "bench_iova": 2, "bench_ring": 4, "bench_pair": 2}.items():
        function = getattr(library, name)
        function.argtypes = [ctypes.c_int64] * arguments
        function.restype = ctypes.c_int64
    library.times_off_the_path.restype = ctypes.c_int64
    return library


# --- the naive version ----------------------------------------------------------------------------------------------


class NaiveDomain:
    """A domain with a flush queue, written the way one would first write it.

    Generous to itself: only the locks are shared between processes; dicts and lists would have to be as well.
    """

    def __init__(self, ring_size: int) -> None:
        self.ring_size = ring_size
        self.lock = multiprocessing.Lock()
        self.allocator_lock = multiprocessing.Lock()
        self.free_pfns = list(range(1 << 20, (1 << 20) + 2 * ring_size + 4096))
        self.page_table: dict[int, int] = {}
        self.ring: list[tuple[int, int, int]] = []
        self.flushes_started = 0
        self.flushes_finished = 0
        self.latencies: Counter[int] = Counter()

    def alloc_iova(self) -> int:
        """Take any free page."""
        with self.allocator_lock:
            return self.free_pfns.pop()

    def free_iova(self, pfn: int) -> None:
        """Give it back."""
        with self.allocator_lock:
            self.free_pfns.append(pfn)

    def _free_flushed(self) -> None:
        while self.ring and self.ring[0][1] < self.flushes_finished:
            pfn, _, queued_at = self.ring.pop(0)
            self._count(time.perf_counter_ns() - queued_at)
            self.free_iova(pfn)

    def queue_iova(self, pfn: int) -> None:
        """Put a page on the ring; flush when that is full."""
        with self.lock:
            self._free_flushed()
            if len(self.ring) == self.ring_size - 1:
                self.flushes_started += 1
                self.flushes_finished += 1
                self._free_flushed()
            self.ring.append((pfn, self.flushes_started, time.perf_counter_ns()))

    def _count(self, latency_ns: int) -> None:
        self.latencies[latency_ns.bit_length()] += 1

    def map_and_unmap(self) -> None:
        """One pair, with its timestamps."""
        since = time.perf_counter_ns()
        pfn = self.alloc_iova()
        self.page_table[pfn] = pfn << 12
        mapped = time.perf_counter_ns()
        self._count(mapped - since)
        del self.page_table[pfn]
        self.queue_iova(pfn)
        self._count(time.perf_counter_ns() - mapped)

    def bench_lock(self, rounds: int) -> int:
        """As the function of that name."""
        since_ns = time.perf_counter_ns()
        for _ in range(rounds):
            with self.lock:
                pass
        return time.perf_counter_ns() - since_ns

    def bench_iova(self, rounds: int) -> int:
        """As the function of that name."""
        since_ns = time.perf_counter_ns()
        for _ in range(rounds):
            self.free_iova(self.alloc_iova())
        return time.perf_counter_ns() - since_ns

    def bench_ring(self, rounds: int) -> int:
        """As the function of that name."""
        pfns = [self.alloc_iova() for _ in range(rounds)]
        since_ns = time.perf_counter_ns()
        for pfn in pfns:
            self.queue_iova(pfn)
        return time.perf_counter_ns() - since_ns

    def bench_pair(self, rounds: int) -> int:
        """As the function of that name."""
        since_ns = time.perf_counter_ns()
        for _ in range(rounds):
            self.map_and_unmap()
        return time.perf_counter_ns() - since_ns


# --- one segment, both sides ----------------------------------------------------------------------------------------

_TIMES = {
    *("queued_at", "fq_flush_finished_at", "exposure_page_ticks", "exposure_max_ticks", "posted_ns", "busy_ns"),
    *("free_at_ns", "total_wait_ns", "max_wait_ns", "total_schedule_ns", "max_schedule_ns", "wait_ns", "service_ns"),
    *("request_wait_ns", "request_service_ns"),
}
_STATE = (
    *("contexts", "domain", "hypervisor", "requests", "request_ring", "servers", "rings", "ring_entries", "timer_base"),
    *("iova_ranges", "magazines", "rcaches", "cpu_rcaches"),
    *("guest_region_table", "guest_segment_tables", "guest_page_tables"),
)
_HISTOGRAMS = tuple(f"{name}_histogram" for name in ("map", "unmap", "exposure", "flush", "wait", "schedule"))


def _feed(digest: Any, array: Any) -> None:
    """Hash an array but for the fields that hold times."""
    if not array.dtype.names:
        digest.update(np.ascontiguousarray(array).tobytes())
        return
    for name in array.dtype.names:
        if name not in _TIMES:
            _feed(digest, array[name])


class Bench:
    """A machine of one CPU that is never started: its segment, on which both sides work in turn.

    Args:
        overrides: of the description, as emu.config.load takes them.
        domain_type: what it begins as.
    """

    def __init__(self, overrides: list[tuple[str, str, Any]], domain_type: DomainType = "DMA-SQ") -> None:
        alone = [("machine", "cpus", 1), ("machine", "check", False), ("workload", "name", "map_benchmark")]
        config = load(preset="lpar", overrides=[*alone, *overrides])
        self.policy = policy_of(config)
        workload = build_workload(config)
        self.layout = Layout(config, domain_type, workload, real_time=False, policy=self.policy)
        self.segment = self.layout.segment
        self.context = self.segment.address("contexts", 0)
        self.fq_size = self.layout.fq_size
        init_machine(self.segment.address("contexts", self.layout.supervisor))

    def save(self) -> dict[str, Any]:
        """All that a loop may change."""
        return {name: self.segment.copy_of(name) for name in (*_STATE, *_HISTOGRAMS)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Put it back."""
        for name, array in saved.items():
            self.segment[name][:] = array

    def digest(self) -> str:
        """Checksum of everything both sides must agree on: all records but times, and how much histograms hold."""
        digest = hashlib.blake2b(digest_size=8)
        for name in _STATE:
            _feed(digest, np.asarray(self.segment[name]))
        for name in _HISTOGRAMS:
            _feed(digest, self.segment[name].sum())
        return digest.hexdigest()

    def counters(self) -> dict[str, int]:
        """The CPU's counters, flushes and ranges taken from the tree."""
        ctrs = self.segment["contexts"][0].ctrs
        found = {name: int(ctrs[name]) for name in counters.iommu_ctrs.names or () if name not in _TIMES}
        found["queued"] = int(self.segment["rings"][0].queued)
        found["ranges"] = int(self.segment["domain"][0].cookie.iovad.nodes_used)
        return found


class Side(NamedTuple):
    """A loop that takes a number of operations and returns ns, and how many make a turn."""

    run: Callable[[int], int]
    operations: int

    def turn(self) -> float:
        """Run one turn; returns ns an operation."""
        return self.run(self.operations) / self.operations


class Turn(NamedTuple):
    """What an operation took, in ns, in neighbouring turns of the three."""

    emu: float
    c: float
    naive: float


@dataclass(slots=True)
class Case:
    """One comparison.

    Attributes:
        name: as in the table.
        bench: the segment that both compiled sides work on.
        emu, c, naive: the loops.
    """

    name: str
    bench: Bench
    emu: Side
    c: Side
    naive: Side

    def compare_states(self) -> dict[str, Any]:
        """Run both sides from the same state; returns what they leave behind."""
        saved, before, counted = self.bench.save(), self.bench.digest(), self.bench.counters()
        self.emu.turn()
        emu, change = self.bench.digest(), self._change(counted)
        self.bench.restore(saved)
        self.c.turn()
        c = self.bench.digest()
        agree = emu == c and change == self._change(counted)
        return {"before": before, "emu": emu, "c": c, "agree": agree, "change": change}

    def _change(self, before: dict[str, int]) -> dict[str, int]:
        return {name: value - before[name] for name, value in self.bench.counters().items()}

    def take_turns(self, repetitions: int) -> Iterator[Turn]:
        """Time all three by turns; who is first of the two compiled ones alternates."""
        for side in (self.emu, self.c):
            side.turn()
        for repetition in range(repetitions):
            if repetition % 2:
                c_ns, emu_ns = self.c.turn(), self.emu.turn()
            else:
                emu_ns, c_ns = self.emu.turn(), self.c.turn()
            yield Turn(emu_ns, c_ns, self.naive.turn())


def _ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": round(median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "repetitions": len(ratios),
    }


_SMALL_RING = 256
_BATCH = 8 * (_SMALL_RING - 1)
_NAIVE_OPERATIONS = 255


def make_cases(library: ctypes.CDLL) -> list[Case]:
    """The four cases, warm: rings full, ranges and tables made, timers armed."""
    pfns = np.zeros(_BATCH, np.int64)
    small = Bench(
        [("hypervisor", "intercept_ns", 0.0), ("domain", "fq_size", _SMALL_RING), ("domain", "aperture_mb", 16)]
    )
    default = Bench([])
    ring = default.fq_size - 1

    def per_operation(function: Any, bench: Bench) -> Callable[[int], int]:
        return lambda count: function(bench.context, count)

    def per_batch(function: Any) -> Callable[[int], int]:
        return lambda count: function(small.context, pfns.ctypes.data, _BATCH, count // _BATCH)

    def naive(function: Callable[[NaiveDomain, int], int]) -> Side:
        domain = NaiveDomain(_SMALL_RING)
        return Side(lambda count: function(domain, count), _NAIVE_OPERATIONS)

    lock_emu, lock_c = per_operation(bench_lock, small), per_operation(library.bench_lock, small)
    iova_emu, iova_c = per_operation(bench_iova, small), per_operation(library.bench_iova, small)
    ring_emu, ring_c = per_batch(bench_ring), per_batch(library.bench_ring)
    pair_emu, pair_c = per_operation(bench_pair, default), per_operation(library.bench_pair, default)
    ring_emu(8 * _BATCH)
    pair_emu(3 * ring)
    return [
        Case("lock", small, Side(lock_emu, 40_000), Side(lock_c, 40_000), naive(NaiveDomain.bench_lock)),
        Case("iova", small, Side(iova_emu, 20_000), Side(iova_c, 20_000), naive(NaiveDomain.bench_iova)),
        Case("ring", small, Side(ring_emu, 4 * _BATCH), Side(ring_c, 4 * _BATCH), naive(NaiveDomain.bench_ring)),
        Case("pair", default, Side(pair_emu, ring), Side(pair_c, ring), naive(NaiveDomain.bench_pair)),
    ]


def measure_cases(blocks: int, repetitions: int) -> list[dict[str, Any]]:
    """Compare states, then time every case in `blocks` stretches of `repetitions`.

    Each stretch has segments at other addresses: where stack, code and data happen to lie in the caches can cost either
    side a fifth, for as long as they lie there.

    Raises:
        Unavailable: when there is nothing to compare with.
        Disagreement: when the two sides do not do the same.
    """
    states: dict[str, dict[str, Any]] = {}
    turns: dict[str, list[Turn]] = {}
    spacers = []
    with tempfile.TemporaryDirectory(prefix="emu-bench-") as folder, bound_to_one_core():
        library = build_reference(Path(folder))
        for block in range(blocks):
            spacers.append(mmap.mmap(-1, (block + 1) * 17 * mmap.PAGESIZE))
            cases = make_cases(library)
            try:
                for case in cases:
                    if case.name not in states:
                        states[case.name] = case.compare_states()
                    turns.setdefault(case.name, []).extend(case.take_turns(repetitions))
            finally:
                for case in cases:
                    case.bench.segment.unlink()
    strayed = library.times_off_the_path()
    if strayed:
        raise Disagreement(f"the reference left the path it knows {strayed} times")
    different = [name for name, found in states.items() if not found["agree"] or found["emu"] == found["before"]]
    if different:
        raise Disagreement(f"emu and C end in different states: {', '.join(different)}")
    return [{**_result(name, turns[name]), "state": states[name]} for name in turns]


def _result(name: str, turns: list[Turn]) -> dict[str, Any]:
    """Medians of the turns, and of the ratios of neighbours."""
    emu, c, naive = zip(*turns, strict=True)
    ratio = _ratios(emu, c)
    limit = MOST_TIMES_C.get(name)
    return {
        "name": name,
        "emu_ns": round(median(emu), 2),
        "c_ns": round(median(c), 2),
        "naive_ns": round(median(naive), 1),
        "emu_over_c": ratio,
        "naive_over_emu": _ratios(naive, emu),
        "limit": limit,
        "passed": None if limit is None else ratio["median"] <= limit,
    }


# --- whole machines -------------------------------------------------------------------------------------------------


def _busy_s() -> float:
    """Core seconds that this machine has spent on anybody, or not been given by its own host."""
    user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Core seconds that this process and its children have spent."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Effort(NamedTuple):
    """How long to measure."""

    blocks: int
    repetitions: int
    machine_repetitions: int
    machine_seconds: float
    many_cpus: int


_FULL = Effort(blocks=10, repetitions=40, machine_repetitions=7, machine_seconds=0.4, many_cpus=64)
_QUICK = Effort(blocks=1, repetitions=3, machine_repetitions=1, machine_seconds=0.1, many_cpus=4)


class MachineRun(NamedTuple):
    """Throughput of a machine, and how many cores others used meanwhile."""

    pairs_per_s: float
    others: float


def _run_machine(cpus: int, seconds: float, options: list[tuple[str, str, Any]]) -> MachineRun:
    overrides = [
        *(("machine", "cpus", cpus), ("machine", "seconds", seconds), ("machine", "check", False)),
        *(("workload", "name", "map_benchmark"), ("domain", "on_overrun", "wait")),
    ]
    config = load(preset="lpar", overrides=[*overrides, *options])
    workload = build_workload(config)
    since, busy_s, own_s = time.perf_counter(), _busy_s(), _own_s()
    outcome = run_machine(config, "DMA-FQ", workload)
    others_s = (_busy_s() - busy_s) - (_own_s() - own_s)
    if outcome.died or outcome.interrupted:
        raise Disagreement(outcome.died or "interrupted")
    return MachineRun(float(outcome.run["pairs_per_s"]), others_s / (time.perf_counter() - since))


def _scaling_of(options: list[tuple[str, str, Any]], limit: float | None, effort: Effort) -> dict[str, Any]:
    taken: list[tuple[MachineRun, MachineRun]] = []
    counted: list[tuple[MachineRun, MachineRun]] = []
    wanted, seconds = effort.machine_repetitions, effort.machine_seconds
    while len(counted) < wanted and len(taken) < 3 * wanted:
        taken.append((_run_machine(1, seconds, options), _run_machine(2, seconds, options)))
        counted = [runs for runs in taken if max(run.others for run in runs) <= MOST_OTHERS]
    judged = limit is not None and len(counted) >= min(wanted, LEAST_COUNTED)
    one, two = zip(*(counted or taken), strict=True)
    ratio = _ratios([run.pairs_per_s for run in two], [run.pairs_per_s for run in one])
    return {
        "two_over_one": ratio,
        "one_cpu_ns_per_pair": round(1e9 / median(run.pairs_per_s for run in one), 1),
        "tried": len(taken),
        "disturbed": len(taken) - len(counted),
        "limit": limit,
        "passed": ratio["median"] >= limit if judged else None,
    }


def measure_scaling(effort: Effort) -> dict[str, Any]:
    """Throughput of two CPUs over that of one, by turns; skipped on a single core.

    Two CPUs on two cores leave nothing to others: a repetition in which those took more than MOST_OTHERS of a core is
    not counted, and another is tried, up to three times as many in all. Without enough of them there is no verdict.
    """
    if cores() < 2:
        return {"skipped": "two CPUs need two cores, and this machine lends one", "passed": None}
    apart = _scaling_of([("workload", "granule", 8), ("domain", "fq_size", 128)], LEAST_SCALING, effort)
    return {"apart": apart, "default": _scaling_of([], None, effort), "passed": apart["passed"]}


def _run_command(cpus: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds that `emu run` took beyond the run itself, and the run."""
    command = [sys.executable, "-m", "emu", "run", "--domain", "DMA-SQ", "--json", "--out", str(folder)]
    since = time.perf_counter()
    done = subprocess.run(
        [*command, "--cpus", str(cpus), "--seconds", "0.2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.perf_counter() - since
    if done.returncode:
        raise Disagreement(f"emu run --cpus {cpus} ended with {done.returncode}: {done.stderr.strip()}")
    run = json.loads(done.stdout)["runs"][0]
    return wall_s - run["seconds"], run


def measure_startup(repetitions: int, many_cpus: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Start with 2 and with many CPUs, by turns, everything cached; returns what is said about startup and memory."""
    runs: dict[int, dict[str, Any]] = {}
    took: dict[int, list[float]] = {2: [], many_cpus: []}
    with tempfile.TemporaryDirectory(prefix="emu-bench-") as folder:
        _run_command(2, Path(folder) / "warm-up")
        for repetition in range(repetitions):
            for cpus, times in took.items():
                spent_s, runs[cpus] = _run_command(cpus, Path(folder) / f"{cpus}-{repetition}")
                times.append(spent_s)
    extra = [many - two for two, many in zip(took[2], took[many_cpus], strict=True)]
    private = {
        cpus: max(process["private_bytes"] or 0 for process in run["processes"] if process["role"].startswith("cpu"))
        for cpus, run in runs.items()
    }
    startup = {
        "two_cpus_s": round(median(took[2]), 3),
        "two_cpus_limit_s": MOST_START_S,
        "many_cpus": many_cpus,
        "many_cpus_extra_s": round(median(extra), 3),
        "many_cpus_extra_limit_s": MOST_EXTRA_START_S,
        "repetitions": repetitions,
        "passed": median(took[2]) < MOST_START_S and median(extra) < MOST_EXTRA_START_S,
    }
    memory = {
        "private_bytes_max": max(private.values()),
        "limit": MOST_PRIVATE_BYTES,
        "segment_bytes": {str(cpus): run["segment_bytes"] for cpus, run in runs.items()},
        "passed": max(private.values()) < MOST_PRIVATE_BYTES,
    }
    return startup, memory


# --- the command ----------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> dict[str, Any]:
    """Everything, as printed by --json.

    Raises:
        Unavailable: when there is nothing to compare with.
        Disagreement: when the two sides do not do the same, or a run failed.
    """
    if numba_config.DISABLE_JIT:
        raise Unavailable("NUMBA_DISABLE_JIT is set, so nothing is compiled")
    if find_compiler() is None:
        raise Unavailable(f"no C compiler: there is no {_compiler_name()} on the PATH")
    before = environment()
    compile_entries(ENTRIES)
    cases = measure_cases(effort.blocks, effort.repetitions)
    scaling = measure_scaling(effort)
    startup, memory = measure_startup(effort.machine_repetitions, effort.many_cpus)
    parts = [*cases, scaling, startup, memory]
    return {
        "skipped": None,
        "environment": before,
        "compiler": [*_version_of_compiler(), *CFLAGS],
        "cases": cases,
        "scaling": scaling,
        "startup": startup,
        "memory": memory,
        "passed": all(part["passed"] is not False for part in parts),
    }


def _verdict(passed: bool | None) -> str:
    return {True: "ok", False: "FAILED", None: ""}[passed]


def report(found: dict[str, Any]) -> Iterator[str]:
    """What was found, in lines."""
    place = found["environment"]
    yield f"{place['cpu']}, {place['cores_usable']} cores, load {place['load'][0]}; C: {' '.join(found['compiler'])}"
    yield ""
    yield f"{'':5}{'emu':>9}{'C':>9}{'emu ÷ C':>9}  {'min–max':<14}{'limit':>6} {'':7}{'naive':>9}{'naive ÷ emu':>13}"
    for case in found["cases"]:
        ratio, limit = case["emu_over_c"], case["limit"]
        spread = f"{ratio['min']:.2f}–{ratio['max']:.2f}"
        yield (
            f"{case['name']:5}{case['emu_ns']:6.1f} ns{case['c_ns']:6.1f} ns{ratio['median']:9.3f}  {spread:<14}"
            f"{f'{limit:.2f}' if limit else '–':>6} {_verdict(case['passed']):7}{case['naive_ns']:6.0f} ns"
            f"{case['naive_over_emu']['median']:13.0f}"
        )
    repetitions = found["cases"][0]["emu_over_c"]["repetitions"]
    yield f"Ratios are medians over {repetitions} pairs of turns; both sides left the same state behind in every case."
    yield ""
    yield from _report_machines(found["scaling"], found["startup"], found["memory"])


def _report_machines(scaling: dict[str, Any], startup: dict[str, Any], memory: dict[str, Any]) -> Iterator[str]:
    if "skipped" in scaling:
        yield f"scaling  skipped: {scaling['skipped']}"
    else:
        for name in ("apart", "default"):
            yield f"scaling  {_scaling_line(name, scaling[name])}"
    yield (
        f"startup  2 CPUs: {startup['two_cpus_s']:.2f} s, limit {MOST_START_S}; "
        f"{startup['many_cpus']} CPUs: {startup['many_cpus_extra_s']:.2f} s more, limit {MOST_EXTRA_START_S} "
        f"{_verdict(startup['passed'])}"
    )
    segments = ", ".join(f"{size / 2**20:.0f} MiB for {cpus} CPUs" for cpus, size in memory["segment_bytes"].items())
    yield (
        f"memory   a CPU process has {memory['private_bytes_max'] / 1e6:.1f} MB of its own, "
        f"limit {MOST_PRIVATE_BYTES / 1e6:.0f} {_verdict(memory['passed'])}; segment: {segments}"
    )


def _scaling_line(name: str, found: dict[str, Any]) -> str:
    ratio, verdict = found["two_over_one"], ""
    if found["limit"]:
        verdict = f", limit {found['limit']} {_verdict(found['passed']) or 'not judged'}"
    disturbed = f", {found['disturbed']} of {found['tried']} disturbed" if found["disturbed"] else ""
    return (
        f"{name:7}  2 CPUs over 1: {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}, "
        f"{ratio['repetitions']} repetitions{disturbed}){verdict}; 1 CPU: {found['one_cpu_ns_per_pair']:.0f} ns a pair"
    )


def main() -> int:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description="Compare emu's compiled hot path with C.")
    parser.add_argument("--quick", action="store_true", help="a few turns only: shows that it works, times mean little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        found = measure(_QUICK if options.quick else _FULL)
    except Unavailable as reason:
        print(json.dumps({"skipped": str(reason)}) if options.json else f"skipped: {reason}")
        return 0
    except (Disagreement, MachineError, SegmentError) as problem:
        print(f"bench_hot_path: {problem}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else "\n".join(report(found)))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
