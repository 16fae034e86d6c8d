"""The functions of the machines that have several, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from emu.report.functions import TITLES, row_of
from emu.report.page.chart import Data, Section
from emu.report.page.series import Series, Subject
from emu.report.page.text import markup, shortened

_LONGEST_NAME = 32


def functions(subjects: Sequence[Subject]) -> Iterator[Section]:
    """The section of functions; none where no machine has several."""
    rows = [row for subject in subjects for each in subject.series for row in _rows(each)]
    if rows:
        says = "What each function did; flushes are of everything, and took as long as whoever asked for one waited."
        yield Section("functions", "Functions", [Data(says, ("scheme", "function", *TITLES), rows)])


def _rows(series: Series) -> Iterator[list[str]]:
    for own in series.run.get("functions") or ():
        yield [series.name, markup(shortened(own["name"], _LONGEST_NAME)), *(markup(cell) for cell in row_of(own))]
