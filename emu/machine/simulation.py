"""A machine on virtual clocks: its CPUs, timer and servers are fibers in this one thread, and live the same lives.

What takes time moves a fiber's clock by what it costs; what waits, waits in virtual time. A run is a function of its
description alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.machine.context import SLOT_WAITERS, virtual_cpu_t
from emu.machine.cpu import live_as_cpu
from emu.machine.event_writer import EventSink
from emu.machine.hypervisor import live_as_server
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine
from emu.machine.timer import live_as_timer
from emu.native.compile import entry
from emu.native.record import deref
from emu.native.stack import Stacks
from emu.native.virtual import NEVER_PS, PS, START_PS, end_fiber, run_world, wake_first, world_t
from emu.workload.program import OP_UNMAP

_TURNS = 20_000
"""Between two looks at the user and at the event rings: a CPU records one event in a turn, and a ring holds more."""


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
        died: nobody ever does.
        interrupted: whether a signal has asked to stop.
    """

    died: str | None = None

    def __init__(self, layout: Layout, events: EventSink, on_progress: Callable[[float], None]) -> None:
        self.layout = layout
        self.config = layout.config
        self.members = [Fiber(layout.name_of(slot)) for slot in range(layout.supervisor)]
        self.interrupted = False
        self._events = events
        self._on_progress = on_progress
        self._control = layout.segment["control"][0]
        self._contexts = layout.segment["contexts"]
        self._world = layout.segment.address("world")
        self._stacks = Stacks(layout.contexts)

    def run(self) -> None:
        """From the first operation to the end of the last fiber."""
        layout, segment = self.layout, self.layout.segment
        init_machine(segment.address("contexts", layout.supervisor))
        segment["world"][0].main_stack = self._stacks.main()
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
        while time_left and not self.interrupted and not self._finished(0, self.layout.cpus):
            time_left = self._advance(until_ps)
            self._on_progress(self._fraction(until_ps))
        self._on_progress(1.0)

    def _advance(self, until_ps: int) -> bool:
        time_left = advance(self._world, until_ps, _TURNS)
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
        for slot in np.flatnonzero(segment["slots"]["state"] & SLOT_WAITERS):
            self._wake(segment.address("slots", int(slot)))
        self._run_until_finished(0, layout.cpus)
        self._control.cpus_retired = 1
        self._wake(segment.address("timer_base"))
        self._run_until_finished(layout.timer, layout.timer + 1)
        self._control.timer_retired = 1
        self._wake(segment.address("hypervisor") + segment["hypervisor"].dtype.fields["doorbell"][1])
        self._run_until_finished(layout.first_server, layout.supervisor)
        for member in self.members:
            member.exit = 0

    def _run_until_finished(self, first: int, last: int) -> None:
        while not self._finished(first, last) and self._advance(NEVER_PS):
            pass

    def _wake(self, address: int) -> None:
        wake_sleepers(self._world, address, int(self.layout.segment["turns"]["at_ps"][0]))
