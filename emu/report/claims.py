"""Published claims beside what was measured: a table, the points of curves, and why each verdict is what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.analysis.claims import CANNOT_BE_SHOWN, DOES_NOT_HOLD, HOLDS, Finding
from emu.report.plain import plain
from emu.report.quantity import NOTHING

_STYLES = {HOLDS: "green", DOES_NOT_HOLD: "bold red", CANNOT_BE_SHOWN: "yellow"}
_NARROWEST = 112


def print_claims(console: Console, statements: Mapping[str, str], findings: Sequence[Finding]) -> None:
    """Print what was found.

    Args:
        console: where to.
        statements: what was published, and how it is read, by claim.
        findings: in the order of the claims.
    """
    # A terminal that is narrower wraps lines, but the numbers are all there.
    console.width = max(console.width, _NARROWEST)
    console.print(_table(findings))
    for finding in findings:
        for point in finding.details.get("points", ()):
            ratio = point["measured"] / point["published"]
            console.print(
                plain(
                    f"{finding.claim} {finding.name}, {point['cpus']} CPUs: {point['published']:g} k published, "
                    f"{point['measured']:.1f} k here ({100 * (ratio - 1):+.0f} %)"
                )
            )
    for claim, said in statements.items():
        own = [finding for finding in findings if finding.claim == claim]
        if own:
            console.print()
            console.print(plain(f"{claim}: {said}."))
        for finding in own:
            # Where an interval is in its range, the table has said it all.
            if finding.verdict != HOLDS or finding.details.keys() & {"points", "median_ns"}:
                style = _STYLES[finding.verdict]
                console.print(f"  [{style}]{finding.verdict}[/{style}]: {plain(finding.name)}: {plain(finding.why)}.")


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("claim", "what", "expected", "measured", "95 % interval", "verdict", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    table.columns[3].justify = "right"
    for finding in findings:
        measured = finding.measured
        table.add_row(
            finding.claim,
            plain(finding.name),
            plain(finding.expected) or NOTHING,
            f"{measured.value:.3f}{finding.unit}" if measured else NOTHING,
            f"{measured.low:.3f} to {measured.high:.3f}" if measured else NOTHING,
            Text(finding.verdict, style=_STYLES[finding.verdict]),
        )
    return table
