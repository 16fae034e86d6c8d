"""A comparison as a table, a line for each candidate, and what it says."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.report.plain import one_line, plain
from emu.report.quantity import NOTHING, amount


def print_comparison(console: Console, found: dict[str, Any]) -> None:
    """Print what comparison.json says."""
    console.print(f"{found['rounds']} rounds, {plain(found['label'])}, ratios of the same round to", end=" ")
    console.print(f"{plain(found['baseline'])}:", soft_wrap=True)
    console.print(_table(found))
    console.print()
    for line in statements(found):
        console.print(plain(line))
    for line in found["warnings"]:
        console.print(f"[yellow]Note[/yellow]: {plain(line)}")


def statements(found: dict[str, Any]) -> list[str]:
    """What was found of each candidate, a sentence each, and how sure it is."""
    lines = [one["says"] for one in found["candidates"] if one["says"]]
    if found["until"] is not None:
        reached = "is" if found["is_reached"] else "is not"
        lines.append(f"Every ratio {reached} known to {found['until'] * 100:g} % after {found['rounds']} rounds.")
    return lines


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    confidence = f"{found['confidence'] * 100:.3g} % interval"
    for title in ("median", "spread", "ratio", confidence):
        table.add_column(Text(title, style="bold"), justify="right", no_wrap=True)
    table.add_column("")
    for one in found["candidates"]:
        name = Text(one_line(one["name"]))
        cells = (amount(one["median"]), f"{one['spread'] * 100:.2g} %", _ratio(one["ratio"]), _interval(one))
        table.add_row(name, *cells, _verdict(found, one))
    return table


def _ratio(value: float | None) -> str:
    """Four digits: differences are small."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.4g}" if value < 0.1 or value >= 10 else f"{value:.3f}"


def _interval(one: dict[str, Any]) -> str:
    if one["low"] is None:
        return NOTHING
    return f"{_ratio(one['low'])} to {_ratio(one['high'])}"


def _verdict(found: dict[str, Any], one: dict[str, Any]) -> str:
    if one["name"] == found["baseline"]:
        return "baseline"
    if one["differs"] is None:
        return "no ratio"
    if one["low"] is None:
        return "too few rounds"
    if not one["differs"]:
        return "no difference found"
    return "higher" if one["ratio"] > 1 else "lower"
