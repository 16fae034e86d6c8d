"""The folder that a run leaves: `config.toml`, `summary.json`, `events.jsonl`.

Files appear whole or not at all: they are written under another name, then renamed. Only the event log grows line by
line, so that it tells what happened up to a crash. A folder that cannot be written (any longer) never costs the run:
the first problem is remembered in `problem`, for the command to say, and everything else goes on.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import structlog

from emu.native.full_disk import fill_disk_of

DEFAULT_PARENT = "emu-runs"
_UNPAIRED = "backslashreplace"
"""How half a surrogate pair is written, which UTF-8 does not have: as JSON escapes it. File names may hold such, and
what others send."""


class RunFolderError(Exception):
    """The folder the user asked for cannot be used; the message is one line: what, where, what to do."""


class RunFolder:
    """Where one command's results go.

    Attributes:
        path: the folder; None where none could be made.
        problem: the first thing that could not be written, as one line; None while all is well.
    """

    def __init__(self, path: Path | None, problem: str | None = None) -> None:
        self.path = path
        self.problem = problem
        self._file: IO[str] | None = None
        if path is not None:
            self._open_log(path / "events.jsonl")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def log(self, event: str, **values: Any) -> None:
        """Append one line to the event log.

        Args:
            event: what happened, in snake case.
            values: what else is known; anything that JSON can hold.
        """
        if self._file is None:
            return
        try:
            self._logger.info(event, **values)
        except OSError as error:
            self._note(Path(self._file.name), error)
            # What is still buffered would fail again at close.
            with suppress(OSError):
                self._file.close()
            self._file = None

    def fill_disk(self) -> None:
        """Have every later write to the event log fail, as on a disk that is full."""
        if self._file is not None:
            fill_disk_of(self._file)

    def write(self, name: str, text: str) -> None:
        """Write one file, atomically."""
        if self.path is None:
            return
        target = self.path / name
        temporary = self.path / f".{name}.{os.getpid()}.tmp"
        try:
            with temporary.open("w", encoding="utf-8", errors=_UNPAIRED) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            self._note(target, error)
            _forget(temporary)

    def close(self) -> None:
        """Close the event log."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            self._note(Path(file.name), error)

    def _open_log(self, path: Path) -> None:
        try:
            # Line by line to its final name: a log is worth most when its writer did not live to rename it.
            self._file = path.open("w", encoding="utf-8", errors=_UNPAIRED, buffering=1)
        except OSError as error:
            self._note(path, error)
            return
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(self._file),
            processors=[_stamp, structlog.processors.JSONRenderer(ensure_ascii=False, default=str)],
            cache_logger_on_first_use=True,
        )

    def _note(self, path: Path, error: OSError) -> None:
        if self.problem is None:
            self.problem = f"{path} cannot be written: {error.strerror or error}; the results are only shown here"


def open_run_folder(out: Path | None, label: str) -> RunFolder:
    """Make the folder of a run.

    Args:
        out: the folder to use, new or empty; None for a new one in `emu-runs/` below the current directory.
        label: what the run is about, a part of the default name.

    Raises:
        RunFolderError: `out` cannot be used. Without `out` the run goes on without a folder instead.
    """
    if out is not None:
        make_empty(out)
        return RunFolder(out)
    started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = Path(DEFAULT_PARENT) / f"{started}-{label}-{secrets.token_hex(2)}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        return RunFolder(None, f"{path} cannot be made: {error.strerror}; the results are only shown here")
    return RunFolder(path)


def make_empty(out: Path) -> None:
    """Make the folder that the user named, or see that it is empty and can be written.

    Raises:
        RunFolderError: it cannot be used.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise RunFolderError(f"{out} cannot be used: {error.strerror}; name a folder that can be written") from None
    if occupied:
        raise RunFolderError(f"{out} is not empty; name a new folder, results are never overwritten")
    if not os.access(out, os.W_OK | os.X_OK):
        raise RunFolderError(f"{out} cannot be written; name a folder that can")


def _stamp(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """When, who, what; then the rest. What happened earlier says when, in ns of CLOCK_MONOTONIC."""
    now_ns = time.monotonic_ns()
    time_ns = event.pop("time_ns", now_ns)
    wall = datetime.now(UTC) - timedelta(microseconds=(now_ns - time_ns) // 1000)
    return {
        "time": wall.isoformat(timespec="microseconds"),
        "time_ns": time_ns,
        "role": event.pop("role", "supervisor"),
        "pid": event.pop("pid", os.getpid()),
        "event": event.pop("event"),
        **event,
    }


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
