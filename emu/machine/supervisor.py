"""The supervisor: compiles, forks, starts all together, watches, stops, and reads what they left in the segment."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emu.config import Config, ConfigError, DomainType, MachineConfig, cores
from emu.iommu.domain import FQ_WARNING
from emu.machine.ambush import send_holding
from emu.machine.bury import BURIAL_ENTRIES
from emu.machine.context import ROLE_CPU, ROLE_DEVICE, ROLE_HYPERVISOR, ROLE_TIMER, SLOT_WAITERS, STOP, control_t
from emu.machine.control_socket import ControlSocket
from emu.machine.cpu import cpu_main
from emu.machine.crew import Crew, CrewError, Member, ProcessCrew, ThreadCrew
from emu.machine.device import device_main
from emu.machine.event_writer import EventCollector, EventSink, EventWriter
from emu.machine.function_recording import FunctionRecording, by_function, note_longest
from emu.machine.hypervisor import hypervisor_main
from emu.machine.layout import Layout
from emu.machine.lifecycle import init_machine, store_type, teardown_machine, unbind_driver
from emu.machine.operator import Operator
from emu.machine.policy import Policy, entry_for, policy_of
from emu.machine.recording import Recording, record
from emu.machine.recovery import Recovery
from emu.machine.saboteur import Nobody, Saboteur, Victims
from emu.machine.sampler import Sampler
from emu.machine.simulation import Simulation, virtual_device_main, virtual_entries
from emu.machine.sysfs import Sysfs
from emu.machine.timeline import Timeline
from emu.machine.timer import timer_main
from emu.native.compile import compile_entries
from emu.native.events import drain_ring, event_t
from emu.native.futex import EVERYONE, futex_wake
from emu.native.lock import owner_word
from emu.native.segment import SegmentError
from emu.workload.program import OP_UNMAP, Workload

_START_S = 60.0
_MEASURED_CPUS = 4
_END_S = 1.0
"""Where nothing is wrong, a process that has not ended may just not have been given a core."""
_ABORT_S = 0.25
_KILL_S = 0.15
_EXIT_S = 0.02
_BEAT_S = 0.05
_RECORDING_BEAT_S = 0.005
_STARVED_S = 1.0
"""Without a single map or request, where a fault can have that effect: longer than a process is stopped, usually."""


_MAIN_OF = {ROLE_CPU: cpu_main, ROLE_TIMER: timer_main, ROLE_HYPERVISOR: hypervisor_main, ROLE_DEVICE: device_main}
_ASKS_THE_POLICY = (ROLE_CPU, ROLE_TIMER)


class MachineError(Exception):
    """The machine cannot be started; the message is one line: what, where, what to do."""


@dataclass(slots=True)
class MachineRun:
    """What a machine left behind.

    Attributes:
        recording: everything that was counted and measured.
        switches: what was written to sysfs while the load ran, and what became of it, as in summary.json.
        died: "cpu 1 (pid 17) was killed by SIGKILL" when a process of the machine died, else None.
        interrupted: the user stopped it.
        deaths: of its processes, each as in summary.json.
        warnings: sentences for the user.
        functions: the same recording by function, where there are several.
    """

    recording: Recording
    switches: list[dict[str, Any]]
    died: str | None
    interrupted: bool
    deaths: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    functions: list[FunctionRecording] = field(default_factory=list)


def compile_machine(
    machine: MachineConfig,
    on_compile: Callable[[int, int], None] | None = None,
    policy: Policy | None = None,
) -> bool:
    """Compile what a machine runs, or load it from the cache; returns whether it had to be compiled.

    Raises:
        ConfigError: the policy's code cannot be compiled.
    """
    asking = (entry_for(policy, cpu_main), entry_for(policy, timer_main))
    real: tuple[Any, ...] = (*asking, hypervisor_main, store_type, unbind_driver)
    if machine.engine == "processes":
        real = (*real, *BURIAL_ENTRIES)
    engine = virtual_entries(policy) if machine.engine == "sim" else real
    device = (virtual_device_main if machine.engine == "sim" else device_main,) if machine.devices else ()
    with policy.blamed() if policy else nullcontext():
        return compile_entries((init_machine, *engine, *device, teardown_machine, drain_ring), on_compile)


def run_machine(
    config: Config,
    domain: DomainType,
    workload: Workload,
    *,
    real_time: bool = False,
    record_to: Path | None = None,
    collect_in: EventCollector | None = None,
    control_in: Path | None = None,
    on_compile: Callable[[int, int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
) -> MachineRun:
    """Run one load on one domain, from the first process to the last.

    Args:
        config: the description; its list of domains is not looked at.
        domain: the scheme.
        workload: one program for each CPU.
        real_time: honour the recorded times of the operations.
        record_to: folder for the CPUs' events, where the description says to record them.
        collect_in: takes them instead.
        control_in: folder for the socket by which others may write to the running machine's sysfs; None for none.
        on_compile: told (functions compiled, functions known) while something is compiled.
        on_progress: told the fraction of the run that has passed, 0 to 1.
        on_event: told (event, values) of what happens to the machine while it runs.

    Returns:
        MachineRun, also of a run that was interrupted or in which a process died.

    Raises:
        MachineError: when it cannot be started; nothing is left behind.
    """
    try:
        policy = policy_of(config)
        compile_machine(config.machine, on_compile, policy)
        layout = Layout(config, domain, workload, real_time=real_time, folder=control_in, policy=policy)
    except (SegmentError, ConfigError) as error:
        raise MachineError(str(error)) from None
    try:
        # Four for each process, and one for what each CPU records.
        _raise_file_limit(5 * layout.contexts + 64)
        events = collect_in.attach(layout) if collect_in else EventWriter(layout, record_to)
        socket = ControlSocket(control_in)
        kind = Simulation if layout.is_virtual else Machine
        machine = kind(
            layout, events, on_progress or (lambda _fraction: None), on_event or (lambda _event, _values: None), socket
        )
        with listening(machine), events:
            machine.run()
        recording = record(layout, machine.members)
        if machine.can_be_taken_down:
            teardown_machine(layout.segment.address("contexts", layout.supervisor), layout.segment.address("teardown"))
            recording.teardown = layout.segment.copy_of("teardown")
            recording.findings = layout.segment.copy_of("findings")
            recording.supervisor = layout.segment["contexts"][layout.supervisor].copy()
        functions = by_function(layout, recording) if len(layout.functions) > 1 else []
        note_longest(layout, recording.contexts[layout.timer], 0)
        note_longest(layout, recording.supervisor, len(layout.functions))
    finally:
        layout.segment.unlink()
    recording.events_recorded, recording.events_lost = events.recorded, events.lost
    recording.log = np.concatenate(events.log) if events.log else np.zeros(0, event_t)
    warnings = _warnings(layout, recording) + machine.operator.warnings() + machine.saboteur.warnings()
    warnings += [problem for problem in (events.problem, socket.problem) if problem]
    run = MachineRun(
        recording, machine.operator.switches, machine.died, machine.interrupted, machine.deaths, warnings, functions
    )
    # Its parts know each other: its segment would stay until somebody collects garbage, and who runs machines by the
    # hundred would fork with all of them.
    vars(machine).clear()
    return run


@contextmanager
def listening(machine: Machine | Simulation) -> Iterator[None]:
    """Take Ctrl-C and SIGTERM as the wish to stop, where signals can be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: Any) -> None:
        machine.interrupted = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warnings(layout: Layout, recording: Recording) -> list[str]:
    config, warnings = layout.config, []
    if recording.fq_init_failed:
        why = (
            "fault fq-alloc is on"
            if "fq-alloc" in config.machine.faults
            else f"the rings need more than domain.fq_memory_mb = {config.domain.fq_memory_mb} MiB"
        )
        warnings.append(f"{FQ_WARNING}: {why}; the domain is strict")
    if recording.device_in_error:
        warnings.append(
            "a global flush showed the ISM device addresses it has in use, which put it into error; every later flush"
            " failed, and every map that needs one"
        )
    return warnings


class Machine:
    """The running machine.

    Attributes:
        members: its processes or threads, in the order of their contexts.
        operator: who changes it while it runs.
        died: who died of what, if anybody did.
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
        self.members = [self._member(slot) for slot in range(layout.supervisor)]
        self.died: str | None = None
        self.interrupted = False
        self._events = events
        self._on_progress = on_progress
        self._on_event = on_event
        self._control = layout.segment["control"][0]
        self._own_context = layout.segment.address("contexts", layout.supervisor)
        self._left: set[int] = set()
        self._started: float | None = None
        self._done = self._done_at = 0.0
        self._crew: Crew
        self._socket = socket or ControlSocket(None)
        sysfs = Sysfs(layout, lambda: self._left, self._wake_all, self)
        self.operator = Operator(sysfs, Timeline(layout.config.machine.timeline), self._socket, on_event)
        self.recovery = Recovery(layout, on_event)
        self._sampler = Sampler(layout, on_event, layout.load_seconds)
        victims: Victims = self if self.config.machine.engine == "processes" else Nobody()
        self.saboteur = Saboteur(layout, victims, on_event, events.fill_disk)

    @property
    def deaths(self) -> list[dict[str, Any]]:
        """Of its processes, each as in summary.json."""
        return self.recovery.deaths

    @property
    def can_be_taken_down(self) -> bool:
        """Whether what is left of the machine is whole, so that its books can be made."""
        return self._started is not None and self.recovery.is_whole

    def living(self) -> list[int]:
        """Slots of the processes that have not ended."""
        return sorted(self._left)

    def send(self, slot: int, number: int) -> None:
        """Send a process a signal, if it has not ended."""
        if slot in self._left:
            self._crew.signal(self.members[slot], number)

    def send_holding(self, slot: int, lock: str, number: int, chance: random.Random) -> int:
        """Send a process a signal while it holds a lock; returns when (ns), or 0 where it has not come to that."""
        member = self.members[slot]
        return send_holding(self.layout, member.slot, member.handle.pid, lock, number, chance)

    def _member(self, slot: int) -> Member:
        layout = self.layout
        return Member(
            name=layout.name_of(slot),
            slot=slot,
            context=layout.segment["contexts"][slot],
            address=layout.segment.address("contexts", slot),
            run=self._main_of(layout.role_of(slot)),
            core=self._core(slot),
            measure_memory=slot < _MEASURED_CPUS or slot >= layout.cpus,
        )

    def _main_of(self, role: int) -> Callable[[int], int]:
        usual = _MAIN_OF[role]
        main: Callable[[int], int] = entry_for(self.layout.policy, usual) if role in _ASKS_THE_POLICY else usual
        return main

    def _core(self, slot: int) -> int | None:
        """Core to bind a context to: CPUs when each can have its own, servers when there are cores left for them."""
        available = sorted(os.sched_getaffinity(0))
        if not self.config.machine.pin or len(available) < self.layout.cpus or slot == self.layout.timer:
            return None
        if slot >= self.layout.first_device:
            return None
        if slot < self.layout.cpus:
            return available[slot]
        core = self.layout.cpus + slot - self.layout.first_server
        return available[core] if core < len(available) else None

    def run(self) -> None:
        """Start all, let them run, stop all.

        Raises:
            MachineError: when one cannot be started.
        """
        init_machine(self._own_context)
        if self.config.machine.engine == "processes":
            self._crew = ProcessCrew(self._socket.give_up, self.layout.segment.let_go)
        else:
            self._crew = ThreadCrew()
        try:
            for member in self.members:
                self._crew.start(member)
                self._left.add(member.slot)
                if self.interrupted:
                    return
            if self._gathered():
                # Only now: what is forked must not inherit the socket.
                with self._socket:
                    self._start_together()
                    self._watch()
        except CrewError as error:
            raise MachineError(str(error)) from None
        finally:
            self._stop()

    def store_type(self, function: int, req_type: int) -> int:
        """Write a type to the sysfs file of a function's group; 0 or -errno."""
        return int(store_type(self._own_context, function, req_type))

    def unbind_driver(self) -> None:
        """Take the driver from the device; CPUs and timer rest."""
        unbind_driver(self._own_context, self.layout.segment.address("teardown"))

    def _gathered(self) -> bool:
        """Wait until every process is ready."""
        until = time.monotonic() + _START_S
        while self._control.ready < len(self.members):
            if self.interrupted or self._reap(0.001):
                return False
            if time.monotonic() > until:
                raise MachineError(
                    f"only {self._control.ready} of {len(self.members)} processes started in {_START_S} s"
                )
        return True

    def _start_together(self) -> None:
        self.saboteur.work(0.0, 0.0)
        self._on_event("load_started", {})
        self._control.go = 1
        self._wake("go")

    def _watch(self) -> None:
        """Until the time is over, all programs have ended, somebody died or the user wants to stop."""
        beat = _RECORDING_BEAT_S if self.config.machine.record else _BEAT_S
        started = self._started = time.monotonic()
        seconds = self.layout.load_seconds
        until = float("inf") if seconds is None else started + seconds
        while not self.interrupted and not self.died and any(slot < self.layout.cpus for slot in self._left):
            now = time.monotonic()
            if now >= until:
                break
            fraction = self._fraction(started, until)
            since = now - started
            soon = min(self.operator.work(since), self.saboteur.work(since, fraction), self._sampler.work(since))
            self._reap(max(min(until - now, beat, soon), 0.0))
            self.recovery.tend(self._left)
            self._give_up_if_starving()
            self._on_progress(fraction)
        self._on_progress(1.0)

    def _give_up_if_starving(self) -> None:
        """Stop where a fault leaves CPUs without an answer for ever: nothing is done any longer, by anybody."""
        if not self.saboteur.starves or self._control.stop:
            return
        done = int(self.layout.segment["contexts"]["ctrs"]["unmaps"].sum())
        done += int(self.layout.segment["servers"]["requests"].sum())
        if done != self._done:
            self._done, self._done_at = done, time.monotonic()
        elif time.monotonic() - self._done_at > _STARVED_S + self._longest_flush_s():
            waiting = ", ".join(self.layout.name_of(slot) for slot in sorted(self._left) if slot < self.layout.cpus)
            self.died = f"{waiting} waits for ever for an answer of the hypervisor"

    def _fraction(self, started: float, until: float) -> float:
        if until != float("inf"):
            return min((time.monotonic() - started) / (until - started), 1.0)
        contexts = self.layout.segment["contexts"][: self.layout.cpus]
        if self.config.machine.ops is not None:
            return min(float(contexts["ctrs"]["unmaps"].sum()) / self.config.machine.ops, 1.0)
        wanted = sum(int((p.ops["code"] == OP_UNMAP).sum()) for p in self.layout.workload.programs)
        return min(float(contexts["ctrs"]["unmaps"].sum()) / max(wanted, 1), 1.0)

    def _stop(self) -> None:
        """CPUs first, then the timer, which may need the hypervisor, then the hypervisor; by force if they do not."""
        layout = self.layout
        self._control.stop = STOP
        self.saboteur.let_go()
        self._wake_all()
        self._await({slot for slot in self._left if slot < layout.cpus})
        self._control.cpus_retired = 1
        futex_wake(layout.segment.address("timer_base"), EVERYONE)
        self._await(self._left & {layout.timer})
        self._control.timer_retired = 1
        hypervisor = layout.segment["hypervisor"]
        doorbell = layout.segment.address("hypervisor") + hypervisor.dtype.fields["doorbell"][1]
        futex_wake(doorbell, EVERYONE)
        self._await(set(self._left))
        for member in self._crew.kill():
            self._left.discard(member.slot)
            if not member.context.finished:
                death = self._bury(member)
                self.recovery.note(death, recovered=False, then="it did not stop when it should")
            if not self.died and not self.interrupted:
                self.died = f"{member.name} did not stop and was killed"
        self.recovery.finish()

    def _await(self, slots: set[int]) -> None:
        patience = _ABORT_S if self.interrupted or self.died else _END_S + self._longest_flush_s()
        # Hundreds of processes on a few cores need their time only to end.
        patience += _EXIT_S * len(slots) / cores()
        until = time.monotonic() + patience
        while slots & self._left and time.monotonic() < until:
            self._reap(max(min(_BEAT_S, until - time.monotonic()), 0.0))
            self.recovery.tend(self._left)
            if self.interrupted or self.died:
                until = min(until, time.monotonic() + _ABORT_S)
        if slots & self._left:
            self._abort()
            until = time.monotonic() + _KILL_S
            while slots & self._left and time.monotonic() < until:
                self._reap(_BEAT_S)

    def _longest_flush_s(self) -> float:
        """What a CPU may have to wait for before it sees that it must stop."""
        model = self.config.hypervisor
        entries = self.layout.aperture_pages
        one = model.intercept_ns + entries * (model.walk_ns + model.change_ns)
        return min(one * 4 / 1e9, 10.0)

    def _reap(self, timeout_s: float) -> bool:
        """Take note of those that have ended; True when one of them died."""
        if self._events.drain():
            timeout_s = 0.0
        for member in self._crew.ended(timeout_s):
            self._left.discard(member.slot)
            if not (member.context.finished and member.exit == 0):
                self._go_on_after(member)
        return self.died is not None

    def _bury(self, member: Member) -> dict[str, Any]:
        at_s = None if self._started is None else time.monotonic() - self._started
        return self.recovery.bury(member.slot, _cause(member.exit), at_s, self.saboteur.killed.get(member.slot))

    def _go_on_after(self, member: Member) -> None:
        """Repair what a dead process left, then go on without it, start it anew, or stop."""
        if member.context.finished:
            # It had done its part, and was killed on its way out.
            self._stop_for(member, None)
            return
        death = self._bury(member)
        reason = self._why_stop(member, death)
        if reason:
            self.recovery.note(death, recovered=False, then=f"the machine stopped: {reason}")
            self._stop_for(member, reason)
        elif member.slot < self.layout.cpus:
            self.recovery.note(death, recovered=True, then="the others went on without it")
        else:
            self._start_anew(member)
            self.recovery.note(death, recovered=True, then=f"started anew as pid {member.context.pid}")

    def _why_stop(self, member: Member, death: dict[str, Any]) -> str | None:
        """Why the machine stops after a death, in a few words; None when it goes on."""
        if self._started is None:
            return "it had not begun"
        if self.died or self.interrupted:
            return "it was being stopped"
        return self._why_not_go_on(member, death)

    def _why_not_go_on(self, member: Member, death: dict[str, Any]) -> str | None:
        """The same of a machine that runs."""
        is_cpu = member.slot < self.layout.cpus
        role = "timer" if member.slot == self.layout.timer else "hypervisor"
        if is_cpu and self.config.machine.on_death == "stop":
            return "on_death is stop"
        if not is_cpu and role not in self.config.machine.restart:
            return f"there is no --restart {role}"
        if self.recovery.was_in_command_queue(member.slot):
            return "it was in the command queue, where nobody can fill the places that it had reserved"
        if not is_cpu or self._control.stop == STOP:
            return None
        return self.recovery.stops_for(member.slot, death, self._left)

    def _stop_for(self, member: Member, reason: str | None) -> None:
        if not self.died:
            self.died = f"{member.name} (pid {member.context.pid}) {_cause(member.exit)}"
            if reason and self.config.machine.on_death != "stop":
                self.died += f"; {reason}"
        self._control.stop = STOP
        self._abort()
        self._wake_slots()

    def _start_anew(self, member: Member) -> None:
        """Fork a successor, which takes the dead one's context under another name."""
        context = member.context
        context.generation += 1
        context.owner = owner_word(member.slot, context.generation)
        context.flush_step = context.flush_for = 0
        member.exit = None
        self._crew.start(member)
        self._left.add(member.slot)
        self.saboteur.killed.pop(member.slot, None)

    def _abort(self) -> None:
        """Let nobody wait any longer for somebody who may be dead."""
        self._control.abort = 1
        state = self.layout.segment["requests"].dtype.fields["state"][1]
        for slot in range(self.layout.contexts):
            futex_wake(self.layout.segment.address("requests", slot) + state, EVERYONE)

    def _wake_all(self) -> None:
        """Wake whoever waits for the start, for the driver or for another CPU, so that they see what `stop` says."""
        self._wake("go")
        futex_wake(self.layout.segment.address("timer_base"), EVERYONE)
        self._wake_slots()

    def _wake_slots(self) -> None:
        """Wake CPUs that wait for each other, so that they see the stop."""
        for slot in np.flatnonzero(self.layout.segment["slots"]["state"] & SLOT_WAITERS):
            futex_wake(self.layout.segment.address("slots", int(slot)), EVERYONE)

    def _wake(self, name: str) -> None:
        offset = control_t.fields[name][1]  # type: ignore[index]
        futex_wake(self.layout.segment.address("control") + offset, EVERYONE)


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended by itself with exit code {exit_code}"


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
