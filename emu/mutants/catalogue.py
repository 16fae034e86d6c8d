"""The catalogue: bugs of a kind that such code has had or could have, and remedies for the one that Linux has."""

from __future__ import annotations

import sys

from emu.mutants.patch import Edit, Mutant, MutantError, install

_FQ = "emu.iommu.flush_queue"
_POLICY = "emu.iommu.policy"
_IOVA = "emu.iommu.iova"
_DMA = "emu.iommu.dma"
_S390 = "emu.iommu.s390_iommu"
_TABLE = "emu.iommu.io_pgtable"
_SERVICE = "emu.hypervisor.service"
_TIMER = "emu.native.timer"

_START = '    fetch_add(cookie.fq_flush_start_cnt, "counter", 1)\n'
_FINISH = '    fetch_add(cookie.fq_flush_finish_cnt, "counter", 1 + cpu.flush_for)\n'
_FLUSH = "    s390_iommu_flush_iotlb_all(cpu, deref(s390_domain, cookie.fq_domain), cause, waiting)\n"
_CLEAR = "s390_iommu_unmap_pages(cpu, domain.s390, pfn, pages)\n"
_QUEUED = """\
        leave_stage(cpu, call)
        enter_stage(cpu, STAGE_QUEUE)
        queue_iova(cpu, domain.cookie, pfn, pages)
"""
_SYNCED = """\
    leave_stage(cpu, call)
    s390_iommu_iotlb_sync(cpu, domain.s390, pfn, pages)
"""
_TIMER_OFF = '    write_once(cookie.fq_timer_on, "counter", 0)\n'
_PUBLISH = '    write_once(cookie, "fq_domain", pointer_to(domain))\n'
_FULL_FLUSH = "    fq_flush_iotlb(cpu, cookie, CAUSE_FULL, fq.mod_mask)\n    fq_ring_free_locked(cpu, cookie, fq)\n"

_LAZY = ("--domain", "DMA-FQ", "--on-overrun", "wait")
_SMALL_QUEUE = ("--domain", "DMA-FQ", "--fq-size", "8", "--seconds", "1", "--cpus", "2")
_PAIRS = ("--program", "unmap map unmap map")
_STRICT = ("--domain", "DMA")
_SWITCH = ("--domain", "DMA", "--switch", "DMA-FQ", "--on-overrun", "wait")
_SWITCHED_RUN = ("--domain", "DMA", "--switch", "0.2s:DMA-FQ", "--seconds", "1")

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "free-at-equal",
            (Edit(_POLICY, "_may_free", "entry.counter < counter", "entry.counter <= counter"),),
            "an entry is freed when as many flushes have finished as had started before it: one too early",
            _LAZY,
            _SMALL_QUEUE,
        ),
        Mutant(
            "stamp-with-finish-count",
            (
                Edit(
                    _FQ,
                    "queue_iova",
                    'entry.counter = read_once(cookie.fq_flush_start_cnt, "counter")',
                    'entry.counter = read_once(cookie.fq_flush_finish_cnt, "counter")',
                ),
            ),
            "entries are stamped with the wrong one of two counters that look alike",
            _LAZY,
            _SMALL_QUEUE,
        ),
        Mutant(
            "queue-before-clearing",
            (
                Edit(
                    _DMA,
                    "_iommu_dma_unmap",
                    f"        {_CLEAR}{_QUEUED}",
                    f"{_QUEUED}        {_CLEAR}",
                ),
            ),
            "the IOVA is queued before its page-table entries are cleared, so that a flush in between counts",
            _LAZY,
            _SMALL_QUEUE,
        ),
        Mutant(
            "sync-before-clearing",
            (
                Edit(
                    _DMA,
                    "_iommu_dma_unmap",
                    f"    {_CLEAR}{_SYNCED}    close",
                    f"{_SYNCED}    {_CLEAR}    close",
                ),
            ),
            "a strict unmap flushes its range before it clears the entries",
            (*_STRICT, *_PAIRS),
            _STRICT,
        ),
        Mutant(
            "finish-before-flush",
            (
                Edit(_FQ, "fq_flush_iotlb", _FLUSH, ""),
                Edit(_FQ, "fq_flush_iotlb", _FINISH, f"{_FINISH}{_FLUSH}"),
            ),
            "a flush is counted as finished before it has been made",
            _LAZY,
            _SMALL_QUEUE,
        ),
        Mutant(
            "start-after-flush",
            (
                Edit(_FQ, "fq_flush_iotlb", _START, ""),
                Edit(_FQ, "fq_flush_iotlb", _FLUSH, f"{_FLUSH}{_START}"),
            ),
            "a flush is counted as started only when it has been made: what is queued meanwhile is stamped too low",
            _LAZY,
            _SMALL_QUEUE,
        ),
        Mutant(
            "start-not-atomic",
            (
                Edit(
                    _FQ,
                    "fq_flush_iotlb",
                    _START,
                    '    started = read_once(cookie.fq_flush_start_cnt, "counter")\n'
                    '    write_once(cookie.fq_flush_start_cnt, "counter", started + 1)\n',
                ),
            ),
            "the counter of flushes started is read and written instead of incremented: two flushes count as one",
            (*_LAZY, "--ops", "4"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "timer-stays-on",
            (Edit(_FQ, "fq_flush_timeout", _TIMER_OFF, ""),),
            "the timer's flag is not taken down when it fires, so nobody arms it again",
            ("--domain", "DMA-FQ", "--fq-size", "4", "--ops", "2", "--with-timer", "1"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "timer-off-too-late",
            (
                Edit(_FQ, "fq_flush_timeout", _TIMER_OFF, ""),
                Edit(
                    _FQ,
                    "fq_flush_timeout",
                    "    fq_free_rings(cpu, cookie)",
                    f"    fq_free_rings(cpu, cookie)\n{_TIMER_OFF[:-1]}",
                ),
            ),
            "the timer's flag is taken down after its flush: who queues meanwhile relies on a timer that is over",
            ("--domain", "DMA-FQ", "--fq-size", "4", "--ops", "2", "--with-timer", "1"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "timer-frees-one-ring",
            (
                Edit(
                    _FQ,
                    "fq_free_rings",
                    "    for i in range(cookie.fq_rings):\n        fq_ring_free(cpu, cookie, _nth_ring(cookie, i))",
                    "    fq_ring_free(cpu, cookie, _nth_ring(cookie, cpu.id))",
                ),
            ),
            "the timer frees only the ring of the CPU on which it runs",
            ("--domain", "DMA-FQ", "--fq-size", "4", "--ops", "2", "--with-timer", "1"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "timer-frees-without-lock",
            (
                Edit(
                    _FQ,
                    "fq_ring_free",
                    "    spin_lock(cpu, fq.lock)\n    fq_ring_free_locked(cpu, cookie, fq)\n"
                    "    spin_unlock(cpu, fq.lock)\n",
                    "    fq_ring_free_locked(cpu, cookie, fq)\n",
                ),
            ),
            "the timer frees a ring without its lock, while its CPU does the same",
            ("--domain", "DMA-FQ", "--fq-size", "4", "--ops", "2", "--with-timer", "1"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "lock-dropped-while-flushing",
            (
                Edit(
                    _FQ,
                    "_flush_full_ring_locked",
                    _FULL_FLUSH,
                    "    spin_unlock(cpu, fq.lock)\n    fq_flush_iotlb(cpu, cookie, CAUSE_FULL, fq.mod_mask)\n"
                    "    spin_lock(cpu, fq.lock)\n    fq_ring_free_locked(cpu, cookie, fq)\n",
                ),
            ),
            "the ring's lock is given back for the time of a flush, so that others may append to the full ring",
            ("--domain", "DMA-SQ"),
            ("--domain", "DMA-SQ", "--fq-size", "8", "--seconds", "1", "--cpus", "2"),
        ),
        Mutant(
            "no-recheck",
            (Edit(_FQ, "_flush_full_ring_locked", "    while fq_full(fq) and not", "    if fq_full(fq) and not"),),
            "who waits for room in a full ring looks once more, and not until there is some",
            _LAZY,
            (*_SMALL_QUEUE, "--on-overrun", "wait"),
        ),
        Mutant(
            "publish-before-init",
            (
                Edit(_FQ, "iommu_dma_init_fq", _PUBLISH, ""),
                Edit(
                    _FQ,
                    "iommu_dma_init_fq",
                    '    smp_store_release(cookie.fq_flush_start_cnt, "counter", 0)\n',
                    f'{_PUBLISH}    smp_store_release(cookie.fq_flush_start_cnt, "counter", 0)\n',
                ),
            ),
            "a queue is published before its rings are made",
            (*_SWITCH, "--ops", "2"),
            _SWITCHED_RUN,
        ),
        Mutant(
            "no-wmb-before-publishing",
            (Edit(_FQ, "iommu_dma_init_fq", "    smp_wmb()\n", ""),),
            "the barrier is missing that orders the making of a queue before its publication",
            (*_SWITCH, "--ops", "1", "--memory", "pso"),
            _SWITCHED_RUN,
        ),
        Mutant(
            "no-mb-in-queue-iova",
            (
                Edit(_FQ, "queue_iova", "    smp_mb()\n", ""),
                Edit(
                    _TABLE,
                    "set_pte",
                    '    return xchg(element(int64_t, page_table, calc_px(pfn)), "value", pte)',
                    "    entry = element(int64_t, page_table, calc_px(pfn))\n    old = entry.value\n"
                    "    entry.value = pte\n    return old",
                ),
            ),
            "entries are cleared by plain stores, as on s390, and the barrier between that and the stamp is missing",
            (*_LAZY, "--ops", "2", "--memory", "pso"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "no-mb-in-add-timer",
            (Edit(_TIMER, "add_timer", "    smp_mb()\n", ""),),
            "who arms a timer may not see that the timer's process goes to sleep, and that one not the timer",
            ("--ops", "1", "--timer-sleeps", "--memory", "tso"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "no-mb-in-wait-for-timer",
            (Edit(_TIMER, "wait_for_timer", "    smp_mb()\n", ""),),
            "the same on the other side",
            ("--ops", "1", "--timer-sleeps", "--memory", "tso"),
            _SMALL_QUEUE,
        ),
        Mutant(
            "wrong-magazine",
            (
                Edit(
                    _IOVA,
                    "_iova_rcache_insert",
                    "magazine_push(cpu_rcache.loaded, pfn)",
                    "magazine_push(element(iova_cpu_rcache, rcache.cpu_rcaches, 0).loaded, pfn)",
                ),
            ),
            "a freed IOVA goes to another CPU's magazine than the one whose lock is held",
            (*_STRICT, *_PAIRS),
            _STRICT,
        ),
        Mutant(
            "depot-popped-twice",
            (
                Edit(_IOVA, "_swap_in_depot_magazine", "    spin_lock(cpu, rcache.lock)\n", ""),
                Edit(_IOVA, "_swap_in_depot_magazine", "    spin_unlock(cpu, rcache.lock)\n", ""),
            ),
            "the depot is popped without its lock, and two CPUs get the same magazine",
            (*_STRICT, "--magazine", "1", "--program", "unmap unmap unmap map map map"),
            ("--domain", "DMA", "--cpus", "4"),
        ),
        Mutant(
            "sync-map-skipped",
            (Edit(_S390, "s390_iommu_iotlb_sync_map", "if not domain.tlb_refresh", "if domain.tlb_refresh"),),
            "the hypervisor is not told of a new mapping",
            (*_STRICT, *_PAIRS),
            _STRICT,
        ),
        Mutant(
            "sync-map-one-page-short",
            (
                Edit(
                    _S390,
                    "s390_iommu_iotlb_sync_map",
                    "    error = refresh_mapped(cpu, domain, iova_pfn, pages)\n",
                    "    error = refresh_mapped(cpu, domain, iova_pfn, max(pages - 1, 1))\n",
                ),
            ),
            "the hypervisor is told of all pages of a new mapping but the last",
            (*_STRICT, *_PAIRS, "--granule", "2"),
            _STRICT,
        ),
        Mutant(
            "unmap-one-page-short",
            (
                Edit(
                    _S390,
                    "_invalidate_trans",
                    "    for i in range(pages):\n",
                    "    for i in range(max(pages - 1, 1)):\n",
                ),
            ),
            "the last page of a larger unmap keeps its entry",
            (*_STRICT, *_PAIRS, "--granule", "2"),
            _STRICT,
        ),
        Mutant(
            "sync-one-page-short",
            (
                Edit(
                    _S390,
                    "s390_iommu_iotlb_sync",
                    "zpci_refresh_trans(cpu, domain.fh, iova_pfn, pages, False)",
                    "zpci_refresh_trans(cpu, domain.fh, iova_pfn, max(pages - 1, 1), False)",
                ),
            ),
            "the flush of an unmapped range leaves its last page out",
            (*_STRICT, *_PAIRS, "--granule", "2"),
            _STRICT,
        ),
        Mutant(
            "shadow-keeps-old-entries",
            (
                Edit(
                    _SERVICE,
                    "_shadow_entry",
                    '    write_once(entry, "value", pte)\n',
                    '    if pte_valid(pte):\n        write_once(entry, "value", pte)\n',
                ),
            ),
            "the hypervisor takes new entries over and forgets to drop those that became invalid",
            (*_STRICT, *_PAIRS),
            _STRICT,
        ),
        Mutant(
            "request-on-wrong-function",
            (
                Edit(
                    _SERVICE,
                    "take_flush_up",
                    "function = function_of(hv, about)",
                    "function = function_of(hv, (about + 1) % hv.function_count)",
                ),
            ),
            "where several functions share the hypervisor, a request is served on a neighbour's tables",
            _STRICT,
            (*_STRICT, "--set", "machine.functions=2", "--cpus", "2"),
        ),
        Mutant(
            "init-fq-before-type",
            (),
            "version 4 of the patch series: the kind of queue follows from the type not yet set",
            (*_SWITCH, "--ops", "2", "--bug", "init-fq-before-type"),
            (*_SWITCHED_RUN[:2], "--switch", "0.2s:DMA-FQ", "--seconds", "1", "--bug", "init-fq-before-type"),
        ),
        Mutant(
            "queue-before-type",
            (),
            "version 4 of the patch series: the queue is used while the type still says DMA",
            (*_SWITCH, "--ops", "2", "--bug", "queue-before-type"),
            (*_SWITCHED_RUN[:2], "--switch", "0.2s:DMA-FQ", "--seconds", "1", "--bug", "queue-before-type"),
        ),
        Mutant(
            "flush-while-full",
            (
                Edit(
                    _FQ,
                    "_flush_full_ring_locked",
                    _FULL_FLUSH,
                    f"{_FULL_FLUSH}    while fq_full(fq):\n        cpu.ctrs.flushes_full += 1\n"
                    "        fq_flush_iotlb(cpu, cookie, CAUSE_FULL, fq.mod_mask)\n"
                    "        fq_ring_free_locked(cpu, cookie, fq)\n",
                ),
            ),
            "a full ring is flushed again until there is room",
            is_remedy=True,
        ),
        Mutant(
            "free-what-own-flush-covers",
            (
                Edit(
                    _FQ,
                    "_flush_full_ring_locked",
                    _FULL_FLUSH,
                    '    before = read_once(cookie.fq_flush_start_cnt, "counter")\n'
                    f"{_FULL_FLUSH}"
                    "    while fq.head != fq.tail:\n"
                    "        entry = element(iova_fq_entry, fq.entries, fq.head)\n"
                    "        if entry.counter > before:\n"
                    "            break\n"
                    "        close_window(cpu, entry.queued_at, now_ticks(cpu), entry.pages)\n"
                    "        free_iova_fast(cpu, cookie.iovad, entry.iova_pfn, entry.pages)\n"
                    "        cpu.ctrs.reclaimed += 1\n"
                    "        fq.head = (fq.head + 1) & fq.mod_mask\n",
                ),
            ),
            "a CPU frees what was stamped before its own flush started, whatever other flushes are under way",
            is_remedy=True,
        ),
    )
}
"""By name; the last two are remedies."""


def named(name: str) -> Mutant:
    """The mutant of that name.

    Raises:
        MutantError: there is none.
    """
    if name not in MUTANTS:
        raise MutantError(f"there is no mutant {name}; there are {', '.join(sorted(MUTANTS))}")
    return MUTANTS[name]


def put_in(name: str) -> None:
    """Have everything imported from now on with this bug in it.

    Raises:
        SystemExit: there is no such mutant.
    """
    try:
        mutant = named(name)
        if mutant.edits:
            install(mutant)
    except MutantError as error:
        sys.stderr.write(f"emu: EMU_MUTANT: {error}\n")
        raise SystemExit(2) from None
