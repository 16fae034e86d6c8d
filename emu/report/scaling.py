"""Throughput by number of CPUs, a column for each scheme, and below it the law that was fitted."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from emu.analysis.usl import Scalability
from emu.report.quantity import NOTHING, amount

_NARROWEST = 112

Rates = Mapping[int, float]
"""Pairs per s, by number of CPUs."""


def print_scaling(
    console: Console,
    virtual: Mapping[str, Rates],
    real: Mapping[str, Rates],
    fits: Mapping[str, Scalability],
) -> None:
    """Print points and fits.

    Args:
        console: where to.
        virtual: what machines on virtual clocks did, by scheme.
        real: the same of real processes, where there are any.
        fits: of the former, of those that could be fitted.
    """
    # A terminal that is narrower wraps lines, but the numbers are all there.
    console.width = max(console.width, _NARROWEST)
    domains = list(virtual)
    table = Table("CPUs", *domains, title="map+unmap pairs per s", title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    sizes = dict.fromkeys(size for rates in virtual.values() for size in rates)
    for size in sizes:
        table.add_row(str(size), *(amount(virtual[domain].get(size)) for domain in domains))
        if any(size in rates for rates in real.values()):
            table.add_row("processes", *(_beside(real.get(domain, {}), virtual[domain], size) for domain in domains))
    console.print(table)
    console.print()
    console.print(_fits(fits))


def _beside(real: Rates, virtual: Rates, size: int) -> str:
    if size not in real or size not in virtual:
        return NOTHING
    return f"{amount(real[size])} ({100 * (virtual[size] / real[size] - 1):+.0f} %)"


def _fits(fits: Mapping[str, Scalability]) -> Table:
    title = "X(N) = λN / (1 + σ(N-1) + κN(N-1)), with intervals of 95 %"
    heads = ("scheme", "λ, pairs/s", "contention σ", "coherency κ", "peak, CPUs", "worst point off")
    table = Table(*heads, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    table.columns[0].justify = "left"
    for domain, fit in fits.items():
        # Where κ may as well be 0, throughput may as well never fall.
        peak = fit.peak_cpus if fit.coherency_interval[0] > 0 else None
        table.add_row(
            domain,
            amount(fit.rate),
            _spread(fit.contention, fit.contention_interval),
            _spread(fit.coherency, fit.coherency_interval),
            NOTHING if peak is None else amount(round(peak)),
            f"{100 * fit.worst:.0f} %",
        )
    return table


def _spread(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2g} ({interval[0]:.2g} to {interval[1]:.2g})"
