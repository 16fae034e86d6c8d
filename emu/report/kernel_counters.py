"""What a capture held, and the counters of its replay beside the kernel's, each with = or the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.analysis.kernel_comparison import Compared, Comparison
from emu.capture.counters import KernelCounters
from emu.capture.ftrace import Capture
from emu.report.plain import plain
from emu.report.quantity import duration

_LABEL_WIDTH = 16
_CELL_WIDTH = 12
_DIFFERENCE_WIDTH = 11


def print_capture(console: Console, capture: Capture) -> None:
    """Print what the capture held, in counts."""
    report = capture.report
    times = capture.events["time_ns"]
    parts = [
        f"{report.lines} lines",
        f"{capture.cpus} CPUs",
        duration(float(times.max() - times.min())),
        f"{report.map_events} map and {report.unmap_events} unmap events",
        f"{len(capture.mappings)} mappings",
        f"{report.other_events} other events",
        f"{report.lost_events} lost",
        f"{report.broken_lines} broken lines",
        f"{report.unmatched_unmaps} unmatched unmaps",
    ]
    console.print()
    console.print(plain(f"Capture {capture.name}: {', '.join(parts)}."))


def print_comparisons(
    console: Console, comparisons: Sequence[Comparison], kernel: KernelCounters | None, speed: str
) -> None:
    """Print the kernel's counters and, to their right, those of every run."""
    if kernel is None:
        console.print("No description of the capture beside it, so no counters of the kernel to compare with.")
        return
    where = f"Kernel {kernel.kernel}, domain {kernel.domain_type or 'unknown'}"
    if not comparisons:
        console.print(plain(f"{where}: it has no counters to compare with."))
        return
    phases = ", ".join(kernel.comparable_phases)
    console.print()
    console.print(plain(f"{where}; its counters{f' over {phases}' if phases else ''} beside the emulator's:"))
    # A terminal that is narrower yet wraps lines, but the numbers are all there.
    console.width = max(console.width, _LABEL_WIDTH + 2 * _CELL_WIDTH + _DIFFERENCE_WIDTH)
    fit = (console.width - _LABEL_WIDTH - _CELL_WIDTH) // (_CELL_WIDTH + _DIFFERENCE_WIDTH)
    for first in range(0, len(comparisons), fit):
        console.print(_part(comparisons[first : first + fit]))
    for line in _explanations(comparisons, kernel, speed):
        console.print(plain(line))


def _explanations(comparisons: Sequence[Comparison], kernel: KernelCounters, speed: str) -> Iterator[str]:
    if kernel.restarted:
        yield kernel.restarted
    if speed == "asap" and "Global RPCITs" in kernel.comparable:
        yield "Global RPCITs follow timers: as fast as possible fewer of them fire, so they are not comparable."
    for comparison in comparisons:
        wrong = [row.name for row in comparison.counters if row.must_agree and row.difference]
        if wrong:
            yield f"{comparison.domain}: {', '.join(wrong)} must agree and do not."
    for reason in dict.fromkeys(comparison.unlike for comparison in comparisons if comparison.unlike):
        domains = ", ".join(comparison.domain for comparison in comparisons if comparison.unlike == reason)
        yield f"{domains}: {reason}."


def _part(comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=None, padding=0, pad_edge=False)
    table.add_column(width=_LABEL_WIDTH, no_wrap=True)
    table.add_column(Text("kernel", style="bold"), width=_CELL_WIDTH, justify="right", no_wrap=True)
    for comparison in comparisons:
        name = Text(comparison.domain, style="bold")
        table.add_column(name, width=_CELL_WIDTH, justify="right", no_wrap=True)
        table.add_column(width=_DIFFERENCE_WIDTH, no_wrap=True)
    for rows in zip(*(comparison.counters for comparison in comparisons), strict=True):
        cells = [cell for row in rows for cell in (Text(str(row.emu)), _difference(row))]
        table.add_row(rows[0].name, str(rows[0].kernel), *cells)
    return table


def _difference(row: Compared) -> Text:
    if row.difference == 0:
        return Text(" =", style="green" if row.must_agree else "dim")
    return Text(f" {row.difference:+d}", style="bold red" if row.must_agree else "dim")
