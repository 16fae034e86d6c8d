"""One run, CPU by CPU in columns, line by line, with the words that matter beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

_NARROWEST = 30
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Line:
    """One line of source that a CPU has executed, or one thing that happened.

    Attributes:
        cpu: number of its column. file, number, function: where; "" and 0 for what happened. source: its text.
        notes: what was read and written. values: of the words beside it, afterwards.
    """

    cpu: int
    file: str
    number: int
    function: str
    source: str
    notes: tuple[str, ...]
    values: tuple[int, ...]

    def and_also(self, note: str, values: tuple[int, ...]) -> Line:
        """The same line, when it has done something else as well."""
        notes = self.notes if not note or note in self.notes else (*self.notes, note)
        return replace(self, notes=notes, values=values)


def interleaving(lines: Sequence[Line], cpus: Sequence[str], titles: Sequence[str], width: int) -> list[str]:
    """Lay a run out.

    Args:
        lines: in their order.
        cpus: names of the columns.
        titles: of the words beside them.
        width: of the page, in characters.
    """
    values_width = sum(len(title) + len(_GAP) for title in titles)
    column = max(_NARROWEST, (width - values_width) // len(cpus) - len(_GAP))
    page = [
        _row([name.ljust(column) for name in cpus], titles),
        _row(["─" * column for _ in cpus], ["─" * len(title) for title in titles]),
    ]
    where: dict[int, tuple[str, str]] = {}
    last = -1
    for line in lines:
        if last not in (-1, line.cpu):
            page.append("")
        cell = _cell(line, where.get(line.cpu) if last == line.cpu else None, column)
        where[line.cpu] = (line.file, line.function)
        last = line.cpu
        for i, text in enumerate(cell):
            cells = [(text if n == line.cpu else "").ljust(column) for n in range(len(cpus))]
            is_last = i == len(cell) - 1
            page.append(_row(cells, [str(v).rjust(len(t)) for v, t in zip(line.values, titles, strict=True)], is_last))
    return page


def _row(cells: Sequence[str], values: Sequence[str], with_values: bool = True) -> str:
    return _GAP.join([*cells, *(values if with_values else ())]).rstrip()


def _cell(line: Line, before: tuple[str, str] | None, width: int) -> list[str]:
    if not line.file:
        return textwrap.wrap(f"● {line.source}", width, subsequent_indent="  ")
    cell = []
    if before != (line.file, line.function):
        cell += textwrap.wrap(f"{line.file}, {line.function}():", width, subsequent_indent="  ")
    cell += textwrap.wrap(f"{line.number:>5} {line.source}", width, subsequent_indent=" " * 8, break_long_words=True)
    for note in line.notes:
        cell += textwrap.wrap(f"→ {note}", width - 6, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return cell
