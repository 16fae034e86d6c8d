"""Compiled Python against C, side by side: what the hot path costs, and whether it costs more than it must.

    python tools/bench_hot_path.py [--quick] [--json]

The yardstick is `reference/hot_path.c`, the project's own C of the same algorithm on the same records. It is compiled
here with `cc -O2`, with structs generated from the NumPy dtypes, and works on the same addresses of the same segment.
Before anything is timed both sides run from one saved state and must leave the same bytes behind, times aside. Then
they take turns, and what counts is the median of the ratios of neighbours: absolute times on a shared machine say
little. Both are built for a core of their own (this process binds itself to one) and nothing else contends.

What is measured; an operation is one pass of the loop of the `bench_*` function of that name, here and in C:

lock   `spin_lock` + `spin_unlock`: compare-and-exchange with the owner's word, count of acquisitions, exchange.
iova   `alloc_iova_fast` + `free_iova_fast` of one page, from and to this CPU's magazine, its lock taken twice.
ring   `queue_iova` on a single ring of 256: barrier, ring lock, freeing what is flushed (each with its exposure in the
       histogram and `free_iova_fast` into magazines and depot), stamp with the cycle counter, append, unlock; every
       255th finds the ring full and flushes: an RPCIT, served inline, at no emulated cost, over an aperture of 16 MiB.
       IOVAs come from the caches in batches before each timed stretch.
pair   `dma_map` + `dma_unmap` of one page as a CPU of the machine does them, on DMA-SQ with its defaults (ring of
       32768, preset lpar, aperture 4 GiB, check off): allocator, three-level walk and exchange of the entry twice,
       ring as above, four more reads of the cycle counter, two histograms. Tables and ranges exist before.
naive  the same four written as plain Python: dicts, lists and multiprocessing.Lock.

scaling    two CPUs over one: map+unmap pairs a second of whole machines (map_benchmark, DMA-FQ, preset lpar, check off).
startup    wall time of `emu run` less the time its CPUs ran: all of start, stop and result, so an upper bound.
memory     private bytes of the largest CPU process, and the segment, of those runs.

Exit code 0: all within the limits of `LIMITS`, or skipped with a reason; 1: not; 2: the two sides disagree.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from numba.core import config as numba_config  # noqa: E402 - the repository's emu comes first

from emu.analysis.environment import environment  # noqa: E402
from emu.config import cores, load  # noqa: E402
from emu.experiment import run_machine  # noqa: E402
from emu.hypervisor import service, state  # noqa: E402
from emu.iommu import counters, dma, domain, flush_queue, io_pgtable, iova, s390_iommu, s390_legacy  # noqa: E402
from emu.machine.context import cpu_t  # noqa: E402
from emu.machine.layout import Layout  # noqa: E402
from emu.machine.lifecycle import init_machine  # noqa: E402
from emu.native import atomics, clock, histogram, lock, rbtree, timer  # noqa: E402
from emu.native.compile import compile_entries, entry  # noqa: E402
from emu.native.histogram import record_value  # noqa: E402
from emu.native.record import deref, element, int64_t  # noqa: E402
from emu.native.time import now_ns, now_ticks  # noqa: E402
from emu.workload.build import build_workload  # noqa: E402

REFERENCE = ROOT / "tools" / "reference" / "hot_path.c"
CFLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-shared", "-fPIC")

LIMITS = {"ring": 1.10, "lock": 1.10, "iova": 1.10, "pair": 1.50}
"""Most times C that a case may take; issue 2 demands ring and pair (the latter as an alternative to 400 ns)."""
LEAST_SCALING = 1.7
MOST_START_S = 2.0
MOST_EXTRA_START_S = 1.0
MOST_PRIVATE_BYTES = 25_000_000
MANY_CPUS = 64


class Unavailable(Exception):  # noqa: N818 - not an error: the benchmark is skipped
    """There is nothing to compare with; the message is the reason, one line."""


# --- the loops, as in reference/hot_path.c --------------------------------------------------------------------------


@entry
def bench_lock(context: int, rounds: int) -> int:
    """Take and give back the ring's lock; returns ns."""
    cpu = deref(cpu_t, context)
    fq = deref(flush_queue.iova_fq, deref(domain.iommu_domain, cpu.domain).cookie.single_fq)
    since_ns = now_ns(cpu)
    for _ in range(rounds):
        lock.spin_lock(cpu, fq.lock)
        lock.spin_unlock(cpu, fq.lock)
    return now_ns(cpu) - since_ns


@entry
def bench_iova(context: int, rounds: int) -> int:
    """Allocate and free one page; returns ns."""
    cpu = deref(cpu_t, context)
    dom = deref(domain.iommu_domain, cpu.domain)
    since_ns = now_ns(cpu)
    for _ in range(rounds):
        pfn = iova.alloc_iova_fast(cpu, dom.cookie.iovad, 1, dom.dma_limit_pfn, True)
        iova.free_iova_fast(cpu, dom.cookie.iovad, pfn, 1)
    return now_ns(cpu) - since_ns


@entry
def bench_ring(context: int, pfns: int, batch: int, rounds: int) -> int:
    """Queue IOVAs in batches; `pfns` has room for one. Returns the ns spent in queueing."""
    cpu = deref(cpu_t, context)
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
def bench_pair(context: int, rounds: int) -> int:
    """Map and unmap one page, each timed as the machine does; returns ns."""
    cpu = deref(cpu_t, context)
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

_RECORDS = {
    "atomic64_t": atomics.atomic64_t,
    "atomic_t": atomics.atomic_t,
    "spinlock_t": lock.spinlock_t,
    "timer_t": timer.timer_t,
    "rb_node": rbtree.rb_node,
    "rb_root": rbtree.rb_root,
    "iova_t": iova.iova_t,
    "iova_magazine": iova.iova_magazine,
    "iova_cpu_rcache": iova.iova_cpu_rcache,
    "iova_rcache": iova.iova_rcache,
    "iova_domain": iova.iova_domain,
    "iova_fq_entry": flush_queue.iova_fq_entry,
    "iova_fq": flush_queue.iova_fq,
    "iommu_dma_cookie": flush_queue.iommu_dma_cookie,
    "io_pgtable": io_pgtable.io_pgtable,
    "table_spares": io_pgtable.table_spares,
    "s390_domain": s390_iommu.s390_domain,
    "zpci_dma": s390_legacy.zpci_dma,
    "iommu_domain": domain.iommu_domain,
    "iommu_ctrs": counters.iommu_ctrs,
    "cpu_t": cpu_t,
    "hypervisor_t": state.hypervisor_t,
    "request_t": state.request_t,
    "server_t": state.server_t,
}
"""Inner records before those that hold them."""

_CONSTANTS = {
    "TICKS_ARE_CYCLES": clock.TICKS_ARE_CYCLES,
    "WAITERS": lock.WAITERS,
    "SUB_BITS": histogram.SUB_BITS,
    "TIMER_IDLE": timer.TIMER_IDLE,
    "TIMER_ARMING": timer.TIMER_ARMING,
    "PAGE_SHIFT": io_pgtable.PAGE_SHIFT,
    "ZPCI_TABLE_BITS": io_pgtable.ZPCI_TABLE_BITS,
    "ZPCI_TABLE_ENTRIES": io_pgtable.ZPCI_TABLE_ENTRIES,
    "ZPCI_PT_BITS": io_pgtable.ZPCI_PT_BITS,
    "ZPCI_PT_ENTRIES": io_pgtable.ZPCI_PT_ENTRIES,
    "ZPCI_TABLE_INVALID": io_pgtable.ZPCI_TABLE_INVALID,
    "ZPCI_PTE_INVALID": io_pgtable.ZPCI_PTE_INVALID,
    "RTE_FLAG_MASK": io_pgtable._RTE_FLAG_MASK,
    "STE_FLAG_MASK": io_pgtable._STE_FLAG_MASK,
    "NO_PTE": io_pgtable.NO_PTE,
    "PAGES_PER_SEGMENT_TABLE": service._PAGES_PER_SEGMENT_TABLE,
    "LONGEST_SPIN_NS": 120_000,
    "IOVA_RANGE_CACHE_MAX_SIZE": iova.IOVA_RANGE_CACHE_MAX_SIZE,
    "IOVA_MAG_SIZE": iova.IOVA_MAG_SIZE,
    "DMA_32BIT_PFN": iova.DMA_32BIT_PFN,
    "SINGLE_QUEUE": flush_queue.SINGLE_QUEUE,
    "DMA_IOMMU": domain.DMA_IOMMU,
}

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
    lines = ["/* Generated from emu's dtypes by tools/bench_hot_path.py. */"]
    lines += [f"#define {name} {int(value)}LL" for name, value in _CONSTANTS.items() if name != "TICKS_ARE_CYCLES"]
    lines.append(f"#define TICKS_ARE_CYCLES {int(clock.TICKS_ARE_CYCLES)}")
    for record, dtype in _RECORDS.items():
        lines += _struct(record, dtype)
    return "\n".join(lines) + "\n"


def build_reference(folder: Path) -> ctypes.CDLL:
    """Compile the reference into a folder and load it.

    Raises:
        Unavailable: when there is no C compiler, or it refuses.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable(f"no C compiler: {os.environ.get('CC', 'cc')} is not on the PATH")
    (folder / "layout.h").write_text(layout_header())
    target = folder / "hot_path.so"
    command = [compiler, *CFLAGS, f"-I{folder}", "-o", str(target), str(REFERENCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{compiler} cannot compile {REFERENCE.name}: {done.stderr.strip().splitlines()[0]}")
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


def naive_lock(naive: NaiveDomain, rounds: int) -> int:
    """As bench_lock."""
    since_ns = time.perf_counter_ns()
    for _ in range(rounds):
        with naive.lock:
            pass
    return time.perf_counter_ns() - since_ns


def naive_iova(naive: NaiveDomain, rounds: int) -> int:
    """As bench_iova."""
    since_ns = time.perf_counter_ns()
    for _ in range(rounds):
        naive.free_iova(naive.alloc_iova())
    return time.perf_counter_ns() - since_ns


def naive_ring(naive: NaiveDomain, rounds: int) -> int:
    """As bench_ring."""
    pfns = [naive.alloc_iova() for _ in range(rounds)]
    since_ns = time.perf_counter_ns()
    for pfn in pfns:
        naive.queue_iova(pfn)
    return time.perf_counter_ns() - since_ns


def naive_pair(naive: NaiveDomain, rounds: int) -> int:
    """As bench_pair."""
    since_ns = time.perf_counter_ns()
    for _ in range(rounds):
        naive.map_and_unmap()
    return time.perf_counter_ns() - since_ns


# --- one segment, both sides ----------------------------------------------------------------------------------------

_TIMES = frozenset(
    "queued_at fq_flush_finished_at exposure_page_ticks exposure_max_ticks posted_ns busy_ns free_at_ns "
    "total_wait_ns max_wait_ns total_schedule_ns max_schedule_ns".split()
)
_STATE = (
    *("contexts", "domain", "hypervisor", "requests", "servers", "rings", "ring_entries", "timer_base"),
    *("iova_ranges", "magazines", "rcaches", "cpu_rcaches"),
    *("guest_region_table", "guest_segment_tables", "guest_page_tables"),
)
_HISTOGRAMS = tuple(f"{name}_histogram" for name in ("map", "unmap", "exposure", "wait", "schedule"))


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
    """

    def __init__(self, overrides: list[tuple[str, str, Any]]) -> None:
        alone = [("machine", "cpus", 1), ("machine", "check", False), ("workload", "name", "map_benchmark")]
        config = load(preset="lpar", overrides=[*alone, *overrides])
        self.layout = Layout(config, "DMA-SQ", build_workload(config), real_time=False)
        self.segment = self.layout.segment
        self.context = self.segment.address("contexts", 0)
        self.fq_size = self.layout.fq_size
        init_machine(self.segment.address("contexts", self.layout.supervisor))
        # As after the first mapping on a machine whose aperture is above 4 GiB.
        self.segment["domain"][0].pci_32bit_workaround = 0

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
    """A loop that takes a number of operations and returns ns."""

    run: Callable[[int], int]
    operations: int


@dataclass(slots=True)
class Case:
    """One comparison.

    Attributes:
        name: key of LIMITS.
        bench: the segment of both compiled sides.
        emu, c, naive: the three loops.
    """

    name: str
    bench: Bench
    emu: Side
    c: Side
    naive: Side


_RING_BATCH = 8 * 255


def make_cases(library: ctypes.CDLL, scale: float) -> Iterator[Case]:
    """The four cases, warm: rings full, ranges and tables made, timers armed.

    Args:
        library: the C side.
        scale: 1 for about 2 ms a turn.
    """
    free = [("hypervisor", "intercept_ns", 0.0), ("domain", "fq_size", 256), ("domain", "aperture_mb", 16)]
    small, default = Bench(free), Bench([])
    pfns = np.zeros(_RING_BATCH, np.int64)
    loops = {"lock": (small, 200_000), "iova": (small, 100_000), "ring": (small, 40_800), "pair": (default, 20_480)}
    naive = {"lock": (naive_lock, 256), "iova": (naive_iova, 256), "ring": (naive_ring, 256), "pair": (naive_pair, 16)}
    warm_up = {"lock": 1, "iova": 1, "ring": 8 * _RING_BATCH, "pair": 3 * default.fq_size}
    for name, (bench, operations) in loops.items():
        run, run_c = (_loop(side[f"bench_{name}"], name, bench, pfns) for side in (globals(), _functions(library)))
        run(warm_up[name])
        operations = max(int(operations * scale) // _RING_BATCH, 1) * _RING_BATCH
        naive_domain = NaiveDomain(bench.fq_size)
        plain, ring_size = naive[name]
        yield Case(
            name,
            bench,
            Side(run, operations),
            Side(run_c, operations),
            Side(lambda count, plain=plain, it=naive_domain: plain(it, count), max(int(2048 * scale), 256)),
        )


def _functions(library: ctypes.CDLL) -> dict[str, Any]:
    return {name: getattr(library, name) for name in ("bench_lock", "bench_iova", "bench_ring", "bench_pair")}


def _loop(function: Any, name: str, bench: Bench, pfns: Any) -> Callable[[int], int]:
    if name == "ring":
        return lambda count: function(bench.context, pfns.ctypes.data, _RING_BATCH, count // _RING_BATCH)
    return lambda count: function(bench.context, count)
