"""CPUs as coroutines in one thread: at every step that others could notice, somebody else may go on instead.

A step is an access to shared memory, taking or giving back a lock, or an event that the books note. Before a step that
is *visible*, the world asks its search who goes on. A place is visible once two CPUs have used it, one of them has
written, and no lock was held at every use; a lock, once two CPUs have used it. The first run finds most of them, and a
run that finds another makes the search begin anew (`Places`).

With store buffers (`Ordering.TSO`, `Ordering.PSO`) a store to a visible place waits in its CPU's buffer, where only
that CPU sees it, until the search lets it out: the oldest first, or with PSO any that no barrier and no older store to
the same place keeps back. Fences and atomic operations wait until the buffer is empty; so does taking a lock with TSO,
where it is an atomic operation, but not with PSO, where it only keeps later steps later, as the kernel's memory model
has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from emu.explore.memory import PRIVATE, SHARED, STATISTIC, Overlay, Record

LONGEST_RUN = 100_000
"""Steps after which a run is held to be endless."""
_FLUSH = 128
_ENTRY_BITS = 4
_RELEASE = -1
_EXPLORED_FOLDERS = ("/emu/iommu/", "/emu/hypervisor/", "/emu/native/")


class Ordering(StrEnum):
    """In which order a CPU's stores become visible to others."""

    SC = "sc"
    TSO = "tso"
    PSO = "pso"


@dataclass(frozen=True, slots=True)
class Violation:
    """What must not happen, and did.

    Attributes:
        kind: one word. text: one sentence.
    """

    kind: str
    text: str


class Place:
    """What is known of an address, or of a lock: who has used it, and which locks they held."""

    __slots__ = ("is_lock", "locks", "users", "visible", "written")

    def __init__(self, *, is_lock: bool) -> None:
        self.is_lock = is_lock
        self.users = 0
        self.written = False
        self.locks: frozenset[int] | None = None
        self.visible = False

    def use(self, user: int, *, writes: bool, held: frozenset[int]) -> bool:
        """Note a use; True when the place has become visible by it."""
        self.users |= user
        self.written = self.written or writes
        if not self.is_lock:
            self.locks = held if self.locks is None else self.locks & held
        if self.visible or not self.users & (self.users - 1):
            return False
        self.visible = self.is_lock or (self.written and not self.locks)
        return self.visible


class Places:
    """The places of a machine, over all runs of a search.

    Attributes:
        found: a place has become visible since that was last looked at.
    """

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        self.found = False

    def use(self, address: int, user: int, *, writes: bool, held: frozenset[int], is_lock: bool = False) -> bool:
        """Note a use; whether the place is visible."""
        place = self._places.get(address)
        if place is None:
            place = self._places[address] = Place(is_lock=is_lock)
        if place.use(user, writes=writes, held=held):
            self.found = True
        return place.visible

    def is_visible(self, address: int) -> bool:
        """Whether others can notice what happens there."""
        place = self._places.get(address)
        return place is not None and place.visible

    def make_visible(self, address: int) -> None:
        """Take a place for visible from the beginning."""
        place = self._places.setdefault(address, Place(is_lock=False))
        place.visible = True

    @property
    def visible(self) -> list[int]:
        """All that are."""
        return sorted(address for address, place in self._places.items() if place.visible)


class Watcher(Protocol):
    """Who keeps the books of a run."""

    def begin(self) -> None:
        """A run begins."""

    def digest(self) -> int:
        """Of all that the books say."""

    def end(self) -> None:
        """Every CPU has done what it had to do."""


@dataclass(slots=True)
class Cpu:
    """A coroutine: one emulated CPU, the timer, or who writes to sysfs.

    Attributes:
        number, name: which one.
        context: its record, passed to compiled functions as `cpu`.
        work: its operations.
        may_begin: whether its next operation can be begun now.
        done: operations finished.
        history: digest of all it has seen in the present one.
        accesses: steps in this run.
        held: locks.
        waits_for: a lock's address, or 0.
        idles: it gives way to others.
        looked_at: steps of the others when it last went on after that, or -1.
        sleeps_on, sleeps_while: address of a word, and what it must no longer be.
        drains: it waits until its buffer is empty.
        begins: it is between two operations.
        buffer: (address, code, value) of stores under way; address -1 is a barrier between stores.
        owned: (pfn, pages) of its mappings, oldest first.
        opening: those it begins with.
    """

    number: int
    name: str
    context: Any
    work: Sequence[Callable[[Cpu], None]]
    may_begin: Callable[[Cpu], bool] = lambda _cpu: True
    coroutine: Any = None
    done: int = 0
    history: int = 0
    accesses: int = 0
    held: frozenset[int] = frozenset()
    waits_for: int = 0
    idles: bool = False
    looked_at: int = -1
    sleeps_on: int = 0
    sleeps_while: int = 0
    drains: bool = False
    begins: bool = False
    buffer: list[tuple[int, str, int]] = field(default_factory=list)
    opening: tuple[tuple[int, int], ...] = ()
    owned: list[tuple[int, int]] = field(default_factory=list)

    @property
    def bit(self) -> int:
        """Its place in a mask."""
        return 1 << self.number

    def reset(self) -> None:
        """Be as before the first step."""
        self.done = self.history = self.accesses = self.waits_for = self.sleeps_on = 0
        self.held, self.looked_at = frozenset(), -1
        self.idles = self.drains = self.begins = False
        self.buffer.clear()
        self.owned[:] = self.opening


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run that is written down.

    Attributes:
        cpu: number of the CPU. what: "load", "store", "atomic", "lock", "unlock", "event", "flush". address: of the
        word or lock, 0 for an event. value: read or written. text: what an event says. frames: (file, line, function),
        innermost first, of the code that is explored.
    """

    cpu: int
    what: str
    address: int
    value: int
    text: str
    frames: tuple[tuple[str, int, str], ...]


Segment = tuple[int, int]
"""Of a run: (CPU, how many steps it has done when the next one begins), or (choice that lets a store out, 0)."""


class Chooser(Protocol):
    """Who decides which CPU goes on."""

    def choose(self, world: World, cpu: Cpu | None, choices: list[int]) -> int:
        """One of `choices`; `cpu` is the one that has run until now, None when it cannot go on."""


def name_of_flush(cpu: int, entry: int) -> int:
    """The choice that lets a store out of a CPU's buffer."""
    return _FLUSH | cpu << _ENTRY_BITS | entry


def flush_of(choice: int) -> tuple[int, int] | None:
    """(cpu, entry) of a choice that lets a store out, else None."""
    if choice < _FLUSH:
        return None
    return (choice & ~_FLUSH) >> _ENTRY_BITS, choice & ((1 << _ENTRY_BITS) - 1)


class World:
    """One machine, run again and again.

    Args:
        memory: of the machine.
        ordering: of the CPUs' stores.

    Attributes:
        cpus: its coroutines.
        watcher: keeps the books (Watcher).
        places: which places are visible.
        running: the CPU whose turn it is, None while nobody is watched.
        everywhere: ask before every step, visible or not.
        steps: taken in this run.
        violation: what this run has come to, or None.
        segments: of this run.
        log: its steps, where they are written down.
        told_files: paths of explored code besides the emulated kernel's.
    """

    def __init__(self, memory: Overlay, ordering: Ordering) -> None:
        self.memory = memory
        self.ordering = ordering
        self.cpus: list[Cpu] = []
        self.watcher: Any = None
        self.places = Places()
        self.running: Any = None
        self.steps = 0
        self.violation: Violation | None = None
        self.log: list[Step] | None = None
        self.everywhere = False
        self.segments: list[Segment] = []
        self.told_files: set[str] = set()
        self._chooser: Any = None
        self._main: Any = None
        self._turn: Cpu | None = None

    # --- one run ----------------------------------------------------------------------------------------------------

    def run(self, chooser: Chooser, *, log: bool = False) -> None:
        """Run all CPUs from the beginning to the end, or until somebody stops it."""
        self.memory.forget()
        self.steps = 0
        self.violation = None
        self.segments = []
        self.log = [] if log else None
        self._chooser = chooser
        self._main = getcurrent()
        for cpu in self.cpus:
            cpu.reset()
            cpu.coroutine = greenlet(self._live)
        self.watcher.begin()
        first = self._choose(None)
        if first is not None:
            first.coroutine.switch(first)
        for cpu in self.cpus:
            if cpu.coroutine:
                cpu.coroutine.throw(GreenletExit)
        self.running = self._turn = None

    def _leave(self, cpu: Cpu | None) -> None:
        """Note how far a CPU has come before another one, or a store, has its turn."""
        if cpu is not None and (not self.segments or self.segments[-1] != (cpu.number, cpu.accesses)):
            self.segments.append((cpu.number, cpu.accesses))

    def stop(self, violation: Violation | None = None) -> None:
        """End the run here; does not return to a CPU."""
        self.violation = self.violation or violation
        self._leave(self._turn)
        if getcurrent() is not self._main:
            self._main.switch()

    def _live(self, cpu: Cpu) -> None:
        try:
            for operation in cpu.work:
                self._begin_operation(cpu)
                operation(cpu)
                cpu.done += 1
                cpu.history = 0
        except GreenletExit:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the explored code does wrong is found
            self.stop(Violation("crash", f"{cpu.name}: {type(error).__name__}: {error}"))
        self._leave(cpu)
        following = self._choose(None)
        if following is not None:
            following.coroutine.switch(following)
        self._main.switch()

    def _begin_operation(self, cpu: Cpu) -> None:
        # Who begins its first operation has just been chosen.
        if cpu.done:
            cpu.begins = True
            self._decide(cpu)
            cpu.begins = False

    def _decide(self, cpu: Cpu) -> None:
        """Before a visible step of `cpu`: whoever is chosen goes on; returns when it is this CPU's turn again."""
        chosen = self._choose(cpu)
        if chosen is not cpu:
            self._leave(cpu)
        if chosen is None:
            self._main.switch()
        elif chosen is not cpu:
            chosen.coroutine.switch(chosen)
        self.running = self._turn = cpu

    def can_go_on(self, cpu: Cpu) -> bool:
        """Whether its next step is possible now."""
        if cpu.done == len(cpu.work) or (cpu.drains and cpu.buffer):
            return False
        if cpu.waits_for:
            return self.memory.load(cpu.waits_for, "i") == 0
        if cpu.sleeps_on:
            return self.memory.load(cpu.sleeps_on, "i") != cpu.sleeps_while
        if cpu.idles:
            return self._is_stirred(cpu)
        return bool(cpu.history or cpu.may_begin(cpu))

    def _is_stirred(self, cpu: Cpu) -> bool:
        """Whether others have done something since it last looked."""
        return self.steps - cpu.accesses > cpu.looked_at

    def _choose(self, cpu: Cpu | None) -> Cpu | None:
        """Who goes on, after what stores the search lets out; None when the run is over."""
        while True:
            able = [other.number for other in self.cpus if self.can_go_on(other)]
            flushes = [name_of_flush(other.number, i) for other in self.cpus for i in self._ready(other)]
            if not able and not flushes:
                self._finish()
                return None
            goes_on = cpu is not None and not cpu.idles and (cpu.number in able or cpu.drains)
            current = cpu if goes_on else None
            choice = self._chooser.choose(self, current, able + flushes)
            if choice < 0:
                return None
            flush = flush_of(choice)
            if flush is None:
                chosen: Cpu = self.cpus[choice]
                self.running = self._turn = chosen
                return chosen
            self._leave(cpu)
            self._let_out(*flush)
            self.segments.append((choice, 0))

    def _finish(self) -> None:
        waiting = [cpu for cpu in self.cpus if cpu.waits_for or cpu.sleeps_on or cpu.idles]
        if waiting:
            names = ", ".join(cpu.name for cpu in waiting)
            self.violation = self.violation or Violation("deadlock", f"{names} can never go on")
        elif self.violation is None:
            self.watcher.end()

    # --- store buffers ----------------------------------------------------------------------------------------------

    def _ready(self, cpu: Cpu) -> list[int]:
        """Which entries of a buffer may leave it next."""
        if not cpu.buffer:
            return []
        if self.ordering is not Ordering.PSO:
            return [0]
        ready: list[int] = []
        seen: set[int] = set()
        for i, (address, _, _) in enumerate(cpu.buffer[: 1 << _ENTRY_BITS]):
            if address == _RELEASE:
                break
            if address not in seen:
                ready.append(i)
            seen.add(address)
        return ready

    def _let_out(self, number: int, entry: int) -> None:
        cpu = self.cpus[number]
        address, code, value = cpu.buffer.pop(entry)
        while cpu.buffer and cpu.buffer[0][0] == _RELEASE:
            cpu.buffer.pop(0)
        self.steps += 1
        self.memory.store(address, code, value)
        if self.log is not None:
            self.log.append(Step(number, "flush", address, value, "", ()))

    def drain(self) -> None:
        """A full barrier: the running CPU goes on when its buffer is empty."""
        cpu = self.running
        if cpu is None or not cpu.buffer:
            return
        cpu.drains = True
        while cpu.buffer:
            self._decide(cpu)
        cpu.drains = False

    def order_stores(self) -> None:
        """A barrier between stores."""
        cpu = self.running
        if self.ordering is Ordering.PSO and cpu is not None and cpu.buffer:
            cpu.buffer.append((_RELEASE, "", 0))

    # --- steps ------------------------------------------------------------------------------------------------------

    def _step(self, cpu: Cpu, visible: bool) -> None:
        if visible or self.everywhere:
            self._decide(cpu)
        cpu.accesses += 1
        self.steps += 1
        if self.steps > LONGEST_RUN:
            self.stop(Violation("endless", f"{cpu.name} has come to no end after {LONGEST_RUN} steps"))

    def _read(self, cpu: Cpu, address: int, code: str) -> int:
        for place, _, value in reversed(cpu.buffer):
            if place == address:
                return value
        return self.memory.load(address, code)

    def load(self, address: int, code: str, kind: int) -> int:
        """Read a word."""
        cpu = self.running
        if cpu is None or kind == STATISTIC:
            return self.memory.load(address, code)
        if kind == SHARED:
            self._step(cpu, self.places.use(address, cpu.bit, writes=False, held=cpu.held))
        value = self._read(cpu, address, code)
        cpu.history = hash((cpu.history, value))
        if self.log is not None and kind == SHARED:
            self._write_down("load", address, value)
        return value

    def store(self, address: int, code: str, kind: int, value: int) -> None:
        """Write a word."""
        cpu = self.running
        if cpu is None or kind == PRIVATE:
            self.memory.store(address, code, value)
            return
        if kind == STATISTIC:
            self.memory.note(address, value)
            return
        visible = self.places.use(address, cpu.bit, writes=True, held=cpu.held)
        waits = visible and self.ordering is not Ordering.SC
        self._step(cpu, visible and not waits)
        cpu.history = hash((cpu.history, address))
        if waits:
            cpu.buffer.append((address, code, value))
        else:
            self.memory.store(address, code, value)
        if self.log is not None:
            self._write_down("store", address, value)

    def release(self, address: int, code: str, kind: int, value: int) -> None:
        """Write a word after everything written before."""
        self.order_stores()
        self.store(address, code, kind, value)

    def change(self, address: int, code: str, kind: int, new: Callable[[int], int]) -> int:
        """Read and write a word at once; returns what was there."""
        cpu = self.running
        if cpu is None or kind != SHARED:
            old = self.memory.load(address, code)
            self.memory.store(address, code, new(old))
            return old
        self.drain()
        self._step(cpu, self.places.use(address, cpu.bit, writes=True, held=cpu.held))
        old = self.memory.load(address, code)
        value = new(old)
        if value != old:
            self.memory.store(address, code, value)
        cpu.history = hash((cpu.history, old))
        if self.log is not None:
            self._write_down("atomic", address, value)
        return old

    def lock(self, record: Record) -> None:
        """Take a lock, when it is free."""
        cpu = self.running
        address = record.address
        if self.ordering is not Ordering.PSO:
            self.drain()
        visible = self.places.use(address, cpu.bit, writes=True, held=cpu.held, is_lock=True)
        cpu.waits_for = address
        self._step(cpu, visible or self.memory.load(address, "i") != 0)
        cpu.waits_for = 0
        self.memory.store(address, "i", cpu.number + 1)
        cpu.held |= {address}
        cpu.history = hash((cpu.history, address))
        if self.log is not None:
            self._write_down("lock", address, 1)

    def unlock(self, record: Record) -> None:
        """Give a lock back."""
        cpu = self.running
        address = record.address
        visible = self.places.is_visible(address)
        waits = visible and self.ordering is not Ordering.SC
        if waits:
            self.order_stores()
        self._step(cpu, visible and not waits)
        if self._read(cpu, address, "i") != cpu.number + 1:
            self.stop(Violation("lock", f"{cpu.name} gives back a lock that it does not hold"))
        cpu.held -= {address}
        cpu.history = hash((cpu.history, address))
        if waits:
            cpu.buffer.append((address, "i", 0))
        else:
            self.memory.store(address, "i", 0)
        if self.log is not None:
            self._write_down("unlock", address, 0)

    def idle(self) -> None:
        """The running CPU gives way, until somebody else has done something since it last came back from here."""
        cpu = self.running
        cpu.idles = True
        self._decide(cpu)
        cpu.idles = False
        cpu.looked_at = self.steps - cpu.accesses

    def sleep(self, address: int, expected: int) -> None:
        """The running CPU sleeps while a word is what it expects; no time-out comes to its help."""
        cpu = self.running
        cpu.sleeps_on, cpu.sleeps_while = address, expected
        self._step(cpu, self.places.use(address, cpu.bit, writes=False, held=cpu.held))
        cpu.sleeps_on = 0
        cpu.history = hash((cpu.history, address))

    def event(self, text: str = "") -> Cpu:
        """Something that the books note, at the same time as the step before it; the running CPU."""
        cpu: Cpu = self.running
        self._step(cpu, visible=False)
        cpu.history = hash((cpu.history, 1))
        if self.log is not None and text:
            self.say(text)
        return cpu

    def say(self, text: str) -> None:
        """Write down what happens, where that is done."""
        if self.log is not None:
            self._write_down("event", 0, 0, text)

    def _write_down(self, what: str, address: int, value: int, text: str = "") -> None:
        steps: Any = self.log
        steps.append(Step(self.running.number, what, address, value, text, self._explored_frames()))

    def _explored_frames(self) -> tuple[tuple[str, int, str], ...]:
        """Where the running CPU is in the code of the emulated kernel, its hypervisor and its policy."""
        frames = []
        frame: Any = sys._getframe(1)
        while frame is not None:
            path = frame.f_code.co_filename
            if any(folder in path for folder in _EXPLORED_FOLDERS) or path in self.told_files:
                frames.append((path, frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back
        return tuple(frames)

    def state(self, cpu: Cpu | None) -> int:
        """Digest of everything that what follows depends on; `cpu` goes on for nothing.

        Between two choices something in it must change, or a run would end at its own continuation: whoever is asked
        without having seen or written anything since says so by a flag.
        """
        return hash(
            (
                self.memory.digest,
                *(
                    (
                        c.done,
                        c.history,
                        c.waits_for,
                        c.sleeps_on,
                        (c.idles, c.looked_at >= 0 and self._is_stirred(c), c.drains, c.begins),
                        tuple(c.buffer),
                    )
                    for c in self.cpus
                ),
                self.watcher.digest(),
                -1 if cpu is None else cpu.number,
            )
        )
