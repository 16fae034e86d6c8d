"""A machine on virtual clocks: its CPUs, timer and servers are fibers in this one thread, and live the same lives.

What takes time moves a fiber's clock by what it costs; what waits, waits in virtual time. A run is a function of its
description alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.hypervisor.state import request_t
from emu.machine.context import SLOT_WAITERS, virtual_cpu_t
from emu.machine.cpu import live_as_cpu
from emu.machine.event_writer import EventWriter
from emu.machine.hypervisor import live_as_server
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine
from emu.machine.timer import live_as_timer
from emu.native.compile import entry
from emu.native.record import deref, pointer_to
from emu.native.stack import Stacks
from emu.native.virtual import NEVER_PS, PS, START_PS, end_fiber, run_world, wake_first, world_t
from emu.workload.program import OP_UNMAP

_TURNS = 1 << 17
"""Between two looks at the user: some ten milliseconds of turns in which not much is to do."""
_PATIENCE_S = 0.25
"""How long an interrupted machine may take to serve what is under way."""


@entry
def virtual_cpu_main(context: int) -> int:
    """Fiber of an emulated CPU."""
    cpu = deref(virtual_cpu_t, context)
    live_as_cpu(cpu)
    end_fiber(cpu)
    return 0


@entry
def virtual_timer_main(context: int) -> int:
    """Fiber of the timer."""
    cpu = deref(virtual_cpu_t, context)
    live_as_timer(cpu)
    end_fiber(cpu)
    return 0


@entry
def virtual_hypervisor_main(context: int) -> int:
    """Fiber of one server of the hypervisor."""
    cpu = deref(virtual_cpu_t, context)
    live_as_server(cpu)
    end_fiber(cpu)
    return 0


@entry
def advance(world: int, until_ps: int, turns: int) -> int:
    """Let the machine run until all its clocks have passed `until_ps`, or for some turns; 1 when time is left."""
    return 1 if run_world(deref(world_t, world), until_ps, turns) else 0


@entry
def wake_sleepers(world: int, address: int, at_ps: int) -> int:
    """Wake all who sleep on a word."""
    woken = 0
    while wake_first(deref(world_t, world), address, at_ps):
        woken += 1
    return woken


VIRTUAL_ENTRIES = (virtual_cpu_main, virtual_timer_main, virtual_hypervisor_main, advance, wake_sleepers)


@dataclass(slots=True)
class Fiber:
    """One of the machine's: what a recording needs to know of it."""

    name: str
    exit: int | None = None


class Simulation:
    """The running machine.

    Attributes:
        members: its fibers, in the order of their contexts.
        died: who waits for ever, which only a bug can bring about, or None.
        interrupted: whether a signal has asked to stop.
    """

    def __init__(self, layout: Layout, events: EventWriter, on_progress: Callable[[float], None]) -> None:
        self.layout = layout
        self.config = layout.config
        self.members = [Fiber(layout.name_of(slot)) for slot in range(layout.supervisor)]
        self.died: str | None = None
        self.interrupted = False
        self._events = events
        self._on_progress = on_progress
        self._control = layout.segment["control"][0]
        self._contexts = layout.segment["contexts"]
        self._world = layout.segment["world"][0]
        self._stacks = Stacks(layout.contexts)
        # A CPU records one event in a turn at most, and its ring is emptied in between.
        self._turns = layout.events_per_cpu if self.config.machine.record else _TURNS
        self._abort_at = float("inf")

    def run(self) -> None:
        """From the first operation to the end of the last fiber."""
        layout, segment = self.layout, self.layout.segment
        init_machine(segment.address("contexts", layout.supervisor))
        self._world.main_stack = self._stacks.main()
        for slot in range(layout.supervisor):
            segment["fibers"][slot].stack = self._stacks.begin(self._main_of(slot), segment.address("contexts", slot))
        # The supervisor's clock never moves on by itself.
        segment["turns"]["at_ps"][layout.supervisor] = NEVER_PS
        self._control.go = 1
        self._run_load()
        self._stop()
        self._stacks.close()

    def _main_of(self, slot: int) -> Any:
        if slot < self.layout.cpus:
            return virtual_cpu_main
        return virtual_timer_main if slot == self.layout.timer else virtual_hypervisor_main

    def _run_load(self) -> None:
        """Until the time is over, all programs have ended, or the user wants to stop."""
        timed = self.config.machine.ops is None and any(p.repeats for p in self.layout.workload.programs)
        until_ps = START_PS + round(self.config.machine.seconds * 1e9) * PS if timed else NEVER_PS
        time_left = True
        while time_left and not (self.interrupted or self._finished(0, self.layout.cpus) or self._is_stuck()):
            time_left = self._advance(until_ps)
            self._on_progress(self._fraction(until_ps))
        self._on_progress(1.0)

    def _advance(self, until_ps: int) -> bool:
        """Some turns; no result depends on how many."""
        time_left = advance(pointer_to(self._world), until_ps, self._turns)
        self._events.drain()
        return bool(time_left)

    def _finished(self, first: int, last: int) -> bool:
        return bool(self._contexts["finished"][first:last].all())

    def _fraction(self, until_ps: int) -> float:
        if until_ps < NEVER_PS:
            behind_ps = int(self.layout.segment["turns"]["at_ps"][0]) - START_PS
            return min(behind_ps / (until_ps - START_PS), 1.0)
        unmaps = float(self._contexts["ctrs"]["unmaps"][: self.layout.cpus].sum())
        wanted = self.config.machine.ops or sum(
            int((p.ops["code"] == OP_UNMAP).sum()) for p in self.layout.workload.programs
        )
        return min(unmaps / max(wanted, 1), 1.0)

    def _stop(self) -> None:
        """CPUs first, then the timer, which may need the hypervisor, then the hypervisor."""
        layout, segment = self.layout, self.layout.segment
        self._control.stop = 1
        self._abort_at = time.monotonic() + _PATIENCE_S
        for slot in np.flatnonzero(segment["slots"]["state"] & SLOT_WAITERS):
            self._wake(segment.address("slots", int(slot)))
        self._run_until_finished(0, layout.cpus)
        self._control.cpus_retired = 1
        self._wake(segment.address("timer_base"))
        self._run_until_finished(layout.timer, layout.timer + 1)
        self._control.timer_retired = 1
        self._wake(segment.address("hypervisor") + segment["hypervisor"].dtype.fields["doorbell"][1])
        self._run_until_finished(layout.first_server, layout.supervisor)
        for member, finished in zip(self.members, self._contexts["finished"], strict=False):
            member.exit = 0 if finished else None

    def _run_until_finished(self, first: int, last: int) -> None:
        while not self._finished(first, last):
            if self.interrupted and not self._control.abort and time.monotonic() > self._abort_at:
                self._abort()
            time_left = self._advance(NEVER_PS)
            if not self._finished(first, last) and (self._is_stuck() or not time_left):
                waiting = first + int(np.argmin(self._contexts["finished"][first:last]))
                self.died = self.died or f"{self.layout.name_of(waiting)} waits for ever"
                return

    def _is_stuck(self) -> bool:
        """Whether the CPUs that are left wait without a time-out, and nobody is at work who could wake one."""
        segment, cpus = self.layout.segment, self.layout.cpus
        left = np.flatnonzero(self._contexts["finished"][: self.layout.supervisor] == 0)
        until_ps = segment["turns"]["at_ps"][segment["turn_of"][left[left < cpus]]]
        return bool(len(until_ps) and (until_ps == NEVER_PS).all() and segment["fibers"]["waits_for"][left].all())

    def _abort(self) -> None:
        """Let nobody wait for the hypervisor any longer."""
        self._control.abort = 1
        state = request_t.fields["state"][1]  # type: ignore[index]
        for slot in range(self.layout.supervisor):
            self._wake(self.layout.segment.address("requests", slot) + state)

    def _wake(self, address: int) -> None:
        wake_sleepers(pointer_to(self._world), address, int(self.layout.segment["turns"]["at_ps"][0]))
