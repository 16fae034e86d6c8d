"""The processes, or threads, of a machine: started, watched, and ended.

Both kinds run the same compiled functions on the same segment. A process can be killed and its death has a cause; a
thread runs without the GIL and ends when the function does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import multiprocess

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_fork = multiprocess.get_context("fork")
_libc = ctypes.CDLL(None, use_errno=True)


class CrewError(Exception):
    """A process could not be started; the message is one line."""


@dataclass(slots=True)
class Member:
    """One process or thread of the machine.

    Attributes:
        name: as users read it, such as "cpu 3".
        slot: its context's number.
        context: its record, for what it notes when it ends.
        run: compiled function, called with the context's address.
        core: the core to bind it to, or None.
        measure_memory: look at its private memory when it ends, which takes some ms.
    """

    name: str
    slot: int
    context: Any
    address: int
    run: Callable[[int], int]
    core: int | None = None
    measure_memory: bool = True
    exit: int | None = None
    handle: Any = field(default=None, repr=False)


class Crew(Protocol):
    """What the supervisor needs of its processes or threads."""

    def start(self, member: Member) -> None:
        """Start one."""

    def ended(self, timeout_s: float) -> list[Member]:
        """Those that have ended since the last call; waits for the first at most `timeout_s`."""

    def signal(self, member: Member, number: int) -> None:
        """Send one a signal."""

    def kill(self) -> list[Member]:
        """End by force all that are left; returns those that had to be killed."""


def _note_usage(context: Any, who: int) -> None:
    usage = resource.getrusage(who)
    context.user_us = round(usage.ru_utime * 1e6)
    context.system_us = round(usage.ru_stime * 1e6)
    context.voluntary_switches = usage.ru_nvcsw
    context.involuntary_switches = usage.ru_nivcsw


def _wake_on_time() -> None:
    """Have this thread's sleeps end when they should: by default Linux lets them last 50 µs longer."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1)


def _private_bytes() -> int:
    """Memory that only this process has: its private pages. 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


class ProcessCrew:
    """Forked processes: compiled code and the segment are there already.

    Args:
        in_child: called in each before it begins, to give up what only the parent shall have.
        before_measuring: called in each before it measures its memory, to let go what is not its own.
    """

    def __init__(
        self, in_child: Callable[[], None] = lambda: None, before_measuring: Callable[[], None] = lambda: None
    ) -> None:
        self._in_child = in_child
        self._before_measuring = before_measuring
        self._parent = os.getpid()
        self._poll = select.poll()
        self._members: dict[int, Member] = {}
        # A child collects nothing that it shares with us, and so copies none of it. What of ours is garbage may stay.
        gc.freeze()

    def start(self, member: Member) -> None:
        """Fork.

        Raises:
            CrewError: when the system refuses another process.
        """
        process = _fork.Process(target=self._live, args=(member,), name=f"emu {member.name}", daemon=True)
        try:
            process.start()
            descriptor = os.pidfd_open(process.pid)
        except OSError as error:
            raise CrewError(
                f"cannot start {member.name}: {error.strerror}; "
                "use fewer CPUs, or raise the limits of processes and files"
            ) from None
        member.handle = process
        member.context.pid = process.pid
        self._members[descriptor] = member
        self._poll.register(descriptor, select.POLLIN)

    def _live(self, member: Member) -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _wake_on_time()
        if os.getppid() != self._parent:
            os._exit(1)
        self._in_child()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if member.core is not None:
            os.sched_setaffinity(0, {member.core})
        member.run(member.address)
        _note_usage(member.context, resource.RUSAGE_SELF)
        if member.measure_memory:
            self._before_measuring()
            member.context.private_bytes = _private_bytes()
        os._exit(0)

    def ended(self, timeout_s: float) -> list[Member]:
        """Those whose pidfd says so, reaped."""
        members = []
        for descriptor, _ in self._poll.poll(max(timeout_s, 0) * 1000):
            member = self._members.pop(descriptor)
            self._poll.unregister(descriptor)
            os.close(descriptor)
            member.handle.join()
            member.exit = member.handle.exitcode
            members.append(member)
        return members

    def signal(self, member: Member, number: int) -> None:
        """Send one a signal; it has not been reaped, so that its pid is its own."""
        os.kill(member.handle.pid, number)

    def kill(self) -> list[Member]:
        """SIGKILL to all that are left."""
        left = list(self._members.values())
        for member in left:
            member.handle.kill()
        while self._members:
            self.ended(1.0)
        gc.unfreeze()
        return left


class ThreadCrew:
    """Threads of this process, running compiled code without the GIL."""

    def __init__(self) -> None:
        self._running: list[Member] = []
        self._condition = threading.Condition()
        self._ended: list[Member] = []

    def start(self, member: Member) -> None:
        """Start a thread."""
        member.context.pid = os.getpid()
        thread = threading.Thread(target=self._live, args=(member,), name=f"emu {member.name}", daemon=True)
        member.handle = thread
        self._running.append(member)
        try:
            thread.start()
        except RuntimeError as error:
            self._running.remove(member)
            raise CrewError(f"cannot start {member.name}: {error}; use fewer CPUs") from None

    def _live(self, member: Member) -> None:
        code = 1
        try:
            _wake_on_time()
            if member.core is not None:
                os.sched_setaffinity(0, {member.core})
            member.run(member.address)
            _note_usage(member.context, resource.RUSAGE_THREAD)
            code = 0
        finally:
            with self._condition:
                member.exit = code
                self._ended.append(member)
                self._condition.notify()

    def ended(self, timeout_s: float) -> list[Member]:
        """Those that have returned."""
        with self._condition:
            if not self._ended:
                self._condition.wait(max(timeout_s, 0))
            members, self._ended = self._ended, []
        for member in members:
            member.handle.join()
            self._running.remove(member)
        return members

    def signal(self, member: Member, number: int) -> None:
        """A signal to a thread would be one to all."""

    def kill(self) -> list[Member]:
        """Threads cannot be killed: wait for them, which abort makes short."""
        until = time.monotonic() + 30
        while self._running and time.monotonic() < until:
            self.ended(0.1)
        return []
