"""One ring for each node of a few CPUs, between Linux's one for each CPU and one for all.

The CPUs of a node share a ring, its lock and its cache lines, and nobody else's. A flush of everything empties all
rings, so with fewer of them, of one size, flushes are needed sooner, and what was unmapped is within reach for a
shorter time; rings that are larger by as much put off the flushes as before, and the timer, which goes through every
ring there is, has fewer to go through.
"""

from typing import Any

CPUS_PER_NODE = 4


def rings(cpus: int) -> int:
    """One for each node, the last of which may have fewer CPUs."""
    return (cpus + CPUS_PER_NODE - 1) // CPUS_PER_NODE


def ring_of(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> int:
    """That of this CPU's node."""
    return cpu.id // CPUS_PER_NODE
