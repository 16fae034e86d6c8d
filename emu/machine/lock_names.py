"""The locks of a machine: their names in results, and the number by which a lock's events name it."""

from __future__ import annotations

LOCK_NAMES = {
    "tree": "iova_rbtree_lock",
    "magazines": "iova_magazine_lock",
    "cpu_rcache": "iova_cpu_rcache.lock",
    "depot": "iova_rcache.lock",
    "ring": "iova_fq.lock",
    "bitmap": "iommu_bitmap_lock",
    "hypervisor": "hypervisor lock",
}
"""The names that results have for the kinds of locks."""

_NUMBER_BITS = 20
_KINDS = tuple(LOCK_NAMES)


def lock_id(kind: str, number: int = 0) -> int:
    """What a lock's record says of itself; never 0. `number`: of those of its kind."""
    return (_KINDS.index(kind) + 1) << _NUMBER_BITS | number


def lock_name(identity: int) -> str:
    """The name of a lock by what its record says of itself."""
    return LOCK_NAMES[_KINDS[lock_kind(identity)]]


def lock_kind(identity: int) -> int:
    """Which of LOCK_NAMES it is, counted from 0; of an array, too."""
    return (identity >> _NUMBER_BITS) - 1


def lock_number(identity: int) -> int:
    """Which of its kind it is: of rings, that CPU's; of caches, the order of their size × CPUs + the CPU."""
    return identity & ((1 << _NUMBER_BITS) - 1)
