"""A run's folder, read back: what the commands that look at runs afterwards have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.analysis.flushes import CODES_OF_FLUSHES, flushes_of, without_other_answers
from emu.analysis.machine_log import Clock
from emu.native.events import EventFileError, chosen_events, event_chunks, event_t

_Read = Callable[[Path], Iterator[npt.NDArray[np.void]]]


class RunDataError(Exception):
    """A folder holds no run that this version can read; the message is one line: what, where, what to do."""


@dataclass(frozen=True, slots=True)
class DomainRun:
    """One domain of a run.

    Attributes:
        folder: where its events are, `events-*.bin`.
        run: its element of `runs` in summary.json.
    """

    folder: Path
    run: dict[str, Any]

    @property
    def domain(self) -> str:
        """Its type as it began."""
        return str(self.run["domain"])

    @property
    def is_recorded(self) -> bool:
        """Whether every operation was recorded."""
        return self.run["events"] is not None

    @property
    def clock(self) -> Clock:
        """How its ticks become times."""
        return Clock(**self.run["clock"])

    def name_of(self, slot: int) -> str:
        """The process of a slot: "cpu 0", "timer", "hypervisor"."""
        processes = self.run["processes"]
        return str(processes[slot]["role"]) if 0 <= slot < len(processes) else f"slot {slot}"

    def event_chunks(self) -> Iterator[npt.NDArray[np.void]]:
        """Its events, a million at most at a time, each process's in its order; dtype event_t.

        Raises:
            RunDataError: a file is damaged or cannot be read.
        """
        return self._chunks(event_chunks)

    def chosen_chunks(self, codes: tuple[int, ...]) -> Iterator[npt.NDArray[np.void]]:
        """Those of some kinds, in chunks that are smaller; raises as event_chunks."""
        return self._chunks(lambda path: chosen_events(path, codes))

    def events(self, codes: tuple[int, ...]) -> npt.NDArray[np.void]:
        """Those of some kinds; shape (n,), dtype event_t."""
        return _whole(self.chosen_chunks(codes))

    def flushes(self) -> npt.NDArray[np.void]:
        """Every flush of everything; shape (n,), dtype emu.analysis.flushes.flush_t."""
        return flushes_of(_whole(map(without_other_answers, self.chosen_chunks(CODES_OF_FLUSHES))))

    def _chunks(self, read: _Read) -> Iterator[npt.NDArray[np.void]]:
        for path in sorted(self.folder.glob("events-*.bin")):
            try:
                yield from read(path)
            except EventFileError as error:
                raise RunDataError(str(error)) from None
            except OSError as error:
                raise RunDataError(f"{path} cannot be read: {error.strerror}") from None


def _whole(chunks: Iterator[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    kept = [chunk for chunk in chunks if len(chunk)]
    return np.concatenate(kept) if kept else np.empty(0, event_t)


@dataclass(frozen=True, slots=True)
class RunData:
    """A run.

    Attributes:
        folder: its folder.
        summary: its summary.json.
        domains: in the order in which they ran.
    """

    folder: Path
    summary: dict[str, Any]
    domains: list[DomainRun]

    def log(self) -> Iterator[dict[str, Any]]:
        """The entries of events.jsonl, as they stand there; a last line that was cut off is left out.

        Raises:
            RunDataError: it cannot be read, or holds something else.
        """
        path = self.folder / "events.jsonl"
        try:
            with path.open(encoding="utf-8", errors="surrogateescape") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith("\n"):
                        return
                    entry = json.loads(line)
                    if not isinstance(entry, dict) or "event" not in entry:
                        raise RunDataError(f"{path}, line {number}: no entry of a log; copy the file again")
                    yield entry
        except OSError as error:
            raise RunDataError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise RunDataError(f"{path}: not a log of events; copy the file again") from None


def load_run(folder: Path) -> RunData:
    """Read a run's summary; its events are read when they are asked for.

    Raises:
        RunDataError: there is none in that folder, or of another version.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["schema"] != 1:
            raise RunDataError(f"{path}: results of schema {summary['schema']}, but this emu reads schema 1")
        runs = summary["runs"]
        alone = len(runs) == 1 or not any((folder / run["domain"]).is_dir() for run in runs)
        domains = [DomainRun(folder if alone else folder / run["domain"], run) for run in runs]
        # What is missing shows here, not in the midst of a table.
        for domain in domains:
            _ = domain.clock, domain.is_recorded, domain.run["processes"]
    except OSError as error:
        raise RunDataError(f"{path} cannot be read: {error.strerror}; name the folder of a run") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunDataError(f"{path}: not the summary of a run of this version of emu; run it again") from None
    return RunData(folder, summary, domains)
