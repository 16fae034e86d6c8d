"""The kernel's dma_map_benchmark: every CPU maps one buffer, holds it for a while, unmaps it, and again.

Modelled on `kernel/dma/map_benchmark.c` in its mode `single`: a thread has one buffer of `granule` pages and never more
than one mapping of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emu.config import Config
from emu.workload.program import OP_MAP, OP_UNMAP, OP_WAIT, Program, Workload, op_t

_SLOTS_APART = 4
"""Every CPU's slot is on a cache line of its own, as every thread's buffer is."""


def map_benchmark_workload(config: Config, _pairs: int) -> Workload:
    """Build the load of `dma_map_benchmark -t cpus -g granule -x hold_ns`.

    All repetitions are alike, so one pair is the whole loop, however many there might be.
    """
    load = config.workload
    held_ns = round(load.hold_ns)
    codes = [OP_MAP, OP_WAIT, OP_UNMAP] if held_ns else [OP_MAP, OP_UNMAP]
    programs = []
    for cpu in range(config.machine.cpus):
        ops = np.zeros(len(codes), op_t)
        ops["code"] = codes
        ops["slot"] = cpu * _SLOTS_APART
        ops[0]["pages"] = load.granule
        ops[0]["nents"] = 1
        ops["arg"][1:-1] = held_ns
        programs.append(Program(ops, loop_start=0))
    return Workload("map_benchmark", programs, slots=config.machine.cpus * _SLOTS_APART, max_pages=load.granule)


def in_single_pages(workload: Workload) -> Workload:
    """The same load as `dma_map_benchmark -m 1` has it: each mapping is a list of `granule` segments of a page."""
    for program in workload.programs:
        program.ops["nents"][0] = workload.max_pages
    return replace(workload, segments=np.ones(workload.max_pages, np.int32))
