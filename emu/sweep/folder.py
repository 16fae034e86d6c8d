"""The folder of a sweep: the experiment, who made it, a log, and a Parquet file for each cell that is done.

A cell's file is written under another name and renamed, so it is there whole or not at all, at whatever moment the
sweep is killed; and what is done is what has a file. A lock that ends with its holder keeps a second sweep out.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

import duckdb

from emu.config import Config
from emu.sweep.cell_process import CellResult
from emu.sweep.cells import Cell, value_of
from emu.sweep.executor import SweepError
from emu.sweep.experiment_file import read_experiment
from emu.sweep.figures import COLUMNS, figures
from emu.sweep.versions import differing, versions

EXPERIMENT = "experiment.toml"
_ABOUT = "sweep.json"
_LOG = "log.jsonl"
_LOCK = "lock"
_CELLS = "cells"
_OURS = {EXPERIMENT, _ABOUT, _LOG, _LOCK, _CELLS}
_CELL_NAME = re.compile(r"(\d+)\.parquet", re.ASCII)
SCHEMA = 1
_GO_ON = "put that right, and start the sweep again"

_FIRST = {"cell": "BIGINT", "point": "BIGINT", "seed": "BIGINT"}
_ABOUT_CELL = {
    "domain": "VARCHAR",
    "engine": "VARCHAR",
    "cpus": "BIGINT",
    "preset": "VARCHAR",
    "workload": "VARCHAR",
    "error": "VARCHAR",
}
_LAST = {"summary": "VARCHAR", "took_s": "DOUBLE", "host": "VARCHAR", "pid": "BIGINT"}
NOT_REPEATABLE = ("took_s", "host", "pid")
"""Columns that say where and how a cell ran, not what came of it."""


class SweepFolder:
    """A folder that a sweep writes to; a context manager that gives its lock back.

    Args:
        path: new, empty, or of the same experiment.
        source: the experiment's file, or None where the folder has it.

    Attributes:
        experiment: with everything resolved as it was when the folder was made.

    Raises:
        ConfigError: the experiment is wrong.
        SweepError: the folder cannot be used.
    """

    def __init__(self, path: Path, source: Path | None = None) -> None:
        self.path = path
        is_new = not (path / _ABOUT).is_file()
        if is_new and source is None:
            raise SweepError(f"{path} is no folder of a sweep; give the file of an experiment")
        # Before anything is made: a wrong experiment leaves nothing.
        self.experiment = read_experiment(source or path / EXPERIMENT, None if is_new else self._about()["cpus"])
        try:
            self._open(is_new=is_new)
        except OSError as error:
            raise SweepError(f"{path} cannot be used: {error.strerror or error}; name another with --out") from None
        self.done = set(cell_numbers(path))
        self._columns = columns_of(self.experiment.sweep.keys)
        self._database = duckdb.connect(":memory:")
        self._database.execute("SET threads = 1")
        described = ", ".join(f'"{name}" {kind}' for name, kind in self._columns.items())
        self._database.execute(f"CREATE TABLE cell ({described})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others use it."""
        self._database.close()
        # On a full disk it is not whole, which has been said.
        with suppress(OSError):
            self._log_file.close()
        os.close(self._lock)

    def log(self, event: str, **values: Any) -> None:
        """Append a line to the log."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
        try:
            self._log_file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as error:
            raise SweepError(f"{self.path / _LOG} cannot be written: {error.strerror}; {_GO_ON}") from None

    def keep(self, result: CellResult) -> None:
        """Write what came of a cell.

        Raises:
            SweepError: it cannot be written.
        """
        row = row_of(result, self.experiment.sweep.keys)
        target = self.path / _CELLS / f"{result.cell.number:06d}.parquet"
        temporary = target.with_name(f".{target.name}.tmp")
        # Ctrl-C waits: it would end a statement of the database's in its midst.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._database.execute("DELETE FROM cell")
            places = ", ".join("?" * len(self._columns))
            self._database.execute(f"INSERT INTO cell VALUES ({places})", [row[name] for name in self._columns])
            self._database.execute(f"COPY cell TO {quoted(temporary)} (FORMAT parquet, COMPRESSION zstd)")
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except (OSError, duckdb.Error) as error:
            temporary.unlink(missing_ok=True)
            reason = str(error).strip().split("\n", 1)[0]
            raise SweepError(f"{target} cannot be written: {reason}; {_GO_ON}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.done.add(result.cell.number)

    def forget_failed(self) -> int:
        """Forget the cells that have an error, so that they run again; returns how many.

        Of a search also all later ones, which may have been chosen because of that.
        """
        failed = [number for (number,) in self._ask("SELECT cell FROM cells WHERE error IS NOT NULL ORDER BY cell")]
        if failed and self.experiment.sweep.search:
            failed = sorted(number for number in self.done if number >= failed[0])
        for number in failed:
            (self.path / _CELLS / f"{number:06d}.parquet").unlink()
        self.done -= set(failed)
        return len(failed)

    def objectives(self, cells: Sequence[Cell], names: Sequence[str]) -> list[float] | None:
        """Means of some figures over the repetitions of a point; None where one of them is missing.

        Raises:
            SweepError: what was kept under their numbers are other cells.
        """
        files = ", ".join(quoted(self.path / _CELLS / f"{cell.number:06d}.parquet") for cell in cells)
        keys = self.experiment.sweep.keys
        columns = ", ".join(f'"{column_of(key)}"' for key in keys)
        kept = self._database.execute(f"SELECT {columns} FROM read_parquet([{files}])").fetchall()
        if any(row != tuple(_plain(value_of(cells[0].config, key)) for key in keys) for row in kept):
            raise SweepError(
                f"{self.path}: the search has other cells than those that are there, as another version of optuna "
                "may have; name another folder with --out"
            )
        means = ", ".join(f"avg({name}), count({name})" for name in names)
        (found,) = self._database.execute(
            f"SELECT {means}, count(*) FILTER (error IS NULL) FROM read_parquet([{files}])"
        ).fetchall()
        if any(count < len(cells) for count in (*found[1:-1:2], found[-1])):
            return None
        return [float(mean) for mean in found[:-1:2]]

    def counts(self) -> tuple[int, int]:
        """How many cells have an error, and how many a violation."""
        if not self.done:
            return 0, 0
        query = "SELECT count(error), count(*) FILTER (violations > 0) FROM cells"
        ((errors, violations),) = self._ask(query)
        return errors, violations

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        if not self.done:
            return []
        self._database.execute(f"CREATE OR REPLACE TEMP VIEW cells AS {reading(self.path)}")
        return list(self._database.execute(sql).fetchall())

    def _about(self) -> dict[str, Any]:
        return about(self.path)

    def _open(self, *, is_new: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        others = sorted(
            entry.name for entry in self.path.iterdir() if entry.name.lstrip(".").split(".tmp")[0] not in _OURS
        )
        if is_new and others:
            raise SweepError(
                f"{self.path} is not empty ({others[0]}), and no folder of a sweep; name another with --out"
            )
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SweepError(f"{self.path} is in use by another emu sweep; wait for it, or stop it") from None
            # Only now: who had the lock a moment ago may have made it.
            if (self.path / _ABOUT).is_file():
                self._check()
            else:
                self._make()
            for left in (self.path / _CELLS).glob(".*.tmp"):
                left.unlink()
            self._log_file = (self.path / _LOG).open("a", encoding="utf-8", buffering=1)
        except BaseException:
            os.close(self._lock)
            raise

    def _make(self) -> None:
        (self.path / _CELLS).mkdir(exist_ok=True)
        if cell_numbers(self.path):
            raise SweepError(f"{self.path} has cells, but no {_ABOUT}; name another folder with --out")
        _write(self.path / EXPERIMENT, self.experiment.path.read_text(encoding="utf-8"))
        known = {
            "schema": SCHEMA,
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "cpus": self.experiment.base.machine.cpus,
            "swept": self.experiment.sweep.keys,
        }
        # The last of it: what says that the folder is whole.
        _write(self.path / _ABOUT, json.dumps(known, indent=1) + "\n")

    def _check(self) -> None:
        known = self._about()
        kept = tomllib.loads((self.path / EXPERIMENT).read_text(encoding="utf-8"))
        change = next(_differences(kept, self.experiment.data), None)
        if change:
            raise SweepError(
                f"{self.experiment.path} is not the experiment that {self.path} was begun with: {change}; "
                "name another folder with --out, or undo the change"
            )
        other = differing(known["versions"])
        if other:
            raise SweepError(f"{self.path} was begun with {other}; name another folder with --out")


def about(path: Path) -> dict[str, Any]:
    """What a folder says of its sweep: `versions`, `cpus`, `swept`.

    Raises:
        SweepError: it is no folder of a sweep, or of another version.
    """
    try:
        known: dict[str, Any] = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SweepError(f"{path} is no folder of a sweep; emu sweep EXPERIMENT.toml --out makes one") from None
    if known.get("schema") != SCHEMA:
        raise SweepError(f"{path} is of another version of emu; this one reads schema {SCHEMA}")
    return known


def cell_numbers(path: Path) -> list[int]:
    """Cells that are done, in order."""
    folder = path / _CELLS
    names = (_CELL_NAME.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name[1]) for name in names if name)


def reading(path: Path) -> str:
    """A query for all columns of all cells that are done, at least one; in order."""
    files = ", ".join(quoted(path / _CELLS / f"{number:06d}.parquet") for number in cell_numbers(path))
    return f"SELECT * FROM read_parquet([{files}]) ORDER BY cell"


def quoted(path: Path) -> str:
    """A path in SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def column_of(key: str) -> str:
    """The column of a key that is swept."""
    return key.replace(".", "_")


def columns_of(keys: Sequence[str]) -> dict[str, str]:
    """Columns of a cell's row, and their types in SQL."""
    return {**_FIRST, **{column_of(key): _type_of(key) for key in keys}, **_ABOUT_CELL, **COLUMNS, **_LAST}


def row_of(result: CellResult, keys: Sequence[str]) -> dict[str, Any]:
    """A cell's row."""
    cell, config = result.cell, result.cell.config
    found = figures(result.summary["runs"][0]) if result.summary else dict.fromkeys(COLUMNS)
    return {
        "cell": cell.number,
        "point": cell.point,
        "seed": cell.seed,
        **{column_of(key): _plain(value_of(config, key)) for key in keys},
        "domain": cell.domain,
        "engine": config.machine.engine,
        "cpus": config.machine.cpus,
        "preset": config.hypervisor.preset,
        "workload": config.workload.name,
        "error": result.error,
        **found,
        "summary": json.dumps(result.summary, ensure_ascii=False) if result.summary else None,
        "took_s": result.took_s,
        "host": result.host,
        "pid": result.pid,
    }


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _type_of(key: str) -> str:
    """From the description's own types; what is no number, truth or word is JSON text."""
    section, _, name = key.partition(".")
    part = Config.model_fields[section].annotation
    assert part is not None  # noqa: S101 - sections have types
    kinds = set(_kinds(part.model_fields[name].annotation)) - {type(None)}
    for kind, column in ((bool, "BOOLEAN"), (int, "BIGINT"), (float, "DOUBLE")):
        if kinds == {kind}:
            return column
    return "VARCHAR"


def _kinds(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    else:
        yield annotation


def _differences(kept: Any, given: Any, where: str = "") -> Iterator[str]:
    """What is different in two descriptions, the first of it first."""
    if isinstance(kept, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys([*kept, *given]):
            place = f"{where}.{key}" if where else str(key)
            if key not in kept:
                yield f"{place} is new"
            elif key not in given:
                yield f"{place} is gone"
            else:
                yield from _differences(kept[key], given[key], place)
    elif kept != given or type(kept) is not type(given):
        yield f"{where} was {kept}, and is {given}"


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)
