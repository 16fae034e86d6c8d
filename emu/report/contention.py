"""What was waited for, as `perf lock contention` prints it, and what maps and unmaps consisted of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from emu.report.plain import one_line
from emu.report.quantity import NOTHING, amount, duration

_UNITS = ((3600e9, "h "), (60e9, "m "), (1e9, "s "), (1e6, "ms"), (1e3, "us"))
_WIDTHS = {"contended": 10, "total wait": 12, "max wait": 12, "avg wait": 12}
_TYPE_WIDTH = 10

Row = dict[str, Any]


def perf_time(ns: int | None, width: int = 12) -> str:
    """A time as perf prints it (tools/perf/builtin-lock.c, lock_stat_key_print_time()): "1.23 ms", "830 ns"."""
    if ns is None:
        return NOTHING.rjust(width)
    for factor, unit in _UNITS:
        if ns >= factor:
            return f"{ns / factor:{width - 3}.2f} {unit}"
    return f"{ns:{width - 3}} ns"


def print_contention(console: Console, rows: Sequence[Row]) -> None:
    """Print the locks of each run and domain.

    Args:
        console: where to.
        rows: of the question lock-contention, in its order.
    """
    for whose, locks in groupby(rows, key=lambda row: (row["run"], row["domain"])):
        _print_lines(console, " ".join(whose), _contention(list(locks)))


def print_breakdown(console: Console, rows: Sequence[Row]) -> None:
    """Print what maps and unmaps consisted of.

    Args:
        console: where to.
        rows: of the question breakdown, in its order.
    """
    for whose, parts in groupby(rows, key=lambda row: (row["run"], row["domain"], row["op"])):
        _print_lines(console, " ".join(whose), _breakdown(list(parts)))


def _print_lines(console: Console, title: str, lines: Iterator[str]) -> None:
    console.print(Text(one_line(title), style="bold"), soft_wrap=True)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    console.print()


def _contention(locks: Sequence[Row]) -> Iterator[str]:
    yield " ".join(name.rjust(width) for name, width in _WIDTHS.items()) + f"   {'type':>{_TYPE_WIDTH}}   caller"
    yield ""
    for lock in locks:
        contended = NOTHING if lock["contended"] is None else str(lock["contended"])
        times = " ".join(perf_time(lock[f"{name}_wait_ns"]) for name in ("total", "max", "avg"))
        who = one_line(f"{lock['lock']} ({lock['caller']})" if lock["caller"] else str(lock["lock"]))
        yield f"{contended:>10} {times}   {lock['type']:>{_TYPE_WIDTH}}   {who}"


def _breakdown(parts: Sequence[Row]) -> Iterator[str]:
    calls, total_ns, measured_ns = (parts[0][name] for name in ("calls", "total_ns", "measured_ns"))
    if not calls or not total_ns:
        yield "  no calls"
        return
    yield f"  {'':20}{'per call':>10}{'of all':>9}"
    for part in parts:
        share = 100 * part["stage_ns"] / total_ns
        yield f"  {one_line(part['stage'].replace('_', ' ')):20}{duration(part['stage_ns'] / calls):>10}{share:>7.1f} %"
    yield f"  {'sum':20}{duration(total_ns / calls):>10}{100:>7.1f} %"
    difference = f", {100 * (total_ns - measured_ns) / measured_ns:+.2f} % between them" if measured_ns else ""
    yield f"  {'measured':20}{duration(measured_ns / calls):>10}  over {amount(calls)} calls{difference}"
