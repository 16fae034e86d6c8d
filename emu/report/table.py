"""The side-by-side table: one column for each run, narrow enough for 80 columns with six of them.

Numbers are never wrapped or cut: where the terminal is too narrow for all columns, the table is printed in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.report.quantity import NOTHING, amount, times

Run = dict[str, Any]
Reader = Callable[[Run], float | None]

STRICT = ("DMA", "s390-strict")
"""Domains that flush at every unmap: what the others are compared with."""

_LABEL_WIDTH = 25
_CELL_WIDTH = 8
_GAP = 1


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table.

    Attributes:
        label: what it is, with its unit; indented under a heading.
        read: the number of a run, None where it has none.
        show: how the number is written.
        always: shown even where every run has 0 or nothing.
        alarm: style of a number above 0.
    """

    label: str
    read: Reader
    show: Callable[[float | None], str] = amount
    always: bool = True
    alarm: str = ""


@dataclass(frozen=True, slots=True)
class _Heading:
    label: str


def baseline_of(runs: Sequence[Run]) -> Run:
    """The run that the others are compared with: a strict one if there is any, else the first."""
    return next((run for name in STRICT for run in runs if run["domain"] == name), runs[0])


def lock_share(run: Run, total_wait_ns: float) -> float | None:
    """What part of its CPUs' time a run spent in a wait, 0 to 1."""
    cpu_ns = run["seconds"] * run["cpus"] * 1e9
    return total_wait_ns / cpu_ns if cpu_ns else None


def print_table(console: Console, runs: Sequence[Run]) -> None:
    """Print all runs side by side."""
    if not runs:
        return
    rows = list(_rows(baseline_of(runs)))
    # A terminal that is narrower yet wraps lines, but the numbers are all there.
    console.width = max(console.width, _LABEL_WIDTH + _CELL_WIDTH + _GAP)
    fit = (console.width - _LABEL_WIDTH) // (_CELL_WIDTH + _GAP)
    for first in range(0, len(runs), fit):
        part = runs[first : first + fit]
        if first:
            console.print()
        console.print(_part(rows, part, runs))


def cells(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """The same table for other writers: each line's label and what it says of each run, nothing of a heading."""
    for row in _rows(baseline_of(runs)):
        if isinstance(row, _Heading):
            yield row.label, []
        elif row.always or any(row.read(run) for run in runs):
            yield row.label, [row.show(row.read(run)) for run in runs]


def _part(rows: Sequence[_Row | _Heading], part: Sequence[Run], runs: Sequence[Run]) -> Table:
    table = Table(box=None, padding=0, pad_edge=False, collapse_padding=True)
    table.add_column(width=_LABEL_WIDTH, no_wrap=True, overflow="ignore")
    for name in _headers([run["domain"] for run in part]):
        table.add_column(Text(name, style="bold"), width=_GAP + _CELL_WIDTH, no_wrap=True, overflow="ignore")
    for row in rows:
        if isinstance(row, _Heading):
            table.add_row(Text(row.label, style="bold"))
        elif row.always or any(row.read(run) for run in runs):
            table.add_row(row.label, *(_cell(row, run) for run in part))
    return table


def _cell(row: _Row, run: Run) -> Text:
    value = row.read(run)
    written = row.show(value)
    # Padded here: what must never be cut, rich does not align either.
    return Text(written.rjust(_GAP + _CELL_WIDTH), style="dim" if written == NOTHING else row.alarm if value else "")


def _headers(names: Sequence[str]) -> list[str]:
    """Names in cells: long ones in two lines, broken at their hyphen, and then the others on the lower line."""
    parts = [tuple(name.replace("-", "-\n", 1).split("\n")) if len(name) > _CELL_WIDTH else (name,) for name in names]
    height = max(len(lines) for lines in parts)
    return [
        "\n".join(line.rjust(_GAP + _CELL_WIDTH) for line in ("",) * (height - len(lines)) + lines) for lines in parts
    ]


def _rows(baseline: Run) -> Iterator[_Row | _Heading]:
    base = baseline["pairs_per_s"]
    yield _Row("map+unmap pairs per s", lambda run: run["pairs_per_s"])
    yield _Row(f"relative to {baseline['domain']}", lambda run: run["pairs_per_s"] / base if base else None, times)
    yield _Heading("latency, µs")
    for call in ("map", "unmap"):
        for percentile in ("p50", "p99"):
            yield _Row(f"  {call} {percentile}", _micro("latency_ns", call, percentile))
    yield _Heading("RPCITs per 1000 unmaps")
    yield _Row("  global", _per_1000_unmaps("Global RPCITs"))
    yield _Row("  sync map", _per_1000_unmaps("Sync Map RPCITs"))
    yield _Row("  sync (unmap)", _per_1000_unmaps("Sync RPCITs"))
    yield _Heading("global flushes by cause")
    yield _Row("  ring full", lambda run: run["flushes"]["full"])
    yield _Row("  timeout", lambda run: run["flushes"]["timeout"])
    yield _Row("  asked for by the policy", lambda run: run["flushes"].get("early"), always=False)
    yield _Row("  wrap-around", lambda run: run["flushes"]["wrap"], always=False)
    yield _Row("  out of resources", lambda run: run["flushes"]["no_resources"], always=False)
    yield _Row("IOVAs freed per flush", lambda run: run["iovas_per_flush"])
    yield _Row("ring overruns", lambda run: run["overruns"], alarm="yellow")
    yield _Row("  IOVAs lost in them", lambda run: run.get("overrun_iovas"), always=False, alarm="yellow")
    yield _Row("failed maps", lambda run: run.get("map_failures"), always=False, alarm="yellow")
    yield _Heading("hypervisor")
    yield _Row("  busy, %", lambda run: _percent(run["hypervisor"]["utilisation"]))
    yield _Row("  wait in queue p50, µs", _micro("hypervisor", "queue_wait_ns", "p50"))
    yield _Row("  wait in queue p99, µs", _micro("hypervisor", "queue_wait_ns", "p99"))
    yield _Row("  late start p50, µs", _micro("hypervisor", "schedule_ns", "p50"))
    yield _Row("  answered busy", lambda run: run["hypervisor"].get("busy_retries"), always=False)
    yield _Row("  tries per command", _tries_per_command, always=False)
    yield _Row("waiting for locks, %", lambda run: _percent(lock_share(run, sum(_lock_waits(run)))))
    yield _Heading("reachable after unmap")
    yield _Row("  p50, ms", _exposed("p50_ns", 1e6))
    yield _Row("  longest, ms", _exposed("max_ns", 1e6))
    yield _Row("  page·seconds", _exposed("page_seconds", 1.0))
    yield _Row("  never flushed, IOVAs", lambda run: run["exposure"].get("still_open"))
    yield _Row("  stale accesses", _of_devices("stale"), always=False, alarm="yellow")
    yield _Row("    to others' pages", _of_devices("stale_to_others"), always=False, alarm="yellow")
    yield _Row("violations", lambda run: run["violations"], alarm="bold red")


def _tries_per_command(run: Run) -> float | None:
    """How often a CPU tries to reserve places in the command queue for one request; None where there is none."""
    queue, requests = run["hypervisor"].get("command_queue"), run["hypervisor"]["requests"]
    return queue["attempts"] / requests if queue and requests else None


def _micro(section: str, name: str, percentile: str) -> Reader:
    def read(run: Run) -> float | None:
        value = run[section].get(name, {}).get(percentile)
        return None if value is None or not _has_samples(run, section) else value / 1e3

    return read


def _has_samples(run: Run, section: str) -> bool:
    return bool(run["hypervisor"]["requests"] if section == "hypervisor" else run["ops"])


def _per_1000_unmaps(counter: str) -> Reader:
    return lambda run: run["counters"][counter] * 1000 / run["ops"] if run["ops"] else None


def _exposed(name: str, unit: float) -> Reader:
    def read(run: Run) -> float | None:
        value = run["exposure"].get(name)
        return None if value is None or run["exposure"].get("windows") == 0 else value / unit

    return read


def _of_devices(name: str) -> Reader:
    def read(run: Run) -> float | None:
        devices = run["exposure"].get("devices")
        return devices[name] if devices else None

    return read


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def _lock_waits(run: Run) -> list[float]:
    return [lock["total_wait_ns"] for lock in run["locks"]]
