"""A machine on virtual clocks: its CPUs, timer and servers are fibers in this one thread, and live the same lives.

What takes time moves a fiber's clock by what it costs; what waits, waits in virtual time. A run is a function of its
description alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.hypervisor.state import request_t
from emu.machine.context import SLOT_WAITERS, STOP, control_t, virtual_cpu_t
from emu.machine.control_socket import ControlSocket
from emu.machine.cpu import live_as_cpu
from emu.machine.device import live_as_device
from emu.machine.event_writer import EventSink
from emu.machine.hypervisor import live_as_server
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine, virtual_store_type, virtual_unbind_driver
from emu.machine.operator import Operator
from emu.machine.policy import Policy, entry_for
from emu.machine.saboteur import Nobody, Saboteur
from emu.machine.sampler import Sampler
from emu.machine.sysfs import Sysfs
from emu.machine.timeline import Timeline
from emu.machine.timer import live_as_timer
from emu.native.clock import clock_ns
from emu.native.compile import entry, inline
from emu.native.events import event_ring_t
from emu.native.record import deref, element, pointer_to
from emu.native.stack import Stacks
from emu.native.virtual import NEVER_PS, PS, START_PS, end_fiber, give_turn, run_world, wake_first, world_t
from emu.workload.program import OP_UNMAP

_ASK_NS = 50_000_000
_FEWEST_TURNS = 256
_TURNS = 1 << 17
"""Between two looks at the user: some ten milliseconds of turns in which not much is to do."""
_STARVED_PS = 10**12
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
def virtual_device_main(context: int) -> int:
    """Fiber of a device."""
    cpu = deref(virtual_cpu_t, context)
    live_as_device(cpu)
    end_fiber(cpu)
    return 0


@inline
def _should_be_emptied(rings: int, count: int) -> bool:
    for i in range(count):
        ring = element(event_ring_t, rings, i)
        if (ring.tail - ring.head) << 1 > ring.mask:
            return True
    return False


@entry
def advance(world: int, until_ps: int, turns: int, rings: int, count: int) -> int:
    """Let the machine run until all clocks have passed `until_ps`, a fiber ends, a ring is half full, or some turns.

    Args:
        world: address of the world_t.
        until_ps: on the virtual clocks.
        turns: how many at most, about.
        rings: address of the `count` rings of events; in a turn a fiber notes four things at most, as a rule.
        count: of rings.

    Returns:
        1 when time is left.
    """
    fibers = deref(world_t, world)
    ended = fibers.ended
    slice_turns = max((element(event_ring_t, rings, 0).mask + 1) >> 3, _FEWEST_TURNS)
    ask_at_ns = clock_ns() + _ASK_NS
    for _ in range(0, turns, slice_turns):
        if not run_world(fibers, until_ps, slice_turns):
            return 0
        # Who has ended may be the last CPU, after which nobody else may have another turn before the machine stops.
        if fibers.ended != ended or _should_be_emptied(rings, count) or clock_ns() > ask_at_ns:
            break
    return 1


@entry
def wake_sleepers(world: int, address: int, at_ps: int) -> int:
    """Wake all who sleep on a word."""
    woken = 0
    while wake_first(deref(world_t, world), address, at_ps):
        woken += 1
    return woken


@entry
def let_run(world: int, slot: int, at_ps: int) -> int:
    """Give a fiber that has nothing to do a turn at a time."""
    give_turn(deref(world_t, world), slot, at_ps)
    return 0


def virtual_entries(policy: Policy | None) -> tuple[Any, ...]:
    """All entries that a simulation calls, or its fibers begin with."""
    return (
        entry_for(policy, virtual_cpu_main),
        entry_for(policy, virtual_timer_main),
        virtual_hypervisor_main,
        virtual_store_type,
        virtual_unbind_driver,
        advance,
        wake_sleepers,
        let_run,
    )


@dataclass(slots=True)
class Fiber:
    """One of the machine's: what a recording needs to know of it."""

    name: str
    exit: int | None = None


class Simulation:
    """The running machine.

    Attributes:
        members: its fibers, in the order of their contexts.
        operator: who changes it while it runs.
        died: who waits for ever, which only a bug can bring about, or None.
        interrupted: whether a signal has asked to stop.
    """

    def __init__(
        self,
        layout: Layout,
        events: EventSink,
        on_progress: Callable[[float], None],
        on_event: Callable[[str, dict[str, Any]], None] = lambda _event, _values: None,
        socket: ControlSocket | None = None,
    ) -> None:
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
        self._own_context = layout.segment.address("contexts", layout.supervisor)
        self._stacks = Stacks(layout.supervisor)
        self._writer = Stacks(1)
        self._rings = (layout.segment.address("event_rings"), layout.first_device)
        self._abort_at = float("inf")
        self._done, self._done_at_ps = -1, 0
        self._socket = socket or ControlSocket(None)
        sysfs = Sysfs(layout, self._left, self._wake_resting, self)
        self.operator = Operator(sysfs, Timeline(layout.config.machine.timeline), self._socket, on_event)
        self.saboteur = Saboteur(layout, Nobody(), on_event, events.fill_disk)
        self._sampler = Sampler(layout, on_event, layout.load_seconds)

    @property
    def deaths(self) -> list[dict[str, Any]]:
        """Fibers do not die."""
        return []

    @property
    def can_be_taken_down(self) -> bool:
        """Whether what is left of the machine is whole, so that its books can be made."""
        return not self.died

    def run(self) -> None:
        """From the first operation to the end of the last fiber."""
        layout, segment = self.layout, self.layout.segment
        init_machine(self._own_context)
        self._world.main_stack = self._stacks.main()
        for slot in range(layout.supervisor):
            segment["fibers"][slot].stack = self._stacks.begin(self._main_of(slot), segment.address("contexts", slot))
        # The supervisor's clock never moves on by itself.
        segment["turns"]["at_ps"][layout.supervisor] = NEVER_PS
        self._control.go = 1
        with self._socket:
            self._run_load()
        self._stop()
        self._stacks.close()

    def _main_of(self, slot: int) -> Any:
        if slot < self.layout.cpus:
            return entry_for(self.layout.policy, virtual_cpu_main)
        if slot >= self.layout.first_device:
            return virtual_device_main
        timer_main = entry_for(self.layout.policy, virtual_timer_main)
        return timer_main if slot == self.layout.timer else virtual_hypervisor_main

    def _run_load(self) -> None:
        """Until the time is over, all programs have ended, or the user wants to stop."""
        seconds = self.layout.load_seconds
        until_ps = NEVER_PS if seconds is None else START_PS + round(seconds * 1e9) * PS
        while self._now_ps < until_ps and not (
            self.interrupted or self._finished(0, self.layout.cpus) or self._is_stuck()
        ):
            now_s = (self._now_ps - START_PS) / 1e12
            soon_s = min(
                self.operator.work(now_s),
                self.saboteur.work(now_s, self._fraction(until_ps)),
                self._sampler.work(now_s),
            )
            # An action is never early, so it is waited for to the ps.
            soon_ps = self._now_ps + math.ceil(soon_s * 1e12) if soon_s < math.inf else NEVER_PS
            look_ps = self._now_ps + _STARVED_PS // 4 if self.saboteur.starves else NEVER_PS
            self._advance(min(until_ps, soon_ps, look_ps))
            if self._is_starving():
                break
            self._on_progress(self._fraction(until_ps))
        self._on_progress(1.0)

    def _is_starving(self) -> bool:
        """Whether a fault leaves CPUs without an answer for ever: for a second nothing has been done by anybody."""
        if not self.saboteur.starves:
            return False
        done = int(self._contexts["ctrs"]["unmaps"].sum()) + int(self.layout.segment["servers"]["requests"].sum())
        if done != self._done:
            self._done, self._done_at_ps = done, self._latest_ps
        elif self._now_ps - self._done_at_ps > _STARVED_PS:
            waiting = np.flatnonzero(self._contexts["finished"][: self.layout.cpus] == 0)
            names = ", ".join(self.layout.name_of(int(slot)) for slot in waiting)
            self.died = f"{names} waits for ever for an answer of the hypervisor"
            self._abort()
            return True
        return False

    @property
    def _now_ps(self) -> int:
        """The clock that is furthest behind."""
        return int(self.layout.segment["turns"]["at_ps"][0])

    def store_type(self, function: int, req_type: int) -> int:
        """Write a type to the sysfs file of a function's group, in virtual time; 0 or -errno."""
        self.layout.segment["group"][0].requested_of = function
        return self._write(virtual_store_type, req_type)

    def unbind_driver(self) -> None:
        """Take the driver from the device; CPUs and timer rest."""
        self._write(virtual_unbind_driver, self.layout.segment.address("teardown"))

    def _write(self, function: Any, requested: int) -> int:
        """Run the supervisor's fiber, and meanwhile all others as far as its time goes."""
        slot, segment = self.layout.supervisor, self.layout.segment
        group, now_ps = segment["group"][0], self._now_ps
        group.requested = requested
        segment["fibers"][slot].now_ps = now_ps
        segment["fibers"][slot].stack = self._writer.begin(function, self._own_context)
        self._contexts["finished"][slot] = 0
        let_run(pointer_to(self._world), slot, now_ps)
        self._run_until_finished(slot, slot + 1)
        self._writer.close()
        return int(group.requested)

    def _left(self) -> list[int]:
        return [slot for slot in range(self.layout.supervisor) if not self._contexts["finished"][slot]]

    def _wake_resting(self) -> None:
        self._wake_slots()
        self._wake(self.layout.segment.address("timer_base"))
        self._wake(self.layout.segment.address("control") + control_t.fields["go"][1])  # type: ignore[index]

    def _advance(self, until_ps: int) -> bool:
        """Some turns; no result depends on how many."""
        time_left = advance(pointer_to(self._world), until_ps, _TURNS, *self._rings)
        self._events.drain()
        return bool(time_left)

    def _finished(self, first: int, last: int) -> bool:
        return bool(self._contexts["finished"][first:last].all())

    def _fraction(self, until_ps: int) -> float:
        if until_ps < NEVER_PS:
            return min((self._now_ps - START_PS) / (until_ps - START_PS), 1.0)
        unmaps = float(self._contexts["ctrs"]["unmaps"][: self.layout.cpus].sum())
        wanted = self.config.machine.ops or sum(
            int((p.ops["code"] == OP_UNMAP).sum()) for p in self.layout.workload.programs
        )
        return min(unmaps / max(wanted, 1), 1.0)

    def _stop(self) -> None:
        """CPUs first, then the timer, which may need the hypervisor, then the hypervisor."""
        layout, segment = self.layout, self.layout.segment
        self._control.stop = STOP
        self._abort_at = time.monotonic() + _PATIENCE_S
        self._wake_resting()
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
        until_ps = self._latest_ps + _STARVED_PS if self.saboteur.starves else NEVER_PS
        while not self._finished(first, last):
            if self.interrupted and not self._control.abort and time.monotonic() > self._abort_at:
                self._abort()
            time_left = self._advance(until_ps)
            if until_ps < NEVER_PS and self._now_ps >= until_ps:
                # Whoever waits for an answer that a fault has taken away does not get it any more.
                self._abort()
                until_ps, time_left = NEVER_PS, True
            if not self._finished(first, last) and (self._is_stuck() or not time_left):
                waiting = first + int(np.argmin(self._contexts["finished"][first:last]))
                self.died = self.died or f"{self.layout.name_of(waiting)} waits for ever"
                return

    def _is_stuck(self) -> bool:
        """Whether the CPUs that are left wait without a time-out, and nobody is at work who could wake one."""
        segment, cpus = self.layout.segment, self.layout.cpus
        # A device wakes nobody.
        left = np.flatnonzero(self._contexts["finished"][: self.layout.first_device] == 0)
        until_ps = segment["turns"]["at_ps"][segment["turn_of"][left[left < cpus]]]
        return bool(len(until_ps) and (until_ps == NEVER_PS).all() and segment["fibers"]["waits_for"][left].all())

    def _abort(self) -> None:
        """Let nobody wait for the hypervisor any longer."""
        self._control.abort = 1
        state = request_t.fields["state"][1]  # type: ignore[index]
        for slot in range(self.layout.supervisor):
            self._wake(self.layout.segment.address("requests", slot) + state)

    def _wake(self, address: int) -> None:
        wake_sleepers(pointer_to(self._world), address, min(self._now_ps, self._latest_ps))

    def _wake_slots(self) -> None:
        for slot in np.flatnonzero(self.layout.segment["slots"]["state"] & SLOT_WAITERS):
            self._wake(self.layout.segment.address("slots", int(slot)))

    @property
    def _latest_ps(self) -> int:
        """Where the clock stands that is furthest ahead: the time when everybody waits or has ended."""
        return int(self.layout.segment["fibers"]["now_ps"].max())
