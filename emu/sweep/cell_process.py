"""A process that runs cells, one after the other: starting it, importing and loading compiled code happen once.

It is spawned, not forked, so that it has a main thread and nothing of its parent's: machines fork, and need signals. It
ends with its parent, whatever becomes of that.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from emu.process import own_process
from emu.sweep.cells import Cell

_PR_SET_PDEATHSIG = 1
_END_S = 3.0
_ATTEMPTS = 3

OnCompile = Callable[[int, int], None]

_compiled: set[tuple[str, bool, str | None]] = set()
"""Kinds of machines that this process has compiled code for."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What came of a cell.

    Attributes:
        cell: which.
        summary: as summary.json of `emu run` has it; None where there is none.
        error: why there is none, or not a whole one; None where all is well.
        took_s: how long it took, with everything but the start of the process.
        host: where it ran.
        pid: of the process there.
    """

    cell: Cell
    summary: dict[str, Any] | None
    error: str | None
    took_s: float
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


class CellProcessDiedError(Exception):
    """The process has died; the message says of what."""


class CellProcess:
    """The parent's end of such a process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, os.getpid()), name="emu sweep cell", daemon=True)
        with _deaf_to_interrupts():
            self._process.start()
        theirs.close()

    def begin(self, cell: Cell) -> None:
        """Have it run a cell; `receive` has the answer."""
        # Who is dead has no answer, which is noticed there.
        with suppress(OSError):
            self.connection.send(cell)

    def receive(self, on_compile: OnCompile | None = None) -> CellResult | None:
        """The next message, waited for: a result, or None where it was only about compiling.

        Raises:
            CellProcessDiedError: it has died.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(_END_S)
            raise CellProcessDiedError(_cause(self._process.exitcode)) from None
        if isinstance(message, CellResult):
            return message
        if on_compile:
            on_compile(*message)
        return None

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Attempts:
    """How often cells have been begun: one whose process dies is tried again, but not for ever."""

    def __init__(self) -> None:
        self._failed: dict[int, int] = {}

    def may_retry(self, cell: Cell) -> bool:
        """Note that a cell's process has died; whether to try again."""
        self._failed[cell.number] = self._failed.get(cell.number, 0) + 1
        return self._failed[cell.number] < _ATTEMPTS


def given_up(cell: Cell, cause: str) -> CellResult:
    """The result of a cell whose process died each time."""
    return CellResult(cell, None, f"its process {cause}, {_ATTEMPTS} times", 0.0)


def _cause(code: int | None) -> str:
    if code is None:
        return "no longer answered"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started now ignores Ctrl-C from its first instruction on; it is the parent who decides what it means."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        # Not the main thread, and so nobody's foreground.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _live(connection: Connection, parent: int) -> None:
    """The process, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    own_process()

    def on_compile(done: int, known: int) -> None:
        # A parent that has gone is noticed soon enough.
        with suppress(OSError):
            connection.send((done, known))

    with suppress(EOFError, OSError):
        while True:
            cell = connection.recv()
            try:
                result = _run(cell, on_compile)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the other cells
                result = CellResult(cell, None, f"{type(error).__name__}: {error}", 0.0)
            if result is None:
                # Told to end in the midst of it: a part of a cell is nothing.
                sys.exit(128 + signal.SIGTERM)
            connection.send(result)


def _run(cell: Cell, on_compile: OnCompile) -> CellResult | None:
    from emu.config import ConfigError  # noqa: PLC0415 - heavy: only where cells run
    from emu.experiment import MachineError, compile_machine, policy_of, run_machine  # noqa: PLC0415
    from emu.workload.build import build_workload  # noqa: PLC0415

    machine = cell.config.machine
    try:
        policy = policy_of(cell.config)
        kind = (machine.engine, bool(machine.devices), policy.mark if policy else None)
        if kind not in _compiled:
            # In turn: who waits finds in the cache what the first has compiled.
            with _turn("compiling"):
                compile_machine(machine, on_compile, policy)
            _compiled.add(kind)
    except ConfigError as error:
        return CellResult(cell, None, str(error), 0.0)
    with _turn("measuring") if cell.is_measured else nullcontext():
        began = time.monotonic()
        known, warnings = _environment(cell)
        try:
            outcome = run_machine(cell.config, cell.domain, build_workload(cell.config))
        except (MachineError, ConfigError) as error:
            return CellResult(cell, None, str(error), time.monotonic() - began)
        took_s = time.monotonic() - began
    # Machines freeze what there is before they fork, for ever; this process has a next one.
    gc.unfreeze()
    if outcome.interrupted:
        return None
    from emu.analysis.summary import summary  # noqa: PLC0415

    whole = summary({**known, "warnings": warnings}, [outcome.run], command="sweep", folder=None)
    return CellResult(cell, whole, outcome.died, took_s)


def _environment(cell: Cell) -> tuple[dict[str, Any], list[str]]:
    """As in the summary of `emu run`: virtual clocks do not know what machine this is."""
    from emu.analysis.environment import emu_version, environment, scheduling_warnings  # noqa: PLC0415

    if not cell.is_measured:
        return {"emu": emu_version()}, []
    known = environment()
    return known, scheduling_warnings(known, cell.config.machine.cpus, cell.config.servers)


@contextmanager
def _turn(what: str) -> Iterator[None]:
    """One process of this user at a time on this host, whoever has started it; a lock that ends with its holder."""
    path = Path(tempfile.gettempdir()) / f"emu-{what}-{os.getuid()}.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
