"""The configurations of a sweep that are worth choosing: a table, and the knee in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from emu.report.plain import one_line, plain
from emu.report.quantity import NOTHING, amount, duration

Row = Mapping[str, Any]

_MARK = "←"
_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("pairs_per_s", "pairs/s", amount),
    ("unmap_p99_ns", "unmap p99", duration),
    ("exposure_max_ns", "exposure", duration),
    ("segment_bytes", "memory", lambda value: _memory(value)),  # noqa: PLW0108 - defined below
)


def print_recommendation(console: Console, swept: Sequence[str], front: Sequence[Row], knee: int) -> None:
    """Print the front, the fastest first, and what its knee costs and gains.

    Args:
        console: where to.
        swept: names of the columns that say what a configuration is.
        front: at least one; with `swept`, `pairs_per_s`, `unmap_p99_ns`, `exposure_max_ns`, `segment_bytes`, `spread`.
        knee: place of it in the front.
    """
    has_spread = any(row["spread"] is not None for row in front)
    best = max(row["pairs_per_s"] for row in front)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in swept:
        table.add_column(Text(one_line(short_name(name))), justify="right", no_wrap=True)
    for name in (*(label for _, label, _ in _FIGURES[:1]), "of best", *(["spread"] if has_spread else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for _, label, _ in _FIGURES[1:]:
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for place, row in enumerate(front):
        spread = [_percent(row["spread"])] if has_spread else []
        cells = [one_line(_shown(row[name])) for name in swept]
        pairs, *others = (show(row[name]) for name, _, show in _FIGURES)
        marked = _MARK if place == knee else ""
        table.add_row(*map(Text, (*cells, pairs, _percent(row["pairs_per_s"] / best), *spread, *others, marked)))
    console.width = max(
        console.width, Measurement.get(console, console.options.update(max_width=1 << 20), table).maximum
    )
    console.print(table)
    console.print()
    console.print(plain(knee_in_words(swept, front, knee)), soft_wrap=True)


def knee_in_words(swept: Sequence[str], front: Sequence[Row], knee: int) -> str:
    """One sentence: what the knee is, what it gives up in throughput, and what it spares."""
    row, fastest = front[knee], max(front, key=lambda row: float(row["pairs_per_s"]))
    what = ", ".join(f"{short_name(name)} {_shown(row[name])}" for name in swept)
    if row is fastest:
        return f"{_MARK} {what}: the best throughput; nothing with less exposure is worth what it costs."
    part = _percent(row["pairs_per_s"] / fastest["pairs_per_s"])
    exposure = _part(row["exposure_max_ns"], fastest["exposure_max_ns"])
    times = f"{duration(row['exposure_max_ns'])} instead of {duration(fastest['exposure_max_ns'])}"
    more = [
        f"{label} {show(row[name])} instead of {show(fastest[name])}"
        for name, label, show in (_FIGURES[1], _FIGURES[3])
        if show(row[name]) != show(fastest[name])
    ]
    spared = "".join(f"; {text}" for text in more)
    return f"{_MARK} {what}: {part} of the best throughput with {exposure} its exposure ({times}){spared}."


def short_name(column: str) -> str:
    """A key without its section, as the options have it."""
    section, _, key = column.partition("_")
    return {"domain_types": "domain", "workload_name": "workload"}.get(column, key if section and key else column)


def _shown(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(part: float | None) -> str:
    return NOTHING if part is None else f"{part * 100:.0f} %" if part >= 0.095 or not part else f"{part * 100:.1f} %"


def _part(value: float, of: float) -> str:
    """How much of another, before "its …": "half", "a tenth of", "0.3 % of"."""
    if not of:
        return "as much as"
    ratio = value / of
    for named, share in (("half", 1 / 2), ("a third of", 1 / 3), ("a quarter of", 1 / 4), ("a tenth of", 1 / 10)):
        if abs(ratio / share - 1) < 0.06:
            return named
    return f"{ratio * 100:.2g} % of" if ratio < 1 else f"{ratio:.3g} ×"


def _memory(size: float) -> str:
    for unit, name in _SIZES:
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"
