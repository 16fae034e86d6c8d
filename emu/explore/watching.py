"""Where the books are told: the emulated kernel's functions, wrapped in every module that calls them by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from emu.explore.books import Books
from emu.explore.world import World
from emu.hypervisor.rpcit import RPCIT_OK, rpcit
from emu.iommu.flush_queue import queue_iova
from emu.iommu.iova import alloc_iova_fast, free_iova_fast
from emu.iommu.policy import refuse_ring, refuse_timeout
from emu.iommu.s390_iommu import s390_iommu_map_pages, s390_iommu_unmap_pages


def _wrappers(world: World, books: Books) -> dict[Callable[..., Any], Callable[..., Any]]:
    def alloc(cpu: Any, iovad: Any, size: int, limit_pfn: int, flush_rcache: bool) -> int:
        pfn = int(alloc_iova_fast(cpu, iovad, size, limit_pfn, flush_rcache))
        if pfn:
            world.event(f"IOVA {pfn} is handed out")
            books.handed_out(pfn, size)
        return pfn

    def free(cpu: Any, iovad: Any, pfn: int, size: int) -> None:
        world.event(f"IOVA {pfn} becomes allocatable")
        books.given_back(pfn, size)
        free_iova_fast(cpu, iovad, pfn, size)

    def map_pages(cpu: Any, domain: Any, iova_pfn: int, phys_pfn: int, pages: int) -> bool:
        books.about_to_map(iova_pfn, pages)
        return bool(s390_iommu_map_pages(cpu, domain, iova_pfn, phys_pfn, pages))

    def unmap_pages(cpu: Any, domain: Any, iova_pfn: int, pages: int) -> None:
        s390_iommu_unmap_pages(cpu, domain, iova_pfn, pages)
        world.event(f"IOVA {iova_pfn} is unmapped")
        books.unmapped(iova_pfn, pages)

    def queue(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> None:
        queue_iova(cpu, cookie, iova_pfn, pages)
        world.say(f"IOVA {iova_pfn} is queued")
        books.queued(iova_pfn)

    def refresh(cpu: Any, fh: int, start_pfn: int, pages: int, is_global: bool) -> int:
        what = "global flush" if is_global else f"flush of IOVA {start_pfn}"
        books.flush_begins(world.event(f"{what} begins"), start_pfn, pages)
        answer = int(rpcit(cpu, fh, start_pfn, pages, is_global))
        ended = world.event(f"{what} ends")
        if answer == RPCIT_OK:
            books.flush_ends(ended)
        return answer

    return {
        **_refusals(books),
        alloc_iova_fast: alloc,
        free_iova_fast: free,
        s390_iommu_map_pages: map_pages,
        s390_iommu_unmap_pages: unmap_pages,
        queue_iova: queue,
        rpcit: refresh,
    }


def _refusals(books: Books) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Answers of a policy that are not taken."""

    def wrong_ring(cpu: Any, cookie: Any, iova_pfn: int, ring: int) -> int:
        books.violate("ring", f"the policy puts IOVA {iova_pfn} on ring {ring}, but there are {cookie.fq_rings}")
        return int(refuse_ring(cpu, cookie, iova_pfn, ring))

    def wrong_timeout(cpu: Any, cookie: Any, delay_ns: int) -> int:
        books.violate("timeout", f"the policy arms the timer for {delay_ns} ns, which cannot be")
        return int(refuse_timeout(cpu, cookie, delay_ns))

    return {refuse_ring: wrong_ring, refuse_timeout: wrong_timeout}


@contextmanager
def watched(world: World, books: Books) -> Iterator[None]:
    """Have the books told of what happens in this world."""
    wrappers = _wrappers(world, books)
    changed = []
    for name, module in list(sys.modules.items()):
        if not name.startswith("emu.") or name.startswith("emu.explore."):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in wrappers:
                changed.append((module, key, value))
                setattr(module, key, wrappers[value])
    try:
        yield
    finally:
        for module, key, value in changed:
            setattr(module, key, value)
