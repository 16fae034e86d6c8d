"""Batches of unmaps, flushed by their ranges: in the manner of F&S ("Fast & Safe IO Memory Protection", SOSP 2024).

F&S keeps strict protection and makes it cheap: a driver's buffers get adjacent IOVAs and are unmapped together, so that
one request for a range invalidates all of them. Here each CPU collects what it unmaps on its ring, and as soon as it
has a batch, adjacent IOVAs are flushed together and are free. No flush is one of everything, so it costs what the batch
costs and not what the aperture does, and nothing stays within reach for longer than it takes to fill a batch, or until
the timer fires.
"""

from typing import Any

from emu.iommu.flush_queue import fq_depth

BATCH = 32
"""Unmaps; as many buffers as a NIC refills together."""


def flush_after(cpu: Any, cookie: Any, fq: Any) -> bool:
    """When there is a batch, or no room for one."""
    return fq_depth(fq) >= min(BATCH, fq.mod_mask)


def flush_by_range(cpu: Any, cookie: Any, fq: Any) -> bool:
    """Always."""
    return True
