"""The side-by-side table as a piece of HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from emu.report.plain import one_line
from emu.report.table import cells


def html_table(runs: Sequence[dict[str, Any]]) -> str:
    """One column for each run; nothing that others have written is markup in it."""
    if not runs:
        return "<p>No domain ran.</p>"
    head = "".join(f'<th scope="col">{_text(run["domain"])}</th>' for run in runs)
    lines = [f"<table><thead><tr><th></th>{head}</tr></thead><tbody>"]
    for label, values in cells(runs):
        # A line below a heading is indented, which HTML does not show.
        name = "&emsp;" * label.startswith("  ") + _text(label.strip())
        if values:
            row = "".join(f'<td style="text-align: right">{_text(value)}</td>' for value in values)
            lines.append(f'<tr><th scope="row" style="text-align: left">{name}</th>{row}</tr>')
        else:
            lines.append(f'<tr><th colspan="{len(runs) + 1}" style="text-align: left">{name}</th></tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _text(value: str) -> str:
    return escape(one_line(str(value)))
