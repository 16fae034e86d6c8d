"""What a calibration measured: the steps, and how well they add up to whole operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Step(NamedTuple):
    """One step of a CPU.

    Attributes:
        name: its key in the description.
        cost_ns: None where it was not measured.
        spread_ns: lowest and highest over the passes.
        meaning: what it is, or why it was not measured.
    """

    name: str
    cost_ns: float | None
    spread_ns: tuple[float, float] | None
    meaning: str


def print_steps(console: Console, steps: Sequence[Step]) -> None:
    """Print a line for each step."""
    table = Table("step", "ns", "spread", "what it is", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for step in steps:
        spread = f"{step.spread_ns[0]:.1f}–{step.spread_ns[1]:.1f}" if step.spread_ns else ""
        table.add_row(step.name, "–" if step.cost_ns is None else f"{step.cost_ns:.1f}", spread, step.meaning)
    console.print(table)


def print_operations(console: Console, operations: Sequence[tuple[str, float, float]]) -> None:
    """Print, of each operation that was timed, what was measured and what the steps add up to (ns)."""
    table = Table("one map and unmap", "measured", "added up", "ratio", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measured_ns, added_ns in operations:
        table.add_row(name, f"{measured_ns:.1f} ns", f"{added_ns:.1f} ns", f"{added_ns / measured_ns:.2f}")
    console.print(table)
