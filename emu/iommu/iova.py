"""The IOVA allocator of drivers/iommu/iova.c, 6.7 and later.

Addresses are handed out top-down and size-aligned from a tree of allocated ranges, under one lock. In front of the
tree sit, for sizes up to 32 pages, per-CPU magazines and a shared depot, so that freeing on one CPU and allocating on
it again touches nothing shared; what comes out is therefore a matter of each CPU's history, and this file keeps to the
kernel's step by step so that the same history gives the same addresses. All numbers are page frames (pfn).

Before 6.7 a depot had room for MAX_GLOBAL_MAGS magazines of each size; whoever had one more gave what was in it back to
the tree, all under the tree's lock, and no worker emptied the depot. `max_global_mags` brings that back.

Where a section of a lock changes two things, they are in an order, kept by barrier(), in which a process that is killed
in between loses a range or a magazine at most, and never leaves one in two places: emu/iommu/recovery.py.
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import barrier, ilog2, int64_t
from emu.native.compile import inline, jit, slow
from emu.native.cost import COST_TREE
from emu.native.lines import write_lines
from emu.native.lock import spin_lock, spin_unlock, spinlock_t
from emu.native.rbtree import rb_erase, rb_link_before, rb_link_last, rb_node, rb_root
from emu.native.record import address_of, deref, element, pointer_to, struct
from emu.native.time import charge
from emu.native.timer import TIMER_IDLE, add_timer, timer_t
from emu.oracle.pages import check_given_back, check_handed_out, expect_pages

IOVA_RANGE_CACHE_MAX_SIZE = 6
IOVA_MAG_SIZE = 127
IOVA_DEPOT_DELAY_NS = 100_000_000
IOVA_ANCHOR = 1 << 61
DMA_32BIT_PFN = 1 << 20

iova_t = struct(node=rb_node, pfn_lo="i8", pfn_hi="i8")
"""One allocated range, both ends included."""
_RANGE_BYTES = iova_t.itemsize

iova_magazine = struct(lines=("count",), count="i8", next="i8", pfns=("i8", (IOVA_MAG_SIZE,)))
"""On lines of its own: neighbours belong to different CPUs."""

iova_cpu_rcache = struct(lines=("lock",), lock=spinlock_t, loaded="i8", prev="i8", swapping="i8")
"""`swapping`: while both change places, the one that was loaded."""

iova_rcache = struct(
    lines=("lock", "cpu_rcaches"),
    lock=spinlock_t,
    depot_size="i8",
    depot="i8",
    work=timer_t,
    cpu_rcaches="i8",
    iovad="i8",
)
"""`cpu_rcaches` is read by every CPU at every call, and lies apart from the depot, which is written."""

iova_domain = struct(
    lines=("iova_rbtree_lock", "magazine_lock", "start_pfn"),
    iova_rbtree_lock=spinlock_t,
    rbroot=rb_root,
    cached_node="i8",
    cached32_node="i8",
    max32_alloc_size="i8",
    free_nodes="i8",
    nodes_used="i8",
    magazine_lock=spinlock_t,
    free_magazines="i8",
    start_pfn="i8",
    max_global_mags="i8",
    num_online_cpus="i8",
    rcaches="i8",
    oracle="i8",
    anchor=iova_t,
)
"""`max_global_mags`: magazines that a depot has room for, 0 for any number; `oracle`: address of what watches what is
handed out and given back, or 0."""


@slow
def init_iova_domain(iovad: Any, start_pfn: int) -> None:
    """Make the space empty; the pools of nodes and magazines are linked already."""
    anchor = pointer_to(iovad.anchor)
    iovad.anchor.pfn_lo = iovad.anchor.pfn_hi = IOVA_ANCHOR
    rb_link_last(iovad.rbroot, anchor)
    iovad.cached_node = iovad.cached32_node = anchor
    iovad.start_pfn = start_pfn
    iovad.max32_alloc_size = DMA_32BIT_PFN
    for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
        rcache = element(iova_rcache, iovad.rcaches, order)
        rcache.iovad = pointer_to(iovad)
        for i in range(iovad.num_online_cpus):
            cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, i)
            cpu_rcache.loaded = magazine_from_pool(iovad)
            cpu_rcache.prev = magazine_from_pool(iovad)


# --- the tree -------------------------------------------------------------------------------------------------------


@inline
def _get_cached_rbnode(iovad: Any, limit_pfn: int) -> int:
    return iovad.cached32_node if limit_pfn <= DMA_32BIT_PFN else iovad.cached_node


@inline
def _cached_rbnode_insert_update(iovad: Any, address: int) -> None:
    if deref(iova_t, address).pfn_hi < DMA_32BIT_PFN:
        iovad.cached32_node = address
    else:
        iovad.cached_node = address


@inline
def _cached_rbnode_delete_update(iovad: Any, address: int) -> None:
    free = deref(iova_t, address)
    cached = deref(iova_t, iovad.cached32_node)
    if address == iovad.cached32_node or (free.pfn_hi < DMA_32BIT_PFN and free.pfn_lo >= cached.pfn_lo):
        iovad.cached32_node = free.node.next
    if free.pfn_lo < DMA_32BIT_PFN:
        iovad.max32_alloc_size = DMA_32BIT_PFN
    cached = deref(iova_t, iovad.cached_node)
    if free.pfn_lo >= cached.pfn_lo:
        iovad.cached_node = free.node.next


@jit
def lowest_at_or_above(iovad: Any, pfn: int) -> int:
    """Address of the lowest range that starts at `pfn` or above; there always is one, the anchor."""
    found = pointer_to(iovad.anchor)
    address = iovad.rbroot.node
    while address:
        iova = deref(iova_t, address)
        if iova.pfn_lo >= pfn:
            found = address
            address = iova.node.left
        else:
            address = iova.node.right
    return found


@jit
def _iova_find_limit(iovad: Any, limit_pfn: int) -> int:
    if limit_pfn > DMA_32BIT_PFN:
        return pointer_to(iovad.anchor)
    return lowest_at_or_above(iovad, limit_pfn)


@inline
def _align_mask(size: int) -> int:
    return -1 << (ilog2(size - 1) + 1 if size > 1 else 0)


@slow
def _alloc_and_insert_iova_range_locked(cpu: Any, iovad: Any, size: int, limit_pfn: int) -> int:
    """First fit, from the cached node downwards, then once more from the limit. Returns the pfn, or 0."""
    if limit_pfn <= DMA_32BIT_PFN and size >= iovad.max32_alloc_size:
        return 0
    align_mask = _align_mask(size)
    high_pfn = limit_pfn
    low_pfn = iovad.start_pfn
    curr = _get_cached_rbnode(iovad, limit_pfn)
    retry_pfn = deref(iova_t, curr).pfn_hi
    while True:
        while True:
            # Ranges that others have made are passed one by one, and are not in this CPU's cache.
            write_lines(cpu, curr, _RANGE_BYTES)
            high_pfn = min(high_pfn, deref(iova_t, curr).pfn_lo)
            new_pfn = (high_pfn - size) & align_mask
            prev = curr
            curr = deref(iova_t, curr).node.prev
            if curr == 0 or new_pfn > deref(iova_t, curr).pfn_hi or new_pfn < low_pfn:
                break
        if high_pfn >= size and new_pfn >= low_pfn:
            break
        if not (low_pfn == iovad.start_pfn and retry_pfn < limit_pfn):
            iovad.max32_alloc_size = size
            return 0
        high_pfn = limit_pfn
        low_pfn = retry_pfn + 1
        curr = _iova_find_limit(iovad, limit_pfn)
    return new_pfn if insert_iova_locked(iovad, new_pfn, size, prev) else 0


@slow
def insert_iova_locked(iovad: Any, pfn: int, size: int, successor: int) -> bool:
    """Allocate just this range, below `successor`; False when there is no memory for another."""
    address = iovad.free_nodes
    if address == 0:
        return False
    iova = deref(iova_t, address)
    iovad.free_nodes = iova.node.next
    barrier()
    iovad.nodes_used += 1
    iova.pfn_lo = pfn
    iova.pfn_hi = pfn + size - 1
    rb_link_before(iovad.rbroot, address, successor)
    _cached_rbnode_insert_update(iovad, address)
    return True


@slow
def alloc_iova(cpu: Any, iovad: Any, size: int, limit_pfn: int) -> int:
    """Allocate from the tree, at most `limit_pfn`. Returns the first pfn, or 0 when there is no room."""
    spin_lock(cpu, iovad.iova_rbtree_lock)
    charge(cpu, COST_TREE, 1)
    pfn = _alloc_and_insert_iova_range_locked(cpu, iovad, size, limit_pfn + 1)
    spin_unlock(cpu, iovad.iova_rbtree_lock)
    return pfn


@slow
def reserve_iova(cpu: Any, iovad: Any, pfn_lo: int, pfn_hi: int) -> bool:
    """Take a range out of use before anything is allocated; ranges reserved must not overlap."""
    spin_lock(cpu, iovad.iova_rbtree_lock)
    cached, cached32 = iovad.cached_node, iovad.cached32_node
    done = insert_iova_locked(iovad, pfn_lo, pfn_hi - pfn_lo + 1, lowest_at_or_above(iovad, pfn_lo))
    iovad.cached_node, iovad.cached32_node = cached, cached32
    spin_unlock(cpu, iovad.iova_rbtree_lock)
    return done


@inline
def private_find_iova(iovad: Any, pfn: int) -> int:
    """Address of the range that holds `pfn`, or 0."""
    address = iovad.rbroot.node
    while address:
        iova = deref(iova_t, address)
        if pfn < iova.pfn_lo:
            address = iova.node.left
        elif pfn > iova.pfn_hi:
            address = iova.node.right
        else:
            break
    return address


@slow
def free_iova_locked(cpu: Any, iovad: Any, pfn: int) -> None:
    """Give the range that holds `pfn` back to the tree."""
    charge(cpu, COST_TREE, 1)
    address = private_find_iova(iovad, pfn)
    if address == 0:
        cpu.ctrs.lost_iovas += 1
        return
    _cached_rbnode_delete_update(iovad, address)
    rb_erase(iovad.rbroot, address)
    deref(iova_t, address).node.next = iovad.free_nodes
    barrier()
    iovad.free_nodes = address
    iovad.nodes_used -= 1


@slow
def free_iova(cpu: Any, iovad: Any, pfn: int) -> None:
    """Give the range that holds `pfn` back to the tree."""
    spin_lock(cpu, iovad.iova_rbtree_lock)
    free_iova_locked(cpu, iovad, pfn)
    spin_unlock(cpu, iovad.iova_rbtree_lock)


# --- the caches in front of it --------------------------------------------------------------------------------------


@inline
def order_base_2(size: int) -> int:
    """log2 of a size in pages, rounded up."""
    return ilog2(size - 1) + 1 if size > 1 else 0


@inline
def magazine_from_pool(iovad: Any) -> int:
    """Address of an empty magazine, or 0 when there is no memory for one."""
    address = iovad.free_magazines
    if address:
        iovad.free_magazines = deref(iova_magazine, address).next
        barrier()
        deref(iova_magazine, address).count = 0
    return address


@slow
def _magazine_alloc(cpu: Any, iovad: Any) -> int:
    spin_lock(cpu, iovad.magazine_lock)
    address = magazine_from_pool(iovad)
    spin_unlock(cpu, iovad.magazine_lock)
    return address


@slow
def magazine_free(cpu: Any, iovad: Any, address: int) -> None:
    """Give a magazine back to the pool."""
    spin_lock(cpu, iovad.magazine_lock)
    deref(iova_magazine, address).next = iovad.free_magazines
    barrier()
    iovad.free_magazines = address
    spin_unlock(cpu, iovad.magazine_lock)


@slow
def magazine_free_pfns(cpu: Any, iovad: Any, address: int) -> None:
    """Give all that is in a magazine back to the tree."""
    magazine = deref(iova_magazine, address)
    pfns = address_of(magazine, "pfns")
    spin_lock(cpu, iovad.iova_rbtree_lock)
    for i in range(magazine.count):
        pfn = element(int64_t, pfns, i).value
        # Not in two places, should this process die before the magazine is empty.
        element(int64_t, pfns, i).value = 0
        barrier()
        free_iova_locked(cpu, iovad, pfn)
    spin_unlock(cpu, iovad.iova_rbtree_lock)
    magazine.count = 0


@inline
def _magazine_pop(address: int, limit_pfn: int) -> int:
    """The youngest pfn that is not above the limit, or 0; the last one takes its place."""
    magazine = deref(iova_magazine, address)
    pfns = address_of(magazine, "pfns")
    i = magazine.count - 1
    while element(int64_t, pfns, i).value > limit_pfn:
        if i == 0:
            return 0
        i -= 1
    pfn = element(int64_t, pfns, i).value
    magazine.count -= 1
    barrier()
    element(int64_t, pfns, i).value = element(int64_t, pfns, magazine.count).value
    return pfn


@inline
def magazine_push(address: int, pfn: int) -> None:
    """Put a pfn on top; there is room."""
    magazine = deref(iova_magazine, address)
    element(int64_t, address_of(magazine, "pfns"), magazine.count).value = pfn
    barrier()
    magazine.count += 1


@inline
def iova_depot_push(rcache: Any, address: int) -> None:
    """Put a full magazine on top of the depot."""
    deref(iova_magazine, address).next = rcache.depot
    barrier()
    rcache.depot = address
    rcache.depot_size += 1


@inline
def iova_depot_pop(rcache: Any) -> int:
    """Take the depot's top magazine; there is one."""
    address = rcache.depot
    rcache.depot = deref(iova_magazine, address).next
    barrier()
    deref(iova_magazine, address).count = IOVA_MAG_SIZE
    rcache.depot_size -= 1
    return address


@slow
def iova_depot_work_func(cpu: Any, rcache: Any) -> None:
    """Every 100 ms, while the depot is rich, give one magazine back to the tree."""
    iovad = deref(iova_domain, rcache.iovad)
    magazine = 0
    spin_lock(cpu, rcache.lock)
    if rcache.depot_size > iovad.num_online_cpus:
        magazine = iova_depot_pop(rcache)
    spin_unlock(cpu, rcache.lock)
    if magazine:
        magazine_free_pfns(cpu, iovad, magazine)
        magazine_free(cpu, iovad, magazine)
        add_timer(cpu, rcache.work, IOVA_DEPOT_DELAY_NS)


_NO_MEMORY = -1


@slow
def _swap_in_empty_magazine(cpu: Any, iovad: Any, rcache: Any, cpu_rcache: Any) -> int:
    """Both magazines are full: the loaded one goes to the depot, if there is memory for another.

    Returns:
        Address of that magazine where the depot has no room for it; 0 where it has; -1 when there is no memory.
    """
    new_magazine = _magazine_alloc(cpu, iovad)
    if new_magazine == 0:
        return _NO_MEMORY
    full = cpu_rcache.loaded
    # Before the depot has the full one, where others find it: the lock orders it.
    cpu_rcache.loaded = new_magazine
    spin_lock(cpu, rcache.lock)
    has_room = iovad.max_global_mags == 0 or rcache.depot_size < iovad.max_global_mags
    if has_room:
        iova_depot_push(rcache, full)
    spin_unlock(cpu, rcache.lock)
    if not has_room:
        return full
    if iovad.max_global_mags == 0:
        add_timer(cpu, rcache.work, IOVA_DEPOT_DELAY_NS)
    return 0


@slow
def _empty_into_tree(cpu: Any, iovad: Any, magazine: int) -> None:
    """Give a magazine for which the depot has no room back, and all that is in it. The caller holds no lock."""
    magazine_free_pfns(cpu, iovad, magazine)
    magazine_free(cpu, iovad, magazine)


@slow
def _swap_in_depot_magazine(cpu: Any, iovad: Any, rcache: Any, cpu_rcache: Any) -> bool:
    """Both magazines are empty: the depot's first takes the loaded one's place."""
    empty = 0
    spin_lock(cpu, rcache.lock)
    if rcache.depot:
        empty = cpu_rcache.loaded
        cpu_rcache.loaded = iova_depot_pop(rcache)
    spin_unlock(cpu, rcache.lock)
    if empty == 0:
        return False
    magazine_free(cpu, iovad, empty)
    return True


@inline
def _swap_magazines(cpu_rcache: Any) -> None:
    loaded = cpu_rcache.loaded
    cpu_rcache.swapping = loaded
    barrier()
    cpu_rcache.loaded = cpu_rcache.prev
    barrier()
    cpu_rcache.prev = loaded
    barrier()
    cpu_rcache.swapping = 0


@inline
def _expect_next(iovad: Any, magazine: Any, size: int) -> None:
    """Have the oracle fetch what it will look at when the next pfn of this magazine is handed out."""
    top = max(magazine.count - 1, 0)
    expect_pages(iovad.oracle, element(int64_t, address_of(magazine, "pfns"), top).value, size)


@inline
def _iova_rcache_insert(cpu: Any, iovad: Any, pfn: int, size: int) -> bool:
    order = order_base_2(size)
    if order >= IOVA_RANGE_CACHE_MAX_SIZE:
        return False
    rcache = element(iova_rcache, iovad.rcaches, order)
    cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, cpu.id)
    mag_to_free = 0
    spin_lock(cpu, cpu_rcache.lock)
    if deref(iova_magazine, cpu_rcache.loaded).count == IOVA_MAG_SIZE:
        if deref(iova_magazine, cpu_rcache.prev).count < IOVA_MAG_SIZE:
            _swap_magazines(cpu_rcache)
        else:
            mag_to_free = _swap_in_empty_magazine(cpu, iovad, rcache, cpu_rcache)
    can_insert = mag_to_free != _NO_MEMORY
    if can_insert:
        magazine_push(cpu_rcache.loaded, pfn)
    spin_unlock(cpu, cpu_rcache.lock)
    if mag_to_free > 0:
        _empty_into_tree(cpu, iovad, mag_to_free)
    return can_insert


@inline
def _iova_rcache_get(cpu: Any, iovad: Any, size: int, limit_pfn: int) -> int:
    order = order_base_2(size)
    if order >= IOVA_RANGE_CACHE_MAX_SIZE:
        return 0
    rcache = element(iova_rcache, iovad.rcaches, order)
    cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, cpu.id)
    pfn = 0
    has_pfn = True
    spin_lock(cpu, cpu_rcache.lock)
    if deref(iova_magazine, cpu_rcache.loaded).count == 0:
        if deref(iova_magazine, cpu_rcache.prev).count > 0:
            _swap_magazines(cpu_rcache)
        else:
            has_pfn = _swap_in_depot_magazine(cpu, iovad, rcache, cpu_rcache)
    if has_pfn:
        pfn = _magazine_pop(cpu_rcache.loaded, limit_pfn - size)
        if iovad.oracle:
            _expect_next(iovad, deref(iova_magazine, cpu_rcache.loaded), size)
    spin_unlock(cpu, cpu_rcache.lock)
    return pfn


@slow
def free_cpu_cached_iovas(cpu: Any, iovad: Any, of: int) -> None:
    """Give all that the caches of a CPU hold back to the tree: when addresses run out, or when that CPU is dead."""
    for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
        rcache = element(iova_rcache, iovad.rcaches, order)
        cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, of)
        spin_lock(cpu, cpu_rcache.lock)
        magazine_free_pfns(cpu, iovad, cpu_rcache.loaded)
        magazine_free_pfns(cpu, iovad, cpu_rcache.prev)
        spin_unlock(cpu, cpu_rcache.lock)


@slow
def _free_global_cached_iovas(cpu: Any, iovad: Any) -> None:
    for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
        rcache = element(iova_rcache, iovad.rcaches, order)
        spin_lock(cpu, rcache.lock)
        while rcache.depot:
            magazine = iova_depot_pop(rcache)
            magazine_free_pfns(cpu, iovad, magazine)
            magazine_free(cpu, iovad, magazine)
        spin_unlock(cpu, rcache.lock)


@slow
def free_all_cached_iovas(cpu: Any, iovad: Any) -> None:
    """Give everything in magazines and depots back to the tree."""
    cpu.ctrs.rcache_flushes += 1
    for i in range(iovad.num_online_cpus):
        free_cpu_cached_iovas(cpu, iovad, i)
    _free_global_cached_iovas(cpu, iovad)


@slow
def put_iova_domain(cpu: Any, iovad: Any) -> None:
    """Give the memory of a space with empty caches back: every range that is left, and the CPUs' magazines."""
    address = iovad.anchor.node.prev
    while address:
        iova = deref(iova_t, address)
        lower = iova.node.prev
        iova.node.next = iovad.free_nodes
        iovad.free_nodes = address
        iovad.nodes_used -= 1
        address = lower
    for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
        rcache = element(iova_rcache, iovad.rcaches, order)
        rcache.work.state = TIMER_IDLE
        for i in range(iovad.num_online_cpus):
            cpu_rcache = element(iova_cpu_rcache, rcache.cpu_rcaches, i)
            magazine_free(cpu, iovad, cpu_rcache.loaded)
            magazine_free(cpu, iovad, cpu_rcache.prev)


@jit
def alloc_iova_fast(cpu: Any, iovad: Any, size: int, limit_pfn: int, flush_rcache: bool) -> int:
    """Allocate `size` pages, at most `limit_pfn`: from the caches, the tree, or the tree after emptying the caches.

    Returns:
        The first pfn, or 0.
    """
    # What is freed into the caches must fit whatever is taken out: round up anything cacheable.
    rounded = size
    if size < 1 << (IOVA_RANGE_CACHE_MAX_SIZE - 1):
        rounded = 1 << order_base_2(size)
    pfn = _iova_rcache_get(cpu, iovad, rounded, limit_pfn + 1)
    if pfn == 0:
        pfn = alloc_iova(cpu, iovad, rounded, limit_pfn)
        if pfn == 0 and flush_rcache:
            free_all_cached_iovas(cpu, iovad)
            pfn = alloc_iova(cpu, iovad, rounded, limit_pfn)
    if pfn and iovad.oracle:
        check_handed_out(cpu, iovad.oracle, pfn, size)
    return pfn


@jit
def free_iova_fast(cpu: Any, iovad: Any, pfn: int, size: int) -> None:
    """Give back what alloc_iova_fast returned, with the size that was asked for."""
    if iovad.oracle:
        check_given_back(cpu, iovad.oracle, pfn, size)
    if _iova_rcache_insert(cpu, iovad, pfn, size):
        return
    free_iova(cpu, iovad, pfn)
