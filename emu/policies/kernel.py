"""What Linux does, as a policy: a file to begin with. It answers what is built in, and costs nothing more."""

from typing import Any


def rings(cpus: int) -> int:
    """How many rings a queue of type DMA-FQ has: one for each CPU."""
    return cpus


def ring_of(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> int:
    """On which of them an unmapped IOVA is put: this CPU's own."""
    return cpu.id


def flush_at_once(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> bool:
    """Whether an unmap flushes its range and frees the IOVA, as if there were no queue."""
    return False


def flush_before(cpu: Any, cookie: Any, fq: Any, iova_pfn: int, pages: int) -> bool:
    """Whether a ring that has room is flushed before an append; one that has none is, in any case."""
    return False


def flush_after(cpu: Any, cookie: Any, fq: Any) -> bool:
    """Whether a ring is flushed after an append."""
    return False


def flush_by_range(cpu: Any, cookie: Any, fq: Any) -> bool:
    """Whether a ring's flush is one of its entries' ranges; of everything otherwise."""
    return False


def timeout_ns(cpu: Any, cookie: Any) -> int:
    """How long the flush timer runs that this CPU arms."""
    return cookie.fq_timeout_ns


def may_free(cpu: Any, cookie: Any, entry: Any, counter: int) -> bool:
    """Whether a ring's oldest entry is freed when so many flushes have finished: more than had started before."""
    return entry.counter < counter
