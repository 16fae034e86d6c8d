"""What becomes of a machine when one of its processes dies: repaired, gone on without it, started anew, or stopped.

The supervisor finds the dead one's locks by its name in them, repairs what they guard, publishes the death, and wakes
those who wait: they take the locks over. Then the description decides: `restart` starts a process of the same role
anew, `on_death = "continue"` goes on without a CPU, as after its hot-unplug, and otherwise the machine stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.hypervisor.state import NO_TICKET, REQUEST_POSTED, REQUEST_WAITERS
from emu.iommu.flush_queue import FLUSH_COUNTING, FLUSH_NONE
from emu.machine.bury import (
    bury,
    count_abandoned,
    death_t,
    give_back_orphan,
    post_for_the_dead,
    tend_timers,
)
from emu.machine.functions import Function
from emu.machine.layout import Layout
from emu.machine.lock_names import LOCK_NAMES, lock_name
from emu.native.lock import SLOT_BITS, spinlock_t
from emu.native.record import deref
from emu.workload.program import OP_FAIL, OP_MAP, OP_UNMAP

_TEND_S = 0.02
_SLOT_OPS = (OP_MAP, OP_UNMAP, OP_FAIL)


@dataclass(slots=True)
class _Orphan:
    """A lock whose owner has died and that nobody has taken over yet."""

    lock: Any
    recovered: int
    noticed_after_ns: int
    handovers: list[dict[str, Any]]
    name: str


class Recovery:
    """Deaths of one machine, and what was done about them.

    Args:
        layout: the machine's memory.
        on_event: told of each death: event, values.

    Attributes:
        deaths: each as in summary.json.
    """

    def __init__(self, layout: Layout, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self.deaths: list[dict[str, Any]] = []
        self._layout = layout
        self._on_event = on_event
        self._context = layout.segment.address("contexts", layout.supervisor)
        self._contexts = layout.segment["contexts"]
        self._orphans: list[_Orphan] = []
        self._arming = [0] * len(layout.functions)
        self._uncounted: set[int] = set()
        self._holes_at = -1
        self._tend_at = float("inf")

    @property
    def is_whole(self) -> bool:
        """Whether all that the dead left has been repaired."""
        return not any(LOCK_NAMES["bitmap"] in death["held"] for death in self.deaths)

    def bury(self, slot: int, cause: str, at_s: float | None, killed: tuple[int, str] | None) -> dict[str, Any]:
        """Repair what a process left that has died, publish its death, and note it.

        Args:
            slot: of the dead.
            cause: "was killed by SIGKILL".
            at_s: since the start of the load; None before it and after it.
            killed: when (ns) and by which fault it was killed, if it was one.

        Returns:
            The death, whose `recovered` and `then` the caller sets.
        """
        layout, noticed_ns = self._layout, time.monotonic_ns()
        found = np.zeros(1, death_t).view(np.recarray)
        bury(self._context, layout.segment.address("contexts", slot), found.ctypes.data)
        record = found[0]
        names = [name for kind, name in LOCK_NAMES.items() for _ in range(int(record[kind]))]
        death: dict[str, Any] = {
            "role": layout.name_of(slot),
            "pid": int(self._contexts[slot].pid),
            "cause": cause,
            "at_s": None if at_s is None else round(at_s, 6),
            "fault": killed[1] if killed else None,
            "held": names,
            "flush_under_way": bool(record.flush_step),
            "noticed_after_ns": max(noticed_ns - killed[0], 0) if killed else None,
            "handovers": [],
            "recovered": False,
            "then": "",
        }
        for address in record.locks[: int(record.held)]:
            lock = deref(spinlock_t, int(address))
            self._orphans.append(
                _Orphan(
                    lock,
                    int(lock.recovered),
                    death["noticed_after_ns"] or 0,
                    death["handovers"],
                    lock_name(int(lock.id)),
                )
            )
        if int(record.flush_step) == FLUSH_COUNTING:
            self._uncounted.add(int(self._contexts[slot].function))
        if slot < layout.cpus:
            layout.segment["control"][0].offline += 1
        self._tend_at = 0.0
        self.deaths.append(death)
        return death

    def note(self, death: dict[str, Any], *, recovered: bool, then: str) -> None:
        """Say what became of the machine after a death."""
        death["recovered"], death["then"] = recovered, then
        self._on_event("process_died", dict(death))

    def tend(self, living: Iterable[int]) -> None:
        """Look after what the dead may have left half-done where no lock shows it; called now and then.

        Args:
            living: slots of the processes that run.
        """
        self._note_handovers()
        now_s = time.monotonic()
        if now_s < self._tend_at or not self.deaths:
            return
        self._tend_at = now_s + _TEND_S
        self._arming = [tend_timers(self._context, number, arming) for number, arming in enumerate(self._arming)]
        slots = [slot for slot in living if slot <= self._layout.timer]
        for number in sorted(self._uncounted):
            self._count_flushes(number, slots)
        self._fill_hole(slots)

    def finish(self) -> None:
        """After the last process has ended: what the dead had in hand of the allocator's magazines goes back."""
        self._note_handovers()
        if not self.deaths:
            return
        for function in self._layout.functions:
            if not function.is_legacy:
                for magazine in self._orphaned_magazines(function):
                    give_back_orphan(self._context, function.number, magazine)

    def stops_for(self, slot: int, death: dict[str, Any], living: Iterable[int]) -> str | None:
        """Why the machine cannot go on without a CPU, or None."""
        if LOCK_NAMES["bitmap"] in death["held"]:
            return f"it held {LOCK_NAMES['bitmap']}, whose bitmaps may be half-written and are not repaired"
        if not any(other < self._layout.cpus for other in living):
            return "no CPU is left"
        if self._shares_slots(slot):
            return "other CPUs wait for its mappings, as their loads share them"
        return None

    def was_in_command_queue(self, slot: int) -> bool:
        """Whether a process died while it had a flush in the command queue, or was about to."""
        hv, request = self._layout.segment["hypervisor"][0], self._layout.segment["requests"][slot]
        return bool(hv.cmdq) and int(request.state) == REQUEST_POSTED

    def _note_handovers(self) -> None:
        for orphan in list(self._orphans):
            if int(orphan.lock.recovered) > orphan.recovered:
                self._orphans.remove(orphan)
                orphan.handovers.append(
                    {
                        "lock": orphan.name,
                        "ticks": int(orphan.lock.handover),
                        "noticed_after_ns": orphan.noticed_after_ns,
                    }
                )

    def _shares_slots(self, slot: int) -> bool:
        programs = self._layout.workload.programs
        mine = np.unique(_slots_of(programs[slot].ops))
        return any(np.isin(mine, _slots_of(program.ops)).any() for i, program in enumerate(programs) if i != slot)

    def _count_flushes(self, number: int, living: list[int]) -> None:
        """Where nobody flushes a function's domain, what has started and not finished was the dead one's."""
        cookie = self._layout.segment["domain"][number].cookie
        started = int(cookie.fq_flush_start_cnt.counter)
        flushed_before = self._flushes(number, living)
        missing = started - int(cookie.fq_flush_finish_cnt.counter) - int(cookie.fq_abandoned)
        if flushed_before or self._flushes(number, living) or int(cookie.fq_flush_start_cnt.counter) != started:
            return
        self._uncounted.discard(number)
        if missing > 0:
            count_abandoned(self._context, number, missing)

    def _flushes(self, number: int, living: list[int]) -> bool:
        """Whether somebody is in a flush for a function; the timer says for which before it begins."""
        for_it = self._contexts["function"][living] == number
        return bool((for_it & (self._contexts["flush_step"][living] != FLUSH_NONE)).any())

    def _fill_hole(self, living: list[int]) -> None:
        """A place of the hypervisor's queue that stays empty was taken by a CPU that died before it had filled it."""
        hv, segment = self._layout.segment["hypervisor"][0], self._layout.segment
        head, tail = int(hv.head), int(hv.tail)
        position = head & int(hv.ring_mask)
        if hv.is_inline or hv.cmdq or head == tail or int(segment["request_ring"][position]) >> SLOT_BITS == head:
            self._holes_at = -1
            return
        if self._holes_at != head:
            # Whoever is about to fill it has time until the next look.
            self._holes_at = head
            return
        living_ones = [slot for slot in living if self._is_posting(slot, head)]
        dead = [slot for slot in range(self._layout.timer + 1) if int(segment["dead_generation"][slot])]
        for slot in dead:
            if not living_ones and self._is_posting(slot, head):
                segment["requests"][slot].ticket = head
                post_for_the_dead(self._context, position, head << SLOT_BITS | (slot + 1))
                return

    def _is_posting(self, slot: int, head: int) -> bool:
        """Whether a process may have taken this place in the queue and not filled it yet."""
        request = self._layout.segment["requests"][slot]
        return int(request.state) & ~REQUEST_WAITERS == REQUEST_POSTED and int(request.ticket) in (NO_TICKET, head)

    def _orphaned_magazines(self, function: Function) -> list[int]:
        """Addresses of a function's magazines that belong to no CPU, no depot and not to the pool."""
        segment, number = self._layout.segment, function.number
        begin = self._layout.functions.first(number, lambda other: other.magazines)
        magazines, first = segment["magazines"][begin : begin + function.magazines], segment.address("magazines", begin)
        size = magazines.dtype.itemsize
        found = np.zeros(len(magazines), bool)
        rcaches, cpu_rcaches = (_part_of(segment[name], number, self._layout) for name in ("rcaches", "cpu_rcaches"))
        for name in ("loaded", "prev"):
            held = cpu_rcaches[name]
            found[(held[held > 0] - first) // size] = True
        domain = segment["domain"][number]
        tops = (int(domain.cookie.iovad.free_magazines), *(int(rcache.depot) for rcache in rcaches))
        for top in tops:
            address = top
            while address:
                index = (address - first) // size
                found[index] = True
                address = int(magazines[index].next)
        lost = np.flatnonzero(~found & (magazines["count"] > 0))
        return [first + int(index) * size for index in lost]


def _part_of(array: Any, number: int, layout: Layout) -> Any:
    """A function's part of an array in which all parts are as long."""
    length = len(array) // len(layout.functions)
    return array[number * length : (number + 1) * length]


def _slots_of(ops: Any) -> Any:
    return ops["slot"][np.isin(ops["code"], _SLOT_OPS)]
