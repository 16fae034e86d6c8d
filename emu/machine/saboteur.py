"""Does to a running machine what `--fault` asks for, when its time has come.

What concerns the hypervisor and the timer is a number in the machine's memory, so it works on virtual clocks as well;
what concerns processes is a signal. Everything random comes from the run's seed.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from emu.fault import TO_COMPLETIONS, Fault
from emu.machine.layout import Layout

_KEEP_AWAY = 0.05
"""A random moment is not in the first or last part of a run as long as this: there may be nothing to disturb yet."""
_AGAIN_S = 0.02


class Victims(Protocol):
    """The processes of a machine, as far as something can be done to them."""

    def living(self) -> Iterable[int]:
        """Slots of those that have not ended."""

    def send(self, slot: int, number: int) -> None:
        """Send one a signal."""

    def send_holding(self, slot: int, lock: str, number: int, chance: random.Random) -> int:
        """Send one a signal while it holds a lock; returns when (ns), or 0 where it has not come to that."""


class Nobody:
    """No processes: threads, or fibers."""

    def living(self) -> Iterable[int]:
        """There are none."""
        return ()

    def send(self, slot: int, number: int) -> None:
        """Nobody is there to be signalled."""

    def send_holding(self, slot: int, lock: str, number: int, chance: random.Random) -> int:
        """Nobody is there to hold one."""
        del slot, lock, number, chance
        return 0


@dataclass(slots=True)
class _Task:
    """Something still to be done.

    Attributes:
        at_s: when; None where a part of the run counts.
        at_fraction: after which part of the run, where its length is not known.
        end: the end of a fault that lasts for a time, not its beginning.
    """

    fault: Fault
    chance: random.Random
    at_s: float | None
    at_fraction: float = 0.0
    end: bool = False
    slot: int | None = None


class Saboteur:
    """What is to go wrong on one machine.

    Args:
        layout: its memory.
        victims: its processes.
        on_event: told of each thing done: event, values.
        fill_disk: makes the disk of the log full.

    Attributes:
        killed: by slot, when (ns, CLOCK_MONOTONIC) and by which fault a process was killed.
    """

    def __init__(
        self,
        layout: Layout,
        victims: Victims,
        on_event: Callable[[str, dict[str, Any]], None],
        fill_disk: Callable[[], None],
    ) -> None:
        self.killed: dict[int, tuple[int, str]] = {}
        self._layout = layout
        self._victims = victims
        self._on_event = on_event
        self._fill_disk = fill_disk
        self._hypervisor = layout.segment["hypervisor"][0]
        self._costs = {name: int(self._hypervisor[name]) for name in ("intercept_ns", "walk_ps", "change_ps")}
        machine = layout.config.machine
        faults = machine.parsed_faults
        self._tasks = [
            _task(fault, random.Random(f"{machine.seed} {i} {fault.text}"), machine.seconds, machine.ops is None)  # noqa: S311
            for i, fault in enumerate(faults)
            if fault.kind not in ("fq-alloc", "small-event-ring")
        ]
        self._hypervisor.faults.is_on = any(fault.kind in TO_COMPLETIONS for fault in faults)
        self._hypervisor.faults.salt = machine.seed & (1 << 31) - 1

    @property
    def starves(self) -> bool:
        """Whether a CPU may wait for ever for an answer, by what is done here."""
        faults = self._layout.config.machine.parsed_faults
        return any(fault.kind in ("drop", "dead", "stop") and fault.for_s is None for fault in faults)

    def work(self, now_s: float, fraction: float) -> float:
        """Do what is to be done at `now_s` since the start of the load, of which that fraction has passed.

        Returns:
            Seconds after which to come again at the latest.
        """
        for task in [task for task in self._tasks if _is_due(task, now_s, fraction)]:
            self._tasks.remove(task)
            self._do(task, now_s)
            if task.fault.kind == "kill":
                # Whoever watches sees to that first.
                return 0.0
        return min((task.at_s for task in self._tasks if task.at_s is not None), default=math.inf) - now_s

    def let_go(self) -> None:
        """Have those go on that are stopped for some time, as the load has ended; what is stopped for ever stays so."""
        for task in self._tasks:
            if task.end and task.slot is not None:
                self._victims.send(task.slot, signal.SIGCONT)

    def warnings(self) -> list[str]:
        """What has not come to pass, and what nobody could recover from, in sentences."""
        sentences = [f"fault {task.fault.text}: the load ended before" for task in self._tasks if not task.end]
        dropped = int(self._layout.segment["servers"]["dropped"].sum())
        if dropped:
            sentences.append(
                f"{dropped} completions were dropped on purpose, and their CPUs waited for them to the end"
            )
        if self._hypervisor.is_dead:
            sentences.append("the hypervisor was dead on purpose, and requests were given up at the end")
        return sentences

    def _do(self, task: _Task, now_s: float) -> None:
        fault = task.fault
        if fault.is_to_process:
            before = time.monotonic()
            what = self._to_process(task)
            # To lie in wait for one takes its time.
            now_s += time.monotonic() - before
        else:
            what = self._to_machine(task)
        if what is None and fault.holding:
            # It never came for the lock: perhaps another time, or another CPU.
            self._tasks.append(_Task(fault, task.chance, now_s + _AGAIN_S))
            return
        if fault.for_s is not None and not task.end and what is not None:
            self._tasks.append(_Task(fault, task.chance, now_s + fault.for_s, end=True, slot=task.slot))
        self._on_event(
            "fault_over" if task.end else "fault", {"fault": fault.text, "at_s": round(now_s, 6), "done": what}
        )

    def _to_process(self, task: _Task) -> str | None:
        fault = task.fault
        slots = [slot for slot in self._victims.living() if self._is_meant(fault, slot)]
        if task.end and task.slot is not None:
            self._victims.send(task.slot, signal.SIGCONT)
            return f"{self._layout.name_of(task.slot)} goes on"
        if not slots:
            return None
        slot = task.slot = task.chance.choice(slots)
        name = self._layout.name_of(slot)
        number, done = (signal.SIGSTOP, "stopped") if fault.kind == "stop" else (signal.SIGKILL, "killed")
        at_ns = time.monotonic_ns()
        if fault.holding is None:
            self._victims.send(slot, number)
        else:
            at_ns = self._victims.send_holding(slot, fault.holding, number, task.chance)
            if not at_ns:
                return None
            done = f"{done}, holding {fault.holding}"
        if fault.kind == "kill":
            self.killed[slot] = (at_ns, fault.text)
        return f"{name} {done}"

    def _is_meant(self, fault: Fault, slot: int) -> bool:
        layout = self._layout
        first = {"cpu": 0, "timer": layout.timer, "hypervisor": layout.first_server, "any": 0}[fault.role]
        last = {"cpu": layout.cpus, "timer": layout.timer + 1}.get(fault.role, layout.supervisor)
        return first <= slot < last if fault.number is None else slot == first + fault.number

    def _to_machine(self, task: _Task) -> str:
        fault, hv = task.fault, self._hypervisor
        if fault.kind == "slow":
            for name, cost in self._costs.items():
                hv[name] = cost if task.end else cost * fault.factor
        elif fault.kind == "dead":
            hv.is_dead = not task.end
        elif fault.kind == "jitter":
            hv.faults.jitter_ns = round(fault.time_s * 1e9)
        elif fault.kind in TO_COMPLETIONS:
            hv.faults[f"{fault.kind}_one_in" if fault.factor else f"{fault.kind}_next"] = fault.factor or 1
        elif fault.kind == "disk-full":
            self._fill_disk()
        else:
            sign = -1 if fault.kind == "early" else 1
            self._layout.segment["timer_base"][0].late_ns += sign * round(fault.time_s * 1e9)
        return "done"


def _task(fault: Fault, chance: random.Random, seconds: float, timed: bool) -> _Task:
    if not fault.at_random:
        return _Task(fault, chance, fault.at_s or 0.0)
    part = _KEEP_AWAY + (1 - 2 * _KEEP_AWAY) * chance.random()
    return _Task(fault, chance, part * seconds) if timed else _Task(fault, chance, None, part)


def _is_due(task: _Task, now_s: float, fraction: float) -> bool:
    return now_s >= task.at_s if task.at_s is not None else fraction >= task.at_fraction
