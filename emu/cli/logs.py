"""`emu logs`: what runs have left, asked in SQL or by the name of a question."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from emu.cli.failure import FINE, Failure
from emu.report.plain import one_line

if TYPE_CHECKING:
    from emu.analysis.log_database import Answer, LogDatabase
    from emu.analysis.run_data import RunData
    from emu.report.answer import Writer

_FORMATS = ("parquet", "csv", "json")


def logs(
    *folders: Annotated[Path, Parameter(name="RUN", help="Folder of a run; several are asked together.")],
    sql: Annotated[
        str | None,
        Parameter(
            metavar="QUERY",
            allow_leading_hyphen=True,
            help="Ask in SQL, as DuckDB has it, over the tables events, flushes, locks, ops, lock_waits, requests, "
            "samples, breakdown, processes and runs.",
        ),
    ] = None,
    ask: Annotated[
        str | None,
        Parameter(
            metavar="QUESTION",
            help="Ask slowest-flushes, lock-contention, breakdown, flush-causes, exposure or timeline.",
        ),
    ] = None,
    export: Annotated[
        Path | None, Parameter(metavar="FOLDER", help="Write every table to a file in a new or empty folder.")
    ] = None,
    format_: Annotated[
        str | None, Parameter(name="--format", help="Of those files: parquet, csv or json; default parquet.")
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON instead of a table.")] = False,
    csv: Annotated[bool, Parameter(negative=(), help="Print CSV instead of a table.")] = False,
) -> int:
    """Look into the logs of runs: in short, by a query, or as files for other tools.

    A query sees the runs named and nothing else: it cannot read a file, or write one.
    """
    question = _one_of({"--sql": sql, "--ask": ask, "--export": export and str(export)})
    form = _one_of({"--json": json or None, "--csv": csv or None})
    if not folders:
        raise Failure("needs the folder of a run, as in emu logs emu-runs/20260101T120000Z-run-1a2b")
    if ask is not None:
        _check_question(ask)
    _check_files(export, format_, form)

    from emu.analysis.log_database import ExportError, QueryError
    from emu.analysis.run_data import RunDataError, load_run

    try:
        runs = [load_run(folder) for folder in folders]
        if question is None:
            return _summarize(runs, form)
        with _database(runs) as database:
            if export is not None:
                return _export(database, export, format_ or _FORMATS[0])
            return _ask(database, ask, form) if ask is not None else _query(database, str(sql), form)
    except (RunDataError, ExportError) as error:
        raise Failure(str(error)) from None
    except QueryError as error:
        raise Failure(f"{question}: {error}") from None


def _one_of(given: dict[str, object]) -> str | None:
    """The option that was given, of those that contradict each other."""
    options = [option for option, value in given.items() if value is not None]
    if len(options) > 1:
        raise Failure(f"{options[0]} and {options[1]} contradict each other; give one")
    return options[0] if options else None


def _check_question(name: str) -> None:
    from emu.analysis.questions import QUESTIONS

    if name not in QUESTIONS:
        known = "; ".join(f"{known}: {question.about}" for known, question in QUESTIONS.items())
        raise Failure(f"--ask {name}: no such question; there are {known}")


def _check_files(export: Path | None, format_: str | None, form: str | None) -> None:
    if export is None:
        if format_ is not None:
            raise Failure("--format is about files; give --export FOLDER with it")
        return
    if form:
        raise Failure(f"{form} is about what is printed, and --export prints no table; use --format")
    if format_ is not None and format_ not in _FORMATS:
        raise Failure(f"--format {format_}: must be {', '.join(_FORMATS)}")


def _database(runs: list[RunData]) -> LogDatabase:
    from emu.analysis.log_database import LogDatabase

    try:
        return LogDatabase(runs)
    except ModuleNotFoundError as error:
        if error.name not in ("duckdb", "pandas"):
            raise
        raise Failure(f"needs {error.name}, which is not installed; pip install 'emu[logs]'") from None


def _summarize(runs: list[RunData], form: str | None) -> int:
    from emu.analysis.log_summary import log_summary
    from emu.analysis.run_tables import named
    from emu.report import log_summary as report
    from emu.report.answer import write_csv

    found = [log_summary(name, run) for name, run in named(runs)]
    if form == "--json":
        from json import dumps

        print(dumps(found, indent=1))
    elif form == "--csv":
        rows = ((one["run"], *row) for one in found for row in report.rows(one))
        write_csv(sys.stdout, ("run", *report.COLUMNS), rows)
    else:
        console = Console(highlight=False)
        for place, one in enumerate(found):
            if place:
                console.print()
            report.print_log_summary(console, one)
    return FINE


def _query(database: LogDatabase, sql: str, form: str | None) -> int:
    from emu.report.answer import exactly

    _print(database.ask(sql), exactly, form)
    return FINE


def _ask(database: LogDatabase, name: str, form: str | None) -> int:
    from emu.analysis.questions import QUESTIONS
    from emu.report.answer import readably

    if form is None and name in ("lock-contention", "breakdown"):
        return _print_contention(database, name)
    _print(database.ask(QUESTIONS[name].sql), readably, form)
    return FINE


def _print_contention(database: LogDatabase, name: str) -> int:
    """The two questions whose answers have a form of their own; the locks go before what they are a part of."""
    from emu.analysis.questions import QUESTIONS
    from emu.report.contention import print_breakdown, print_contention

    console = Console(highlight=False)
    if name == "lock-contention":
        print_contention(console, database.ask(QUESTIONS[name].sql).as_dicts())
    parts = database.ask(QUESTIONS["breakdown"].sql).as_dicts()
    print_breakdown(console, parts)
    if not parts:
        console.print("Where the time of maps and unmaps goes is measured with emu run --breakdown.")
    return FINE


def _print(answer: Answer, write: Writer, form: str | None) -> None:
    from emu.report.answer import print_answer, write_csv, write_json

    if form == "--json":
        write_json(sys.stdout, answer.columns, answer.types, answer.rows)
    elif form == "--csv":
        write_csv(sys.stdout, answer.columns, answer.rows)
    else:
        print_answer(Console(highlight=False), answer.columns, answer.types, answer.rows, write)


def _export(database: LogDatabase, folder: Path, form: str) -> int:
    files = database.export(folder, form)
    print(f"Tables: {one_line(str(folder))}, {', '.join(path.name for path in files)}")
    return FINE
