"""The oracle's own books of every page, kept beside the emulated kernel's and never read by it.

A flush gets its number when the hypervisor takes it up. A page is stamped, once its table entry is cleared, with how
many flushes had begun by then. So a flush began after the unmap exactly if its number is above the stamp, and with
flushes that overlap and finish in any order nothing but the highest number of those that have finished matters. None
of this looks at the flush queue's counters, which is what makes it a check of them.

A page's word is that number, as far as it fits, and, in its lowest bits, its state. Whoever has the address at the time
writes it, with plain stores: an address that two have is seen by the exchange of its table entry. Between two times in
the same state lies a flush, so a word that has not changed says that nothing has.

Watching should cost little, and of a long queue no word is in a near cache. So words are short, and are fetched ahead.
"""

from __future__ import annotations

from typing import Any

from emu.iommu.io_pgtable import io_pgtable, iova_to_phys, pte_valid
from emu.native.atomics import cmpxchg, fetch_add, prefetchw, read_once, smp_load_acquire, smp_wmb
from emu.native.compile import inline, slow
from emu.native.cost import COST_CHECK_PAGE
from emu.native.lines import write_lines
from emu.native.record import CACHE_LINE, deref, element, pointer_to, struct
from emu.native.time import charge
from emu.native.wait import is_aborted
from emu.oracle.findings import (
    CHANGED_UNSEEN,
    GIVEN_BACK_TWICE,
    GIVEN_BACK_UNFLUSHED,
    GIVEN_BACK_WHILE_MAPPED,
    HANDED_OUT_TWICE,
    SHADOW_DIFFERS,
    note_violation,
)

PAGE_FREE, PAGE_IN_USE, PAGE_UNMAPPED = 0, 1, 2
PAGE_STATE = 3
PAGE_UNDONE = 4
"""A map of this page was taken back without a flush: no device knew of it, but the host may have seen it."""
_EPOCH_SHIFT = 3
_WORD_BITS = 32
_WORD_MASK = (1 << _WORD_BITS) - 1
_AGE_MASK = _WORD_MASK >> _EPOCH_SHIFT

word_t = struct(value="u4")
"""What is known of a page. 29 bits of a flush's number will do while no unmapped page waits for 2^29 flushes."""

_WORD_BYTES = word_t.itemsize
_WORDS_OF_LINE = CACHE_LINE // _WORD_BYTES

own_flush_t = struct(lines=("start_pfn",), start_pfn="i8", end_pfn="i8", number="i8")
"""The latest flush that a process had done itself, and what it covered; `number` is 0 if it was not served."""

oracle_t = struct(
    lines=("started", "finished", "start_pfn"),
    started="i8",
    finished="i8",
    start_pfn="i8",
    pages="i8",
    words="i8",
    own_flushes="i8",
    guest_table="i8",
    shadow_table="i8",
    reach_ended="i8",
)
"""`started`: flushes of any kind that have begun, the number of the latest; `finished`: the highest number of a flush
of everything that has ended; `words`: of the aperture's `pages`; `own_flushes`: by process; `shadow_table`: 0 where the
hypervisor shadows nothing; `reach_ended`: the device is detached, and reaches nothing, flushed or not."""


@inline
def epoch_of(word: int, started: int) -> int:
    """Flushes that had begun when a page's state changed; `started` is read after the word, and so is not below."""
    return started - _age_of(word, started)


@inline
def _age_of(word: int, started: int) -> int:
    return (started - (word >> _EPOCH_SHIFT)) & _AGE_MASK


@inline
def _stamp(started: int, state: int) -> int:
    return started << _EPOCH_SHIFT & _WORD_MASK | state


@inline
def word_of(oracle: Any, pfn: int) -> Any:
    """A page's word."""
    return element(word_t, oracle.words, pfn - oracle.start_pfn)


# --- flushes ----------------------------------------------------------------------------------------------------------


@inline
def begin_flush(oracle: Any) -> int:
    """A flush is taken up, and looks at nothing before this. Returns its number."""
    # Full barrier: entries are read after it. Pairs with the exchange of an entry that is cleared before its page is
    # stamped: either the stamp is below this number, or the entry is seen cleared whatever the stamp.
    return fetch_add(oracle, "started", 1) + 1


@inline
def end_flush(oracle: Any, number: int) -> None:
    """A flush of everything has ended; those that began earlier may still be under way."""
    while True:
        finished = read_once(oracle, "finished")
        # Full barrier: pairs with the acquire of `finished` where addresses come back and where devices look.
        if finished >= number or cmpxchg(oracle, "finished", finished, number) == finished:
            return


@inline
def note_own_flush(cpu: Any, oracle_address: int, start_pfn: int, end_pfn: int, number: int) -> None:
    """A flush that this process had asked for was served, or was not, and then `number` is 0."""
    oracle = deref(oracle_t, oracle_address)
    own = element(own_flush_t, oracle.own_flushes, cpu.slot)
    own.start_pfn = start_pfn
    own.end_pfn = end_pfn
    own.number = number


# --- the life of a page -----------------------------------------------------------------------------------------------


@inline
def expect_pages(oracle_address: int, pfn: int, pages: int) -> None:
    """These will soon be handed out or given back: have their words fetched while there is other work to do.

    A hint: what is wrong costs time, and of a long range the hardware fetches the rest.
    """
    oracle = deref(oracle_t, oracle_address)
    words = pointer_to(word_of(oracle, pfn))
    prefetchw(words)
    if pages > _WORDS_OF_LINE:
        prefetchw(words + CACHE_LINE)


@inline
def check_handed_out(cpu: Any, oracle_address: int, pfn: int, pages: int) -> None:
    """An address range has been allocated: every page of it must have been free."""
    oracle = deref(oracle_t, oracle_address)
    charge(cpu, COST_CHECK_PAGE, pages)
    words = pointer_to(word_of(oracle, pfn))
    write_lines(cpu, words, pages * _WORD_BYTES)
    seen = element(word_t, words, 0).value
    if pages > 1:
        seen |= _differences_in_rest(words, pages, 0)
    if seen & PAGE_STATE:
        _report_in_use(cpu, words, pfn, pages)
    _write_words(words, pages, _stamp(read_once(oracle, "started"), PAGE_IN_USE | (seen & PAGE_UNDONE)))


@slow
def _differences_in_rest(words: int, pages: int, word: int) -> int:
    """Bits in which any but the first word differs from `word`."""
    seen = 0
    i = 1
    # Four at a time: one vector instruction. By itself the compiler would begin with vectors at 32 pages.
    while i + 4 <= pages:
        four = words + i * _WORD_BYTES
        two = (element(word_t, four, 0).value ^ word) | (element(word_t, four, 1).value ^ word)
        seen |= two | (element(word_t, four, 2).value ^ word) | (element(word_t, four, 3).value ^ word)
        i += 4
    while i < pages:
        seen |= element(word_t, words, i).value ^ word
        i += 1
    return seen


@inline
def _write_words(words: int, pages: int, word: int) -> None:
    element(word_t, words, 0).value = word
    if pages > 1:
        _write_rest(words, pages, word)


@slow
def _write_rest(words: int, pages: int, word: int) -> None:
    i = 1
    while i + 4 <= pages:
        four = words + i * _WORD_BYTES
        element(word_t, four, 0).value = word
        element(word_t, four, 1).value = word
        element(word_t, four, 2).value = word
        element(word_t, four, 3).value = word
        i += 4
    while i < pages:
        element(word_t, words, i).value = word
        i += 1


@slow
def _report_in_use(cpu: Any, words: int, pfn: int, pages: int) -> None:
    for i in range(pages):
        word = read_once(element(word_t, words, i), "value")
        if word & PAGE_STATE != PAGE_FREE:
            note_violation(cpu, HANDED_OUT_TWICE, pfn + i, PAGE_FREE, word & PAGE_STATE)


@inline
def note_unmapped(cpu: Any, oracle_address: int, pfn: int, pages: int) -> None:
    """The table entries of a range have just been cleared."""
    oracle = deref(oracle_t, oracle_address)
    words = pointer_to(word_of(oracle, pfn))
    write_lines(cpu, words, pages * _WORD_BYTES)
    # After the exchanges that cleared the entries, which are fully ordered: pairs with begin_flush().
    _write_words(words, pages, _stamp(smp_load_acquire(oracle, "started"), PAGE_UNMAPPED))


@inline
def check_given_back(cpu: Any, oracle_address: int, pfn: int, pages: int) -> None:
    """An address range becomes allocatable: a flush that began after its unmap must have ended."""
    oracle = deref(oracle_t, oracle_address)
    charge(cpu, COST_CHECK_PAGE, pages)
    words = pointer_to(word_of(oracle, pfn))
    write_lines(cpu, words, pages * _WORD_BYTES)
    # Acquire: pairs with the exchange in end_flush().
    finished = smp_load_acquire(oracle, "finished")
    # Acquire: what has started is read after the word, so that it is no less than what is stamped there.
    word = smp_load_acquire(element(word_t, words, 0), "value")
    started = read_once(oracle, "started")
    is_right = (word & (PAGE_STATE | PAGE_UNDONE)) == PAGE_UNMAPPED and epoch_of(word, started) < finished
    if is_right and pages > 1:
        # Pages of a mapping are unmapped together.
        is_right = _differences_in_rest(words, pages, word) == 0
    undone = 0
    if not is_right:
        undone = _judge_given_back(cpu, oracle, words, pfn, pages)
    # A device that sees the page free finds nothing of it any longer: pairs with the acquire in dma_access().
    smp_wmb()
    _write_words(words, pages, _stamp(started, PAGE_FREE | undone))


@slow
def _judge_given_back(cpu: Any, oracle: Any, words: int, pfn: int, pages: int) -> int:
    """Whatever is not plainly right. Returns PAGE_UNDONE if a map was taken back before it was made."""
    finished = smp_load_acquire(oracle, "finished")
    own = element(own_flush_t, oracle.own_flushes, cpu.slot)
    # Where the device is detached nothing is reached; where the machine is aborted nobody waits for flushes.
    is_unreachable = oracle.reach_ended or is_aborted(cpu)
    undone = 0
    for i in range(pages):
        # Acquire, as above.
        word = smp_load_acquire(element(word_t, words, i), "value")
        state = word & PAGE_STATE
        if state == PAGE_UNMAPPED:
            flushed = max(finished, own.number) if own.start_pfn <= pfn + i < own.end_pfn else finished
            epoch = epoch_of(word, read_once(oracle, "started"))
            if epoch >= flushed and not is_unreachable:
                note_violation(cpu, GIVEN_BACK_UNFLUSHED, pfn + i, epoch + 1, flushed)
        elif state == PAGE_IN_USE:
            pte = iova_to_phys(deref(io_pgtable, oracle.guest_table), pfn + i)
            if pte_valid(pte):
                note_violation(cpu, GIVEN_BACK_WHILE_MAPPED, pfn + i, 0, pte)
            # It was never mapped, or for want of tables not to the end.
            undone = PAGE_UNDONE
        else:
            note_violation(cpu, GIVEN_BACK_TWICE, pfn + i, PAGE_UNMAPPED, PAGE_FREE)
    return undone


@slow
def note_undone(oracle_address: int, pfn: int, pages: int) -> None:
    """A map was taken back without a flush before its address was told to anybody; it is allocatable again."""
    oracle = deref(oracle_t, oracle_address)
    for p in range(pfn, pfn + pages):
        word_of(oracle, p).value = _stamp(read_once(oracle, "started"), PAGE_UNDONE)


@slow
def forget_pages(oracle_address: int) -> None:
    """The address space is made anew; CPUs, timer and devices rest."""
    oracle = deref(oracle_t, oracle_address)
    for i in range(oracle.pages):
        element(word_t, oracle.words, i).value = _stamp(oracle.started, PAGE_FREE)


@slow
def set_reach_ended(oracle_address: int, ended: int) -> None:
    """Say whether the device is detached from the domain; CPUs, timer and devices rest."""
    if oracle_address:
        deref(oracle_t, oracle_address).reach_ended = ended


# --- the hypervisor's table -------------------------------------------------------------------------------------------


@slow
def check_seen_invalid(cpu: Any, oracle_address: int, pfn: int, shadowed: int, pte: int) -> None:
    """The shadow changes from one mapping to another: an invalid entry between them was not seen.

    An address is reused after a flush only, and the flush has shown the hypervisor that it was invalid. What the guest
    took back without one is the exception: no device has ever been told of it.
    """
    if not word_of(deref(oracle_t, oracle_address), pfn).value & PAGE_UNDONE:
        note_violation(cpu, CHANGED_UNSEEN, pfn, shadowed, pte)


@slow
def check_shadow(cpu: Any, oracle_address: int, pfn: int, pages: int) -> None:
    """A live mapping that the hypervisor has been told of: its shadow must be as the guest's table."""
    oracle = deref(oracle_t, oracle_address)
    if not oracle.shadow_table:
        return
    for p in range(pfn, pfn + pages):
        pte = iova_to_phys(deref(io_pgtable, oracle.guest_table), p)
        shadowed = iova_to_phys(deref(io_pgtable, oracle.shadow_table), p)
        if pte != shadowed:
            note_violation(cpu, SHADOW_DIFFERS, p, pte, shadowed)
