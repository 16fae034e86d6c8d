"""What a look at a running machine shows, in sections of rows and columns that keep their places, and as plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emu.report.quantity import NOTHING, amount, duration

Figures = dict[str, Any]

ORDERS = ("by number", "fastest first", "slowest first")
"""How CPUs are put in order, and with them the rings: those by number, the fullest first, the oldest entry first."""

_WORDS = {
    "queued": "waits for hypervisor",
    "served": "served by hypervisor",
    "resting": "rests, driver unbound",
}
_ALARM, _QUIET = "bold red", "dim"
_STYLES = {"dead": _ALARM, "finished": _QUIET, "starting": _QUIET, "resting": "yellow", "queued": "cyan"}
_CAUSES = {"full": "full", "timeout": "timeout", "no_resources": "no room", "wrap": "wrap", "early": "early"}
_GAP = 2
_MOST_LOCKS = 7


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, its style where there are styles, and, of a bar, how far it is filled."""

    text: str
    style: str = ""
    fill: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and a width; `left`: texts begin at its left edge."""

    heading: str
    width: int
    left: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Rows under headings; the first heading says what it is about."""

    name: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]


def heading(figures: Figures) -> list[list[Cell]]:
    """Two lines: which machine it is, and how it does."""
    machine = figures["machine"]
    kind = machine["domain"]
    if machine["type"] not in (None, kind):
        kind += f", now {machine['type']}"
    seconds = f" of {machine['seconds']:g}" if machine["seconds"] else ""
    violations = figures["violations"]
    return [
        [
            Cell(kind, "bold"),
            Cell(f"{machine['preset'] or 'no preset'}, {machine['workload']}"),
            Cell(machine["engine"]),
            Cell(f"{machine['cpus']} CPU{'s' * (machine['cpus'] != 1)}"),
            Cell(f"pid {machine['pid']}"),
            Cell(f"{machine['running_s']:.1f}{seconds} s"),
            Cell(machine["state"], "" if machine["state"] == "running" else "yellow"),
        ],
        [
            Cell(f"{_exact(figures['pairs_per_s'])} pairs/s", "bold"),
            Cell(f"{violations} violation{'s' * (violations != 1)}", _ALARM if violations else ""),
            Cell(f"{amount(figures['pairs'])} pairs in all"),
            Cell(f"{amount(figures['mapped_pages'])} pages mapped"),
            *([Cell(f"{figures['map_failures']} maps failed", "yellow")] if figures["map_failures"] else []),
            *([Cell(f"{figures['overruns']['count']} overruns", "yellow")] if figures["overruns"]["count"] else []),
        ],
    ]


def sections(figures: Figures, order: str = ORDERS[0]) -> list[Section]:
    """All sections, in the order of reading; what the machine does not have is left out."""
    found = [_cpus(figures, order), _rings(figures, order), _flushes(figures), _hypervisor(figures)]
    found += [_exposure(figures), _locks(figures)]
    return [section for section in found if section]


def plain_lines(figures: Figures) -> Iterator[str]:
    """The same as text, without styles; columns are where they were at the last look."""
    for line in heading(figures):
        yield "  ".join(harmless(cell.text) for cell in line)
    for section in sections(figures):
        yield ""
        yield _line([Cell(column.heading) for column in section.columns], section.columns)
        for row in section.rows:
            yield _line(row, section.columns)


def harmless(text: str) -> str:
    """A text that others chose, with what is no printable character shown as its escape."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def placed(cell: Cell, column: Column) -> str:
    """A cell's text in its column's place."""
    text = harmless(cell.text)
    return text.ljust(column.width) if column.left else text.rjust(column.width)


def _line(row: Sequence[Cell], columns: Sequence[Column]) -> str:
    return (" " * _GAP).join(placed(*pair) for pair in zip(row, columns, strict=True)).rstrip()


def _cpus(figures: Figures, order: str) -> Section:
    rows = _ordered(figures["cpus"], order, most=lambda row: row["pairs_per_s"], least=lambda row: -row["pairs_per_s"])
    others = [row for row in figures["others"] if row["state"] == "dead"]
    waited = figures["slots_waited_for"]
    about = f"state ({waited} mapping{'s' * (waited != 1)} waited for)" if waited else "state"
    fastest = max((row["pairs_per_s"] for row in rows), default=0.0)
    return Section(
        "cpus",
        (Column("cpu", 10, left=True), Column("pairs/s", 9), Column("of the fastest", 14), Column("pairs", 8),
         Column(about, 29, left=True)),
        [
            [
                Cell(str(row["cpu"])),
                Cell(_exact(row["pairs_per_s"])),
                _bar(row["pairs_per_s"] / fastest if fastest else 0.0),
                Cell(amount(row["pairs"])),
                _state(row),
            ]
            for row in rows
        ]
        + [[Cell(row["role"]), Cell(NOTHING), Cell(NOTHING), Cell(NOTHING), _state(row)] for row in others],
    )  # fmt: skip


def _state(row: dict[str, Any]) -> Cell:
    state = row["state"]
    words = _WORDS.get(state, state)
    if row.get("in_flush") and state in ("queued", "served"):
        words += " (flush)"
    return Cell(words, _STYLES.get(state, ""))


def _rings(figures: Figures, order: str) -> Section | None:
    queue = figures["queue"]
    if not queue:
        return None
    rows = _ordered(queue["rings"], order, most=lambda row: row["fill"], least=lambda row: row["oldest_ns"] or 0.0)
    due_ns = queue["timer_due_in_ns"]
    timer = "" if due_ns is None else f"timer in {duration(max(due_ns, 0))}" if due_ns > 0 else "timer is due"
    return Section(
        "rings",
        (Column("ring", 10, left=True), Column("entries", 9), Column("filled", 14), Column("oldest", 8),
         Column(timer, 29, left=True)),
        [
            [
                Cell(row["name"]),
                Cell(amount(row["entries"])),
                _bar(row["fill"]),
                Cell(duration(row["oldest_ns"])),
                Cell(f"of {row['size']}" if row["size"] else "until addresses wrap round", _QUIET),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _flushes(figures: Figures) -> Section:
    flushes = figures["flushes"]
    # Only a policy flushes early: most machines have no room to spare for a column of zeros.
    causes = [cause for cause in _CAUSES if cause != "early" or flushes.get(cause, {}).get("count")]
    return Section(
        "flushes",
        (Column("flushes", 10, left=True), *(Column(_CAUSES[cause], 9) for cause in causes)),
        [
            [Cell("per s"), *(Cell(_exact(flushes[cause]["count_per_s"])) for cause in causes)],
            [Cell("in all", _QUIET), *(Cell(amount(flushes[cause]["count"])) for cause in causes)],
        ],
    )


def _hypervisor(figures: Figures) -> Section:
    found = figures["hypervisor"]
    return Section(
        "hypervisor",
        (Column("hypervisor", 10, left=True), Column("busy", 9), Column("queued", 9), Column("requests", 9),
         Column("service", 9), Column("wait", 9)),
        [
            [
                Cell("per s"),
                Cell(_percent(found["utilisation"])),
                Cell(amount(found["queue"])),
                Cell(_exact(found["requests_per_s"])),
                Cell(duration(found["mean_service_ns"])),
                Cell(duration(found["mean_wait_ns"])),
            ],
            [
                Cell("in all", _QUIET),
                Cell(_percent(found["utilisation_in_all"])),
                Cell(NOTHING, _QUIET),
                Cell(amount(found["requests"])),
                Cell(duration(found["mean_service_in_all_ns"])),
                Cell(duration(found["mean_wait_in_all_ns"])),
            ],
        ],
    )  # fmt: skip


def _locks(figures: Figures) -> Section:
    locks = [lock for lock in figures["locks"] if lock["contended"]][:_MOST_LOCKS]
    unwaited = [[Cell("none waited for", _QUIET), *[Cell("")] * 5]]
    return Section(
        "locks",
        (Column("lock", 21, left=True), Column("wait/s", 8), Column("contended/s", 11), Column("wait", 9),
         Column("contended", 9), Column("longest", 9)),
        [
            [
                Cell(lock["name"]),
                Cell(duration(lock["wait_ns_per_s"])),
                Cell(_exact(lock["contended_per_s"])),
                Cell(duration(lock["total_wait_ns"])),
                Cell(amount(lock["contended"])),
                Cell(duration(lock["max_wait_ns"])),
            ]
            for lock in locks
        ]
        or unwaited,
    )  # fmt: skip


def _exposure(figures: Figures) -> Section:
    found = figures["exposure"]
    return Section(
        "exposure",
        (Column("reachable after unmap", 21, left=True), Column("closed", 8), Column("page·s", 11),
         Column("longest", 9), Column("open", 9)),
        [
            [
                Cell("per s"),
                Cell(_exact(found["windows_per_s"])),
                Cell(amount(found["page_seconds_per_s"])),
                Cell(NOTHING, _QUIET),
                Cell(amount(found["open"])),
            ],
            [
                Cell("in all", _QUIET),
                Cell(amount(found["windows"])),
                Cell(amount(found["page_seconds"])),
                Cell(duration(found["longest_ns"])),
                Cell(NOTHING, _QUIET),
            ],
        ],
    )  # fmt: skip


def _ordered(
    rows: list[dict[str, Any]],
    order: str,
    *,
    most: Callable[[dict[str, Any]], float],
    least: Callable[[dict[str, Any]], float],
) -> list[dict[str, Any]]:
    if order == ORDERS[0]:
        return rows
    return sorted(rows, key=most if order == ORDERS[1] else least, reverse=True)


def _bar(fill: float) -> Cell:
    return Cell(_percent(fill), fill=min(max(fill, 0.0), 1.0))


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _exact(value: float) -> str:
    """A rate: whole where it is large."""
    return amount(round(value) if value >= 100 else value)
