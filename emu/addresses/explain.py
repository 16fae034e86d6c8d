"""Why an allocation does not get the kernel's address: one event is moved, and it is asked for again.

Each rule returns a reason when our allocator has then given the kernel's address, and else leaves it as it was.
"""

from __future__ import annotations

from emu.addresses import steps
from emu.addresses.log import NEAR_NS, order_of, rounded
from emu.addresses.peek import DEPOT, TREE
from emu.addresses.reasons import FLUSHING, INTERRUPTED, SWAPPED, WORKER
from emu.addresses.state import State
from emu.iommu.iova import IOVA_MAG_SIZE

_OTHERS = 3


def explain(state: State, i: int, cpu: int, answer: int) -> tuple[str, int]:
    """Look for what makes our allocator give mapping `i` the kernel's pfn.

    Args:
        state: is changed accordingly if it is found.
        i: the mapping.
        cpu: its CPU.
        answer: what our allocator would give.

    Returns:
        The reason, or "" and what our allocator would give now.
    """
    for attempt in (_after_frees, _after_worker, _before_worker, _after_other, _before_other):
        reason = attempt(state, i, cpu, answer)
        if reason:
            return reason, 0
        answer = state.peek(i, cpu)
    return "", answer


def is_cut_off(state: State, event: int, cpu: int) -> bool:
    """Whether the timer's flush of this CPU came between an allocation and its line; the allocation is made then.

    Asked before the frees of that flush are made, of a map event.
    """
    log = state.log
    i = log.mapped_by.get(event)
    if i is None or i in state.early or log.irq[event] or state.flushes[cpu].unmap is not None:
        return False
    order = order_of(log.pages[i])
    if not any(state.allocator.step(steps.RING_HAS, ring, order) for ring in state.allocator.rings):
        return False
    if state.peek(i, cpu) >> 3 != log.pfn[i] or not state.allocates(i, cpu):
        return False
    state.early[i] = INTERRUPTED
    return True


def _after_frees(state: State, i: int, cpu: int, _answer: int) -> str:
    """Another CPU's flush is under way, and has freed enough for this allocation."""
    log, allocator = state.log, state.allocator
    if len(allocator.rings) != 1 or not state.flushes:
        return ""
    flushing, flush = next(iter(state.flushes.items()))
    counter = allocator.cookie.fq_flush_finish_cnt
    counter.counter += not flush.frees
    last = allocator.step(steps.RING_LAST, 0, log.pfn[i], log.pages[i])
    counter.counter -= not flush.frees
    if last < 0:
        return ""
    state.begin_frees(flush)
    allocator.step(steps.RING_FREE, 0, last + 1, cpu=flushing)
    # It is handed out when its magazine has come to the depot, two magazines later at the latest.
    for _ in range(2 * IOVA_MAG_SIZE + 2):
        state.depots.arm(state.now_ns, flush.began_ns)
        if state.allocates(i, cpu):
            return FLUSHING
        if not allocator.step(steps.RING_FREE, 0, 1, cpu=flushing):
            break
    return ""


def _after_worker(state: State, i: int, cpu: int, answer: int) -> str:
    """A depot's worker has taken the magazine from which we would be served."""
    log, order = state.log, order_of(state.log.pages[i])
    if answer & 7 != DEPOT or not state.depots.may_have_run(order, state.now_ns):
        return ""
    place = state.allocator.find(log.pfn[i], order)
    if place.source != DEPOT or place.magazine[1] == 0:
        return ""
    votes = state.votes(i, cpu, order)
    is_next_of_another = any(log.pfn[m] == answer >> 3 for m in _next_of_others(state, i, cpu))
    if votes[place.magazine] <= votes[DEPOT, place.magazine[1] - 1] or is_next_of_another:
        return ""
    state.depots.run_early(order, state.now_ns)
    return WORKER if state.allocates(i, cpu) else ""


def _before_worker(state: State, i: int, cpu: int, answer: int) -> str:
    """A depot's worker has not yet taken the magazine from which the kernel was served."""
    pfn, order = state.log.pfn[i], order_of(state.log.pages[i])
    if answer & 7 != DEPOT or state.allocator.find(pfn, order).source:
        return ""
    if not state.depots.take_back(order, pfn, state.now_ns):
        return ""
    return WORKER if state.allocates(i, cpu) else ""


def _after_other(state: State, i: int, cpu: int, answer: int) -> str:
    """Another CPU's allocation, logged later, came first."""
    log = state.log
    if answer & 7 not in (TREE, DEPOT):
        return ""
    for m in _next_of_others(state, i, cpu):
        other = log.cpu[log.map_event[m]]
        if state.peek(m, other) >> 3 != log.pfn[m]:
            continue
        after = state.allocator.step(steps.PEEK_AFTER, other, log.pages[m], log.pages[i], cpu=cpu)
        if after >> 3 == log.pfn[i] and state.allocates(m, other):
            state.early[m] = SWAPPED
            if state.allocates(i, cpu):
                return SWAPPED
    return ""


def _before_other(state: State, i: int, cpu: int, answer: int) -> str:
    """Another CPU's allocation, logged earlier, came later; it got the same place all the same."""
    pfn, pages = state.log.pfn[i], state.log.pages[i]
    if answer & 7 != TREE:
        return ""
    for other, last in state.last_allocation.items():
        if other == cpu or last.at_ns <= state.now_ns - NEAR_NS:
            continue
        before = state.allocator.step(steps.PEEK_WITHOUT, pages, last.pfn, last.cached_pfn, cpu=cpu)
        if before >> 3 == pfn and state.allocator.step(steps.TREE_TAKE, pfn, rounded(pages)):
            state.hand_out(i)
            return SWAPPED
    return ""


def _next_of_others(state: State, i: int, cpu: int) -> list[int]:
    return [m for m in state.log.next_of_others(cpu, i, _OTHERS) if m not in state.early]
