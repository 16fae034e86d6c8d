"""What a sweep has found, whole or not: its cells as a table, as a file, and the configurations worth choosing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from emu.analysis.pareto import knee, pareto_front
from emu.sweep.executor import SweepError
from emu.sweep.folder import about, cell_numbers, column_of, quoted, reading

_AS_FILES = {".csv": "FORMAT csv, HEADER", ".parquet": "FORMAT parquet, COMPRESSION zstd"}
_CHOSEN_BY = ("pairs_per_s", "unmap_p99_ns", "exposure_max_ns", "segment_bytes")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What is worth choosing.

    Attributes:
        swept: columns of the keys that were swept.
        front: configurations that no other beats, the fastest first: the swept columns, `domain`, `cells` (how many
            repetitions), `spread` (of pairs_per_s over them, as a part of the median; None of one), and the medians of
            `pairs_per_s`, `unmap_p99_ns`, `exposure_max_ns`, `segment_bytes`.
        knee: place in `front`; None where it is empty.
        configurations: how many there are.
        left_out: of these, how many had an error, a violation or a figure that is unknown.
        cells: how many cells were looked at.
    """

    swept: list[str]
    front: list[dict[str, Any]]
    knee: int | None
    configurations: int
    left_out: int
    cells: int


def recommend(path: Path) -> Recommendation:
    """The Pareto front of throughput, latency of unmaps, exposure and memory over the cells that are done.

    Exposure is the longest; a configuration of which no flush ended while unmapped pages stayed reachable has none that
    is known, and is left out, as is what had an error or a violation in any repetition.

    Raises:
        SweepError: it is no folder of a sweep, or no cell is done.
    """
    swept = [column_of(key) for key in about(path)["swept"]]
    columns = ", ".join(f'any_value("{name}") AS "{name}"' for name in dict.fromkeys([*swept, "domain"]))
    medians = ", ".join(f"median({name}) AS {name}, count({name}) AS known_{name}" for name in _CHOSEN_BY)
    query = f"""
        SELECT {columns}, {medians}, count(*) AS cells, count(error) AS errors, sum(violations) AS violations,
            (max(pairs_per_s) - min(pairs_per_s)) / nullif(median(pairs_per_s), 0) AS spread
        FROM ({_all(path)}) GROUP BY point ORDER BY point
    """  # noqa: S608 - names of ours
    with duckdb.connect(":memory:") as database:
        result = database.execute(query)
        names = [column[0] for column in result.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    sound = [row for row in rows if _is_sound(row)]
    front = _front(sound)
    chosen = (
        knee([row["pairs_per_s"] for row in front], [max(row["exposure_max_ns"], 1.0) for row in front])
        if front
        else None
    )
    return Recommendation(
        swept=swept,
        front=[_shown(row, swept) for row in front],
        knee=chosen,
        configurations=len(rows),
        left_out=len(rows) - len(sound),
        cells=sum(row["cells"] for row in rows),
    )


def export(path: Path, target: Path) -> int:
    """Write all cells to one file, whole or not at all; returns how many.

    Raises:
        SweepError: it is no folder of a sweep, no cell is done, or the file cannot be written or is there already.
    """
    form = _AS_FILES.get(target.suffix)
    if form is None:
        raise SweepError(f"--export {target}: must end with {' or '.join(_AS_FILES)}")
    if target.exists() or target.is_symlink():
        raise SweepError(f"--export {target}: is there already; name a new file, results are never overwritten")
    about(path)
    query = _all(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with duckdb.connect(":memory:") as database:
            database.execute(f"COPY ({query}) TO {quoted(temporary)} ({form})")
        temporary.replace(target)
    except (OSError, duckdb.Error) as error:
        temporary.unlink(missing_ok=True)
        reason = str(error).strip().split("\n", 1)[0]
        raise SweepError(f"--export {target}: cannot be written: {reason}") from None
    return len(cell_numbers(path))


def _all(path: Path) -> str:
    if not cell_numbers(path):
        raise SweepError(f"{path}: no cell is done; go on with emu sweep {path}")
    return reading(path)


def _is_sound(row: dict[str, Any]) -> bool:
    known = all(row[f"known_{name}"] == row["cells"] for name in _CHOSEN_BY)
    return known and not row["errors"] and not row["violations"] and row["pairs_per_s"] > 0


def _front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows:
        return []
    costs = np.array([[-row["pairs_per_s"], *(row[name] for name in _CHOSEN_BY[1:])] for row in rows], np.float64)
    front = [row for row, stays in zip(rows, pareto_front(costs), strict=True) if stays]
    return sorted(front, key=lambda row: -row["pairs_per_s"])


def _shown(row: dict[str, Any], swept: list[str]) -> dict[str, Any]:
    spread = row["spread"] if row["cells"] > 1 and math.isfinite(row["spread"]) else None
    names = dict.fromkeys([*swept, "domain", "cells", *_CHOSEN_BY])
    return {**{name: row[name] for name in names}, "spread": spread}
