"""Where in the caches a pfn lies, and how it comes out of there; compiled.

A place is one number: source | CPU << 3 | depth below the top << 16 | which of the depot's magazines << 32. A depot's
magazine is always full: what is taken out of it has to be replaced.
"""

from __future__ import annotations

from typing import Any

from emu.addresses.peek import DEPOT, LOADED, PREV
from emu.iommu.iova import (
    IOVA_MAG_SIZE,
    iova_cpu_rcache,
    iova_depot_pop,
    iova_magazine,
    iova_rcache,
    magazine_free,
    magazine_free_pfns,
)
from emu.native.atomics import int64_t
from emu.native.compile import slow
from emu.native.record import address_of, deref, element


@slow
def _index_in(address: int, count: int, pfn: int) -> int:
    pfns = address_of(deref(iova_magazine, address), "pfns")
    for i in range(count):
        if element(int64_t, pfns, i).value == pfn:
            return i
    return -1


@slow
def find_cached(iovad: Any, pfn: int, order: int) -> int:
    """The place of a pfn; 0 when it is in no cache."""
    rcache = element(iova_rcache, iovad.rcaches, order)
    for i in range(iovad.num_online_cpus):
        cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, i)
        count = deref(iova_magazine, cpu_rcache.loaded).count
        at = _index_in(cpu_rcache.loaded, count, pfn)
        if at >= 0:
            return LOADED | i << 3 | (count - 1 - at) << 16
        count = deref(iova_magazine, cpu_rcache.prev).count
        at = _index_in(cpu_rcache.prev, count, pfn)
        if at >= 0:
            return PREV | i << 3 | (count - 1 - at) << 16
    address = rcache.depot
    which = 0
    while address:
        at = _index_in(address, IOVA_MAG_SIZE, pfn)
        if at >= 0:
            return DEPOT | (IOVA_MAG_SIZE - 1 - at) << 16 | which << 32
        address = deref(iova_magazine, address).next
        which += 1
    return 0


@slow
def _magazine_at(iovad: Any, order: int, place: int) -> int:
    rcache = element(iova_rcache, iovad.rcaches, order)
    cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, (place >> 3) & 0x1FFF)
    if place & 7 == LOADED:
        return cpu_rcache.loaded
    if place & 7 == PREV:
        return cpu_rcache.prev
    address = rcache.depot
    for _ in range(place >> 32):
        address = deref(iova_magazine, address).next
    return address


@slow
def count_at(iovad: Any, order: int, place: int) -> int:
    """How many pfns the magazine of a place holds."""
    return IOVA_MAG_SIZE if place & 7 == DEPOT else deref(iova_magazine, _magazine_at(iovad, order, place)).count


@slow
def _index_at(iovad: Any, order: int, place: int) -> int:
    return count_at(iovad, order, place) - 1 - ((place >> 16) & 0xFFFF)


@slow
def _pfns_at(iovad: Any, order: int, place: int) -> int:
    return address_of(deref(iova_magazine, _magazine_at(iovad, order, place)), "pfns")


@slow
def pfn_at(iovad: Any, order: int, place: int) -> int:
    """What lies at a place."""
    return element(int64_t, _pfns_at(iovad, order, place), _index_at(iovad, order, place)).value


@slow
def take_cached(iovad: Any, order: int, place: int, instead: int) -> None:
    """Take out what lies at a place; `instead`, if not 0, comes there."""
    pfns, at = _pfns_at(iovad, order, place), _index_at(iovad, order, place)
    if instead:
        element(int64_t, pfns, at).value = instead
        return
    magazine = deref(iova_magazine, _magazine_at(iovad, order, place))
    for i in range(at, magazine.count - 1):
        element(int64_t, pfns, i).value = element(int64_t, pfns, i + 1).value
    magazine.count -= 1


@slow
def sink_above(iovad: Any, order: int, place: int) -> None:
    """Put what lies above a place to the bottom of its magazine."""
    pfns, count = _pfns_at(iovad, order, place), count_at(iovad, order, place)
    for _ in range((place >> 16) & 0xFFFF):
        top = element(int64_t, pfns, count - 1).value
        for i in range(count - 1, 0, -1):
            element(int64_t, pfns, i).value = element(int64_t, pfns, i - 1).value
        element(int64_t, pfns, 0).value = top


@slow
def exchange_runs(iovad: Any, order: int, a: int, b: int) -> None:
    """Exchange what lies at two places of different magazines, and below them as far as both go."""
    pfns_a, i = _pfns_at(iovad, order, a), _index_at(iovad, order, a)
    pfns_b, j = _pfns_at(iovad, order, b), _index_at(iovad, order, b)
    while i >= 0 and j >= 0:
        pfn = element(int64_t, pfns_a, i).value
        element(int64_t, pfns_a, i).value = element(int64_t, pfns_b, j).value
        element(int64_t, pfns_b, j).value = pfn
        i -= 1
        j -= 1


@slow
def empty_magazines(cpu: Any, iovad: Any, order: int, with_depot: int) -> None:
    """Give what is in this CPU's magazines back to the tree, and what is in the depot if asked to."""
    rcache = element(iova_rcache, iovad.rcaches, order)
    cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, cpu.id)
    magazine_free_pfns(cpu, iovad, cpu_rcache.loaded)
    magazine_free_pfns(cpu, iovad, cpu_rcache.prev)
    while with_depot and rcache.depot:
        magazine = iova_depot_pop(rcache)
        magazine_free_pfns(cpu, iovad, magazine)
        magazine_free(cpu, iovad, magazine)
