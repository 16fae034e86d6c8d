"""Function by function: what each one did, and what it waited for, where several share a hypervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from emu.report.plain import one_line
from emu.report.quantity import NOTHING, amount, duration

Function = dict[str, Any]

_NAME_WIDTH = 10


class _Column(NamedTuple):
    title: str
    width: int
    show: Callable[[Function], str]


def _latency(call: str, percentile: str) -> Callable[[Function], str]:
    return lambda own: duration(own["latency_ns"][call][percentile]) if own["ops"] else NOTHING


def _of_flushes(name: str) -> Callable[[Function], str]:
    return lambda own: duration(own["flush_ns"][name]) if own["flush_ns"]["max"] else NOTHING


_COLUMNS = (
    _Column("scheme", 12, lambda own: str(own["type_at_end"])),
    _Column("CPUs", 5, lambda own: str(own["cpus"])),
    _Column("pairs/s", 8, lambda own: amount(own["pairs_per_s"]) if own["cpus"] else NOTHING),
    _Column("map p50", 9, _latency("map", "p50")),
    _Column("unmap p50", 10, _latency("unmap", "p50")),
    _Column("flushes", 8, lambda own: amount(sum(own["flushes"].values()))),
    _Column("took p50", 9, _of_flushes("p50")),
    _Column("p99", 9, _of_flushes("p99")),
)
"""`flushes`: of everything; what such a one `took` whoever asked for it, from then until it went on."""


TITLES = tuple(column.title for column in _COLUMNS)
"""Of the columns after the function's name."""


def row_of(own: Function) -> list[str]:
    """What is said of a function under these titles."""
    return [column.show(own) for column in _COLUMNS]


def print_functions(console: Console, runs: Sequence[dict[str, Any]]) -> None:
    """Print the functions of each run that has several."""
    for run in runs:
        for number, line in enumerate(function_lines(run)):
            console.print(Text(line, style="" if number else "bold"), soft_wrap=True)


def function_lines(run: dict[str, Any]) -> Iterator[str]:
    """The lines of a run's functions: a heading and one for each; nothing where there is only one."""
    if not run.get("functions"):
        return
    yield one_line(run["domain"]).ljust(_NAME_WIDTH) + "".join(column.title.rjust(column.width) for column in _COLUMNS)
    for own in run["functions"]:
        name = one_line(own["name"])
        cells = "".join(cell.rjust(column.width) for cell, column in zip(row_of(own), _COLUMNS, strict=True))
        yield (name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…").ljust(_NAME_WIDTH) + cells
