"""What is put side by side: each domain of each run, with a short name and a look of its own on every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from emu.analysis.run_data import DomainRun, RunData, RunDataError
from emu.analysis.samples import Samples, samples_of
from emu.report.page.colours import DASHES, PATTERNS, SERIES, SYMBOLS
from emu.report.page.text import markup, plain, shortened

_LONGEST_NAME = 14


@dataclass(frozen=True, slots=True)
class Series:
    """One domain of one run.

    Attributes:
        name: short and unique on the page, as markup: "DMA-FQ", or "B DMA-FQ" of the second of several runs.
        letter: of its run.
        data: the domain.
        samples: how it went on over time; None where the log does not tell.
        colour, dash, symbol, pattern: its look.
    """

    name: str
    letter: str
    data: DomainRun
    samples: Samples | None
    colour: str
    dash: str
    symbol: str
    pattern: str

    @property
    def run(self) -> dict[str, Any]:
        """Its element of `runs` in summary.json."""
        return self.data.run


@dataclass(frozen=True, slots=True)
class Subject:
    """One run.

    Attributes:
        letter: "A", "B", … in the order in which they were named.
        data: the run.
        entries: those of its log but for samples and flushes.
        series: one for each domain that has a result.
        log_problem: why its log could not be read (on); None where it could.
        is_whole: whether the log tells that the command came to its end.
    """

    letter: str
    data: RunData
    entries: list[dict[str, Any]]
    series: list[Series]
    log_problem: str | None

    @property
    def is_whole(self) -> bool:
        """Whether its log tells how the command ended."""
        return any(str(entry["event"]).endswith("_finished") and "exit_code" in entry for entry in self.entries)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Its results."""
        return [each.run for each in self.series]


def subjects_of(runs: Sequence[RunData]) -> list[Subject]:
    """Name all runs and domains, and read their logs."""
    names = list(dict.fromkeys(domain.domain for data in runs for domain in data.domains))
    subjects: list[Subject] = []
    taken: set[str] = set()
    for number, data in enumerate(runs):
        letter = _letter(number)
        entries, samples, problem = _log_of(data)
        series = []
        for position, domain in enumerate(data.domains):
            name = _name(letter if len(runs) > 1 else "", domain.domain, taken)
            taken.add(name)
            # Of several domains each has a colour, and a look in each run; one domain has a colour in each run.
            colour, look = (names.index(domain.domain), number) if len(names) > 1 else (number, number)
            look = look if len(runs) > 1 else position
            series.append(
                Series(
                    name=name,
                    letter=letter,
                    data=domain,
                    samples=samples[position] if position < len(samples) and len(samples[position]) else None,
                    colour=SERIES[colour % len(SERIES)],
                    dash=DASHES[look % len(DASHES)],
                    symbol=SYMBOLS[look % len(SYMBOLS)],
                    pattern=PATTERNS[look % len(PATTERNS)] if len(runs) > 1 else "",
                )
            )
        subjects.append(Subject(letter, data, entries, series, problem))
    return subjects


def _letter(number: int) -> str:
    before, last = divmod(number, len(ascii_uppercase))
    return (_letter(before - 1) if before else "") + ascii_uppercase[last]


def _name(letter: str, domain: str, taken: set[str]) -> str:
    name = markup(f"{letter} {shortened(domain, _LONGEST_NAME)}".strip())
    again = 2
    unique = name
    while unique in taken:
        unique = f"{name} ({again})"
        again += 1
    return unique


def _log_of(data: RunData) -> tuple[list[dict[str, Any]], list[Samples], str | None]:
    """Its entries, the samples of each domain in the order in which they ran, and what kept us from reading on."""
    entries: list[dict[str, Any]] = []
    sampled: list[list[dict[str, Any]]] = []
    problem = None
    try:
        for entry in data.log():
            event = entry["event"]
            if event == "sample":
                if sampled:
                    sampled[-1].append(entry)
                continue
            if event == "domain_started":
                sampled.append([])
            if event not in ("flush_started", "flush_finished", "timer_armed", "timer_fired"):
                entries.append(entry)
    except RunDataError as error:
        problem = plain(error)
    return entries, [samples_of(each) for each in sampled], problem
