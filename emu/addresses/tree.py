"""Ranges of the tree, allocated and asked for at a given pfn; compiled."""

from __future__ import annotations

from typing import Any

from emu.iommu.iova import insert_iova_locked, iova_t, lowest_at_or_above, private_find_iova
from emu.native.compile import slow
from emu.native.record import deref


@slow
def tree_is_free(iovad: Any, pfn: int, size: int) -> int:
    """Whether the tree has no range that shares a page with [pfn, pfn + size)."""
    successor = lowest_at_or_above(iovad, pfn)
    if deref(iova_t, successor).pfn_lo < pfn + size:
        return 0
    before = deref(iova_t, successor).node.prev
    return 1 if before == 0 or deref(iova_t, before).pfn_hi < pfn else 0


@slow
def tree_take(iovad: Any, pfn: int, size: int, moves_cached: int) -> int:
    """Allocate just this range, as an allocation does (`moves_cached`) or leaving the cached nodes; 0 if it cannot."""
    if not tree_is_free(iovad, pfn, size):
        return 0
    cached, cached32 = iovad.cached_node, iovad.cached32_node
    done = insert_iova_locked(iovad, pfn, size, lowest_at_or_above(iovad, pfn))
    if not moves_cached:
        iovad.cached_node, iovad.cached32_node = cached, cached32
    return 1 if done else 0


@slow
def tree_range_in(iovad: Any, pfn: int, size: int) -> int:
    """The lowest range that shares a page with [pfn, pfn + size): its pfn << 20 | its size; 0 if there is none."""
    address = private_find_iova(iovad, pfn)
    if address == 0:
        address = lowest_at_or_above(iovad, pfn)
        if deref(iova_t, address).pfn_lo >= pfn + size:
            return 0
    iova = deref(iova_t, address)
    return iova.pfn_lo << 20 | (iova.pfn_hi - iova.pfn_lo + 1)
