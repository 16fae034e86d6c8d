"""Atomic operations in the kernel's words.

Each name is a plain function and, compiled, one instruction. Interpreted runs share one lock that forked processes
inherit, so the plain meanings are atomic too. Field operations take the field's name as a literal.

Memory order: read-modify-writes and `smp_mb` are sequentially consistent, as the kernel's value-returning atomics are
fully ordered; `smp_load_acquire` and `smp_store_release` are what they say; `read_once` and `write_once` are relaxed.
"""

from __future__ import annotations

from typing import Any

import multiprocess
from numba.core import config

from emu.native import llvm
from emu.native.record import int64_t, struct

atomic64_t = struct(counter="i8")
atomic_t = struct(counter="i4")

interpreted = bool(config.DISABLE_JIT)
_interlock: Any = multiprocess.get_context("fork").RLock() if interpreted else None


def read_once(record: Any, field: str) -> int:
    """A single, untorn load."""
    return int(record[field])


def write_once(record: Any, field: str, value: int) -> None:
    """A single, untorn store."""
    record[field] = value


def smp_load_acquire(record: Any, field: str) -> int:
    """Load; later accesses stay later."""
    return int(record[field])


def smp_store_release(record: Any, field: str, value: int) -> None:
    """Store; earlier accesses stay earlier."""
    record[field] = value


def fetch_add(record: Any, field: str, value: int) -> int:
    """Add; returns what was there before."""
    with _interlock:
        old = int(record[field])
        record[field] = old + value
    return old


def fetch_or(record: Any, field: str, value: int) -> int:
    """Set bits; returns what was there before."""
    with _interlock:
        old = int(record[field])
        record[field] = old | value
    return old


def fetch_and(record: Any, field: str, value: int) -> int:
    """Keep only the bits in `value`; returns what was there before."""
    with _interlock:
        old = int(record[field])
        record[field] = old & value
    return old


def fetch_xor(record: Any, field: str, value: int) -> int:
    """Turn bits over; returns what was there before."""
    with _interlock:
        old = int(record[field])
        record[field] = old ^ value
    return old


def xchg(record: Any, field: str, value: int) -> int:
    """Exchange; returns what was there before."""
    with _interlock:
        old = int(record[field])
        record[field] = value
    return old


def cmpxchg(record: Any, field: str, old: int, new: int) -> int:
    """Store `new` if `old` is there; returns what was found."""
    with _interlock:
        found = int(record[field])
        if found == old:
            record[field] = new
    return found


def smp_mb() -> None:
    """Full barrier."""


def smp_wmb() -> None:
    """Earlier stores become visible before later ones."""


def barrier() -> None:
    """Earlier stores of this process are made before later ones, should it die in between; no instruction."""


def prefetchw(address: int) -> None:
    """The cache line at an address will soon be written: a hint that changes nothing but time, whatever is there."""


def ilog2(value: int) -> int:
    """Index of the highest set bit of a positive number."""
    return int(value).bit_length() - 1


def ctz(value: int) -> int:
    """Index of the lowest set bit of a non-zero number."""
    value = int(value)
    return (value & -value).bit_length() - 1


read_once = llvm.Primitive(read_once, llvm.field_load("monotonic"))
write_once = llvm.Primitive(write_once, llvm.field_store("monotonic"))
smp_load_acquire = llvm.Primitive(smp_load_acquire, llvm.field_load("acquire"))
smp_store_release = llvm.Primitive(smp_store_release, llvm.field_store("release"))
fetch_add = llvm.Primitive(fetch_add, llvm.field_rmw("add"))
fetch_or = llvm.Primitive(fetch_or, llvm.field_rmw("or"))
fetch_and = llvm.Primitive(fetch_and, llvm.field_rmw("and"))
fetch_xor = llvm.Primitive(fetch_xor, llvm.field_rmw("xor"))
xchg = llvm.Primitive(xchg, llvm.field_rmw("xchg"))
cmpxchg = llvm.Primitive(cmpxchg, llvm.field_cmpxchg())
smp_mb = llvm.Primitive(smp_mb, llvm.fence("seq_cst"))
smp_wmb = llvm.Primitive(smp_wmb, llvm.fence("release"))
barrier = llvm.Primitive(barrier, llvm.compiler_barrier())
prefetchw = llvm.Primitive(prefetchw, llvm.prefetch_to_write())
ilog2 = llvm.Primitive(ilog2, llvm.log2_floor())
ctz = llvm.Primitive(ctz, llvm.trailing_zeros())

__all__ = [
    "atomic64_t",
    "atomic_t",
    "barrier",
    "cmpxchg",
    "ctz",
    "fetch_add",
    "fetch_and",
    "fetch_or",
    "fetch_xor",
    "ilog2",
    "int64_t",
    "interpreted",
    "prefetchw",
    "read_once",
    "smp_load_acquire",
    "smp_mb",
    "smp_store_release",
    "smp_wmb",
    "write_once",
    "xchg",
]
