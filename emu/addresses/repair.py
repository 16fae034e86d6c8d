"""What no moved event explains is put right: the kernel's pfn is taken from where it lies here.

Afterwards every free pfn is in exactly one place, and the kernel's with the caller. Which of several ways to get there
is taken may depend on what the kernel gave out later; so nothing that is put right ever counts as identical.
"""

from __future__ import annotations

from itertools import pairwise

from emu.addresses import steps
from emu.addresses.allocator import Place
from emu.addresses.log import NEAR_NS, order_of, rounded
from emu.addresses.peek import DEPOT, LOADED, PREV
from emu.addresses.reasons import (
    DEEPER,
    ELSEWHERE,
    FREED_OTHERWISE,
    IN_TREE,
    IN_USE,
    INTERRUPTED,
    MAGAZINE,
    QUEUED,
    QUEUED_OTHERWISE,
    RAN_OUT,
    SHIFTED,
)
from emu.addresses.state import MAJORITY, VOTERS, State

_SOON = 4
_FEW = 4
_IN_TREE_VOTE = Place(0).magazine


class OutOfMemoryError(Exception):
    """There are more ranges than the allocator has memory for."""


def put_right(state: State, event: int, i: int, cpu: int, answer: int) -> str:
    """Give mapping `i` the kernel's pfn.

    Args:
        state: is changed accordingly.
        event: the map's event.
        i: the mapping.
        cpu: its CPU.
        answer: what our allocator would give.

    Returns:
        The reason.
    """
    reason = _from_magazine(state, event, i, cpu, answer) or _from_ring(state, i)
    if not reason:
        if _runs_out(state, i, cpu, answer & 7):
            return RAN_OUT
        reason = _from_tree(state, i)
    if reason != MAGAZINE:
        state.hand_out(i)
    return reason


# --- the caches -----------------------------------------------------------------------------------------------------


def _from_magazine(state: State, event: int, i: int, cpu: int, answer: int) -> str:
    allocator, pfn, pages = state.allocator, state.log.pfn[i], state.log.pages[i]
    given, source, order = answer >> 3, answer & 7, order_of(pages)
    place = allocator.find(pfn, order)
    if not place.source:
        return ""
    if place.source == source and place.magazine in ((PREV, cpu), (DEPOT, 0)):
        # As an allocation does it, load that magazine first.
        allocator.step(steps.ALLOC, pages, cpu=cpu)
        allocator.step(steps.PUSH, order, given, cpu=cpu)
        place = allocator.find(pfn, order)
    if place.magazine == (LOADED, cpu):
        return _take_deeper(state, event, i, cpu, place)
    return _take_elsewhere(state, i, cpu, place, given, source)


def _take_deeper(state: State, event: int, i: int, cpu: int, place: Place) -> str:
    """From under others in this CPU's own magazine."""
    log, allocator, order = state.log, state.allocator, order_of(state.log.pages[i])
    above = [allocator.step(steps.AT, order, place.at_depth(depth).code) for depth in range(place.depth)]
    if _was_interrupted(state, event, i, cpu, above):
        reason = INTERRUPTED
    elif state.is_lazy and all(state.freed_by_two(log.pfn[i], pfn) for pfn in above):
        reason = FREED_OTHERWISE
    else:
        reason = DEEPER
        soon = log.next_pfns(cpu, order, i, _SOON + place.depth)
        if state.is_lazy and set(soon).isdisjoint(above):
            allocator.step(steps.SINK, order, place.code)
            place, reason = place.at_depth(0), SHIFTED
    allocator.step(steps.TAKE, order, place.code)
    return reason


def _was_interrupted(state: State, event: int, i: int, cpu: int, above: list[int]) -> bool:
    """What lies above was freed in an interrupt since this CPU's task was last seen, or is that task's next."""
    log = state.log
    last = state.last_task_event.get(cpu, -1)
    freed = [state.freed_by.get(pfn, -1) for pfn in above]
    if not log.irq[event] and all(e > last and log.irq[e] and log.cpu[e] == cpu for e in freed):
        return True
    later = [m for m in log.next_on(cpu, i, 2 * VOTERS) if not log.irq[log.map_event[m]]][:1]
    return log.irq[event] and bool(later) and above == [log.pfn[later[0]]]


def _take_elsewhere(state: State, i: int, cpu: int, place: Place, given: int, source: int) -> str:
    """From a magazine that is not this CPU's next; what we would have given stays, or comes there instead."""
    log, allocator, order = state.log, state.allocator, order_of(state.log.pages[i])
    reason = ELSEWHERE
    if source in (LOADED, PREV):
        if state.votes(i, cpu, order)[place.magazine] >= MAJORITY:
            allocator.step(steps.EXCHANGE, order, place.code, allocator.find(given, order).code)
            if state.allocates(i, cpu):
                return MAGAZINE
            place = allocator.find(log.pfn[i], order)
        elif state.is_lazy and state.freed_by_two(log.pfn[i], given):
            reason = FREED_OTHERWISE
        if given in log.next_pfns(cpu, order, i, _SOON) and _take_and_refill(state, order, place, cpu, source):
            return reason
    allocator.step(steps.ALLOC, log.pages[i], cpu=cpu)
    allocator.step(steps.TAKE, order, allocator.find(log.pfn[i], order).code, given)
    return reason


def _take_and_refill(state: State, order: int, place: Place, cpu: int, source: int) -> bool:
    """Take from a place, this CPU's next staying where it is; a depot's magazine is filled from this CPU's bottom."""
    allocator = state.allocator
    if place.source != DEPOT:
        allocator.step(steps.TAKE, order, place.code)
        return True
    top = Place(source | cpu << 3)
    count = allocator.step(steps.COUNT, order, top.code)
    if count < 2:
        return False
    bottom = top.at_depth(count - 1)
    allocator.step(steps.TAKE, order, place.code, allocator.step(steps.AT, order, bottom.code))
    allocator.step(steps.TAKE, order, bottom.code)
    return True


def _runs_out(state: State, i: int, cpu: int, source: int) -> bool:
    """Whether this CPU's magazines, emptied, let the tree give the kernel's pfn: its next come from there."""
    log, allocator, order = state.log, state.allocator, order_of(state.log.pages[i])
    if source not in (LOADED, PREV, DEPOT):
        return False
    pfns = [log.pfn[i], *log.next_pfns(cpu, order, i, VOTERS - 1)]
    downwards = sum(a > b for a, b in pairwise(pfns))
    if downwards < MAJORITY or state.votes(i, cpu, order)[_IN_TREE_VOTE] < MAJORITY:
        return False
    with_depot = source == DEPOT or allocator.depot_size(order) <= _FEW
    allocator.step(steps.EMPTY, order, int(with_depot), cpu=cpu)
    return state.allocates(i, cpu)


# --- the queue and the tree -----------------------------------------------------------------------------------------


def _from_ring(state: State, i: int) -> str:
    pfn = state.log.pfn[i]
    for ring in state.allocator.rings:
        entry = state.allocator.step(steps.RING_FIND, ring, pfn)
        if entry >= 0:
            state.allocator.step(steps.RING_DROP, ring, entry)
            return QUEUED_OTHERWISE if _queued_at_a_flush(state, pfn) else QUEUED
    return ""


def _queued_at_a_flush(state: State, pfn: int) -> bool:
    """Whether its unmap and another CPU's flush lie so near that they may have been logged in the other order."""
    log, event = state.log, state.freed_by.get(pfn, -1)
    return event >= 0 and any(
        cpu != log.cpu[event] and abs(log.time_ns[flush] - log.time_ns[event]) < NEAR_NS
        for cpu, flush in state.last_flush.items()
    )


def _from_tree(state: State, i: int) -> str:
    allocator, pfn, size = state.allocator, state.log.pfn[i], rounded(state.log.pages[i])
    reason, holes = IN_TREE, []
    if not allocator.step(steps.TREE_FREE, pfn, size):
        reason = IN_USE
        holes = _make_free(state, pfn, size)
    if not allocator.step(steps.TREE_TAKE, pfn, size, 1):
        raise OutOfMemoryError
    for hole, hole_size in holes:
        order = order_of(hole_size)
        allocator.step(steps.TAKE, order, allocator.find(hole, order).code, allocator.step(steps.TREE_ALLOC, hole_size))
    return reason


def _make_free(state: State, pfn: int, size: int) -> list[tuple[int, int]]:
    """Give back to the tree what lies in caches and queues of a range that the kernel found free.

    Returns:
        (placeholder, size) of what lies in the depot, whose magazines must stay full, until it is replaced.
    """
    allocator = state.allocator
    holes: list[tuple[int, int]] = []
    while found := allocator.step(steps.RANGE_IN, pfn, size):
        at, at_size = found >> 20, found & 0xFFFFF
        order = order_of(at_size)
        place = allocator.find(at, order)
        instead = 0
        if place.source == DEPOT:
            instead = -len(holes) - 1
            holes.append((instead, at_size))
        if place.source:
            allocator.step(steps.TAKE, order, place.code, instead)
        for ring in allocator.rings:
            entry = allocator.step(steps.RING_FIND, ring, at)
            if entry >= 0:
                allocator.step(steps.RING_DROP, ring, entry)
        allocator.step(steps.TREE_GIVE, at)
    return holes
