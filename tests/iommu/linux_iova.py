"""Linux's IOVA allocator (drivers/iommu/iova.c, 6.7 and later) once more, as plainly as it can be said in Python.

Written from the kernel's source, not from emu's: the tree is a sorted list, a magazine a list, the depot a list of
magazines. The tests compare the two address by address. With `max_global_mags` depots are as before 6.7.
"""

from bisect import bisect_left, insort
from itertools import pairwise

ANCHOR = 1 << 61
DMA_32BIT = 1 << 20
MAX_ORDERS = 6
MAGAZINE = 127


def order_of(size):
    """order_base_2()."""
    return (size - 1).bit_length()


class LinuxIovaDomain:
    """One iova_domain of a machine with `cpus` online CPUs."""

    def __init__(self, start_pfn, cpus, reserved=(), max_global_mags=0):
        self.max_global_mags = max_global_mags
        self.start_pfn = start_pfn
        self.cpus = cpus
        self.los = [ANCHOR]
        self.his = {ANCHOR: ANCHOR}
        self.cached = self.cached32 = ANCHOR
        self.max32 = DMA_32BIT
        for lo, hi in reserved:
            insort(self.los, lo)
            self.his[lo] = hi
        self.loaded = [[[] for _ in range(cpus)] for _ in range(MAX_ORDERS)]
        self.prev = [[[] for _ in range(cpus)] for _ in range(MAX_ORDERS)]
        self.depot = [[] for _ in range(MAX_ORDERS)]
        self.work = [False] * MAX_ORDERS

    # The tree.

    def ranges(self):
        """(first, last) of every allocated range, in order."""
        return [(lo, self.his[lo]) for lo in self.los[:-1]]

    def _before(self, lo):
        i = bisect_left(self.los, lo)
        return self.los[i - 1] if i else None

    def _after(self, lo):
        return self.los[bisect_left(self.los, lo) + 1]

    def _find_limit(self, limit):
        if limit > DMA_32BIT:
            return ANCHOR
        return next(lo for lo in self.los if lo >= limit)

    def _tree_alloc(self, size, limit_pfn):
        limit = limit_pfn + 1
        if limit <= DMA_32BIT and size >= self.max32:
            return 0
        align = 1 << order_of(size)
        curr = self.cached32 if limit <= DMA_32BIT else self.cached
        high, low = limit, self.start_pfn
        retry = self.his[curr]
        while True:
            while True:
                high = min(high, curr)
                new = (high - size) // align * align
                curr = self._before(curr)
                if curr is None or new > self.his[curr] or new < low:
                    break
            if high >= size and new >= low:
                break
            if low != self.start_pfn or retry >= limit:
                self.max32 = size
                return 0
            high, low = limit, retry + 1
            curr = self._find_limit(limit)
        insort(self.los, new)
        self.his[new] = new + size - 1
        if self.his[new] < DMA_32BIT:
            self.cached32 = new
        else:
            self.cached = new
        return new

    def _tree_free(self, pfn):
        lo = self.los[bisect_left(self.los, pfn + 1) - 1]
        after = self._after(lo)
        if lo == self.cached32 or (self.his[lo] < DMA_32BIT and lo >= self.cached32):
            self.cached32 = after
        if lo < DMA_32BIT:
            self.max32 = DMA_32BIT
        if lo >= self.cached:
            self.cached = after
        self.los.remove(lo)
        del self.his[lo]

    # The caches.

    def _rcache_insert(self, pfn, size, cpu):
        order = order_of(size)
        if order >= MAX_ORDERS:
            return False
        loaded, prev = self.loaded[order], self.prev[order]
        magazine_to_free = []
        if len(loaded[cpu]) == MAGAZINE:
            if len(prev[cpu]) < MAGAZINE:
                loaded[cpu], prev[cpu] = prev[cpu], loaded[cpu]
            else:
                if self.max_global_mags and len(self.depot[order]) >= self.max_global_mags:
                    magazine_to_free = loaded[cpu]
                else:
                    self.depot[order].append(loaded[cpu])
                    self.work[order] = not self.max_global_mags
                loaded[cpu] = []
        loaded[cpu].append(pfn)
        self._empty_magazine(magazine_to_free)
        return True

    def _rcache_get(self, size, limit_pfn, cpu):
        order = order_of(size)
        if order >= MAX_ORDERS:
            return 0
        loaded, prev = self.loaded[order], self.prev[order]
        if not loaded[cpu]:
            if prev[cpu]:
                loaded[cpu], prev[cpu] = prev[cpu], loaded[cpu]
            elif self.depot[order]:
                loaded[cpu] = self.depot[order].pop()
            else:
                return 0
        magazine = loaded[cpu]
        for i in reversed(range(len(magazine))):
            if magazine[i] <= limit_pfn + 1 - size:
                pfn = magazine[i]
                magazine[i] = magazine[-1]
                magazine.pop()
                return pfn
        return 0

    def _empty_magazine(self, magazine):
        for pfn in magazine:
            self._tree_free(pfn)
        magazine.clear()

    def flush_rcaches(self):
        """Every CPU's magazines, then the depots."""
        for cpu in range(self.cpus):
            for order in range(MAX_ORDERS):
                self._empty_magazine(self.loaded[order][cpu])
                self._empty_magazine(self.prev[order][cpu])
        for order in range(MAX_ORDERS):
            while self.depot[order]:
                self._empty_magazine(self.depot[order].pop())

    def run_depot_work(self, order):
        """iova_depot_work_func()."""
        self.work[order] = False
        if len(self.depot[order]) > self.cpus:
            self._empty_magazine(self.depot[order].pop())
            self.work[order] = True

    # What the DMA layer calls.

    def alloc(self, size, cpu, limit_pfn, flush_rcache):
        """alloc_iova_fast()."""
        if size < 1 << (MAX_ORDERS - 1):
            size = 1 << order_of(size)
        pfn = self._rcache_get(size, limit_pfn, cpu) or self._tree_alloc(size, limit_pfn)
        if not pfn and flush_rcache:
            self.flush_rcaches()
            pfn = self._tree_alloc(size, limit_pfn)
        return pfn

    def free(self, pfn, size, cpu):
        """free_iova_fast()."""
        if not self._rcache_insert(pfn, size, cpu):
            self._tree_free(pfn)

    def overlaps(self):
        """Whether two allocated ranges share a page."""
        return any(a[1] >= b[0] for a, b in pairwise(self.ranges()))
