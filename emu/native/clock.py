"""Clocks: nanoseconds for deadlines, ticks for measuring.

`clock_ns` is CLOCK_MONOTONIC and costs about 20 ns. `ticks` is the processor's time-stamp counter where that counts at
a constant rate through all sleep states (8 ns), else `clock_ns`; a run notes both at its start and its end, and results
are converted with the ratio. Interpreted, both are time.monotonic_ns().
"""

from __future__ import annotations

import time
from pathlib import Path

from emu.native import llvm


def _has_constant_tsc() -> bool:
    if not llvm.IS_X86:
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "constant_tsc" in flags and "nonstop_tsc" in flags


TICKS_ARE_CYCLES = _has_constant_tsc()


def clock_ns() -> int:
    """CLOCK_MONOTONIC in ns."""
    return time.monotonic_ns()


def ticks() -> int:
    """Time in units of this machine's cheapest steady clock."""
    return time.monotonic_ns()


def sleep_ns(duration_ns: int) -> None:
    """Sleep; may end early on a signal."""
    time.sleep(duration_ns / 1e9)


def cpu_relax() -> None:
    """Tell the processor, or Python's scheduler, that this is a spin loop."""
    time.sleep(0)


def sched_yield() -> None:
    """Give the core away."""
    time.sleep(0)


_cycles = llvm.cycle_counter() if TICKS_ARE_CYCLES else llvm.monotonic_ns()
clock_ns = llvm.Primitive(clock_ns, llvm.monotonic_ns())
ticks = llvm.Primitive(ticks, _cycles)
sleep_ns = llvm.Primitive(sleep_ns, llvm.nanosleep())
cpu_relax = llvm.Primitive(cpu_relax, llvm.pause())
sched_yield = llvm.Primitive(sched_yield, llvm.sched_yield())
