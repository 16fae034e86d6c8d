"""Runs in a database of DuckDB's, in memory: what others ask of it can read no file and write none.

Tables are there from the start, and filled when a query names them: operations may be a hundred million rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from emu.analysis.run_data import RunData
from emu.analysis.run_tables import COLUMNS, frame, frames, named

if TYPE_CHECKING:
    import pandas as pd

_AT_A_TIME = 10_000
_LOOSE_ROWS = 4_000_000
_AS_FILES = {"parquet": "FORMAT parquet", "csv": "FORMAT csv, HEADER", "json": "FORMAT json"}
_QUESTIONS = (["SELECT"], ["EXPLAIN"], ["MULTI"])
"""Kinds of statements; MULTI is what a PIVOT becomes."""
_LIMITS = (
    "SET temp_directory = ''",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class QueryError(Exception):
    """A query is wrong, or needs more than there is; the message is one line."""


class ExportError(Exception):
    """A table cannot be written; the message is one line: what, where, what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query has found.

    Attributes:
        columns: their names.
        types: their types, as SQL has them.
        rows: comes from the database as it is read, once; may raise QueryError.
    """

    columns: list[str]
    types: list[str]
    rows: Iterator[tuple[Any, ...]]

    def as_dicts(self) -> list[dict[str, Any]]:
        """All rows, by the names of their columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class LogDatabase:
    """The tables of some runs.

    Args:
        runs: at least one.

    Raises:
        ModuleNotFoundError: duckdb or pandas is not installed.
        RunDataError: a summary is not as this version writes it.
    """

    def __init__(self, runs: Sequence[RunData]) -> None:
        import duckdb  # noqa: PLC0415 - heavy, and of an extra

        self._error: type[Exception] = duckdb.Error
        self._runs = named(runs)
        self._connection = duckdb.connect(":memory:")
        # Compressed, as recorded operations may be a hundred million.
        self._connection.execute("ATTACH ':memory:' AS logs (COMPRESS); USE logs")
        self._filled: set[str] = set()
        self._is_locked = False
        for table, columns in COLUMNS.items():
            if table != "runs":
                described = ", ".join(f"{_quoted(name)} {kind}" for name, kind in columns.items())
                self._connection.execute(f"CREATE TABLE {table} ({described})")
        self._fill_runs()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything."""
        self._connection.close()

    def ask(self, sql: str) -> Answer:
        """Ask in SQL, over the tables of COLUMNS.

        Raises:
            QueryError: the query is wrong, or wants to reach out of the database.
            RunDataError: the events of a run cannot be read.
        """
        result = self._execute(sql)
        return Answer([str(c[0]) for c in result.description], [str(c[1]) for c in result.description], self._rows())

    def as_frame(self, sql: str) -> pd.DataFrame:
        """The same as a data frame; raises as `ask`."""
        result = self._execute(sql)
        try:
            return result.df()
        except self._error as error:
            raise QueryError(_one_line(error)) from None

    def export(self, folder: Path, form: str) -> list[Path]:
        """Write every table to a file of its name.

        Args:
            folder: new or empty.
            form: of the files, which have its name as suffix: parquet, csv or json.

        Returns:
            The files.

        Raises:
            ExportError: there is no such format; the folder is not empty, or cannot be written; no file is left half.
            RunDataError: the events of a run cannot be read.
        """
        if form not in _AS_FILES:
            raise ExportError(f"{form}: no such format; there are {', '.join(_AS_FILES)}")
        _make_empty(folder)
        return [self._export(table, folder / f"{table}.{form}", form) for table in COLUMNS]

    def _export(self, table: str, target: Path, form: str) -> Path:
        self._fill(table)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            self._connection.execute(f"COPY {table} TO {_text(str(temporary))} ({_AS_FILES[form]})")
            temporary.replace(target)
        except (self._error, OSError) as error:
            temporary.unlink(missing_ok=True)
            raise ExportError(f"{target} cannot be written: {_one_line(error)}") from None
        return target

    def _execute(self, sql: str) -> Any:
        self._check(sql)
        for table in self._named_in(sql):
            self._fill(table)
        if not self._is_locked:
            for limit in _LIMITS:
                self._connection.execute(limit)
            self._is_locked = True
        try:
            return self._connection.execute(sql)
        except self._error as error:
            raise QueryError(_one_line(error)) from None

    def _check(self, sql: str) -> None:
        """Refuse what is no question; an EXPORT makes a folder before it is told that it may not write."""
        try:
            statements = self._connection.extract_statements(sql)
        except self._error as error:
            raise QueryError(_one_line(error)) from None
        if [statement.type.name for statement in statements] not in _QUESTIONS:
            raise QueryError("it must be one SELECT, and nothing else")

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        while True:
            try:
                some = self._connection.fetchmany(_AT_A_TIME)
            except self._error as error:
                raise QueryError(_one_line(error)) from None
            if not some:
                return
            yield from some

    def _named_in(self, sql: str) -> list[str]:
        """Tables that a query reads; where its grammar is beyond the library's own reader, whose names it contains."""
        try:
            names = {name.lower() for name in self._connection.get_table_names(sql)}
        except self._error:
            names = {name.lower() for name in re.findall(r"\w+", sql)}
        return [table for table in COLUMNS if table in names]

    def _fill_runs(self) -> None:
        # A data frame of another type than the table's is none: what columns there are, the runs say.
        self._connection.register("part", frame("runs", self._runs))
        self._connection.execute("CREATE TABLE runs AS SELECT * FROM part")
        self._connection.unregister("part")
        self._filled.add("runs")

    def _fill(self, table: str) -> None:
        if table in self._filled:
            return
        loose = 0
        for part in frames(table, self._runs):
            self._connection.register("part", part)
            self._connection.execute(f"INSERT INTO {table} SELECT * FROM part")  # noqa: S608 - a name of ours
            self._connection.unregister("part")
            loose += len(part)
            if loose >= _LOOSE_ROWS:
                # Only now is it compressed.
                self._connection.execute("CHECKPOINT logs")
                loose = 0
        self._filled.add(table)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _one_line(error: BaseException) -> str:
    """The first line: those below show the query."""
    first = str(error).strip().split("\n", 1)[0]
    return first.strip() or type(error).__name__


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ExportError(f"{folder} cannot be used: {error.strerror}; name a folder that can be written") from None
    if occupied:
        raise ExportError(f"{folder} is not empty; name a new folder, nothing is overwritten")
