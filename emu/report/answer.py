"""What a query has found: as a table, as JSON, as CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import IO, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from emu.report.plain import one_line
from emu.report.quantity import NOTHING, amount, duration

MOST_ROWS = 1000
"""Of a table on a terminal; JSON and CSV have all."""

Rows = Iterator[tuple[Any, ...]]
Writer = Callable[[str, Any], str]
"""From a column's name and a value to what is shown."""

_NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "REAL")


def exactly(_column: str, value: Any) -> str:
    """Every digit of it."""
    return NOTHING if value is None else one_line(str(value))


def readably(column: str, value: Any) -> str:
    """As people read it: times in the unit that fits, a few digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return exactly(column, value)
    if column.endswith("_ns"):
        return duration(value)
    return amount(value)


def print_answer(console: Console, columns: Sequence[str], types: Sequence[str], rows: Rows, write: Writer) -> None:
    """Print a table, at most MOST_ROWS rows of it.

    Args:
        console: where to; wider ones than a terminal are for whoever reads a pipe.
        columns: their names.
        types: their types in SQL, which say what is a number.
        rows: in order.
        write: `exactly` or `readably`.
    """
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name, kind in zip(columns, types, strict=True):
        is_number = any(word in kind.upper() for word in _NUMBERS)
        shown = name.removesuffix("_ns") if write is readably else name
        table.add_column(
            Text(one_line(shown)), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for row in islice(rows, MOST_ROWS):
        table.add_row(*(Text(write(name, value)) for name, value in zip(columns, row, strict=True)))
    needed = Measurement.get(console, console.options.update(max_width=1 << 20), table)
    # Numbers are never cut; and a pipe has no edge at which to fold.
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    console.print(table)
    left = sum(1 for _ in rows)
    if left:
        console.print(f"… and {left} rows more; --csv and --json print all of them, LIMIT fewer.")


def write_csv(file: IO[str], columns: Sequence[str], rows: Rows) -> None:
    """Write all rows; what a terminal would act upon is written as an escape."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([one_line(name) for name in columns])
    writer.writerows([one_line(value) if isinstance(value, str) else value for value in row] for row in rows)


def write_json(file: IO[str], columns: Sequence[str], types: Sequence[str], rows: Rows) -> None:
    """Write one array, an object for each row, as it comes."""
    file.write("[")
    between = "\n"
    for row in rows:
        found = {name: _plain(kind, value) for name, kind, value in zip(columns, types, row, strict=True)}
        file.write(between + json.dumps(found, default=str))
        between = ",\n"
    file.write("\n]\n")


def _plain(kind: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.loads(value) if kind == "JSON" and isinstance(value, str) else value
