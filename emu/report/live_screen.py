"""The live view of a running machine: the sections of emu.report.live_table on a terminal, renewed at an interval.

It draws what it is given and knows nothing of machines: `Source` looks, this shows.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.timer import Timer
from textual.widgets import Footer, Static

from emu.report.live_table import ORDERS, Cell, Column, Section, harmless, heading, placed, sections

SHORTEST_S, LONGEST_S = 0.1, 60.0
_STEPS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_WIDE = 160
"""From so many columns on, sections stand in two columns."""
_LEFT = ("cpus", "rings")
_TALL = 30
"""In fewer lines there are no empty ones between the sections."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HIGH = 0.9


class Source(Protocol):
    """Where the view has its figures from."""

    def look(self) -> dict[str, Any] | None:
        """Figures as of emu.analysis.live; None while there is no machine."""

    @property
    def note(self) -> str:
        """What is to be said of the machine beside its figures, such as that it has ended; else empty."""


class LiveView(App[None]):
    """The view.

    Args:
        source: where the figures come from.
        interval_s: seconds between two looks.
    """

    CSS = """
    #head { height: auto; padding: 0 1; background: $panel; }
    #body { height: 1fr; scrollbar-size-vertical: 1; }
    Static { text-wrap: nowrap; text-overflow: ellipsis; }
    #left, #right { height: auto; width: 1fr; padding: 0 1; }
    Horizontal { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit", key_display="q"),
        Binding("p,space", "pause", "pause", key_display="p"),
        Binding("plus,equals_sign", "slower", "longer interval", key_display="+"),
        Binding("minus", "faster", "shorter", key_display="-"),
        Binding("s", "sort", "sort", key_display="s"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, source: Source, interval_s: float) -> None:
        super().__init__()
        self.interval_s = interval_s
        self.paused = False
        self.order = ORDERS[0]
        self._source = source
        self._figures: dict[str, Any] | None = None
        self._timer: Timer

    def compose(self) -> ComposeResult:
        """The head, the sections in one or two columns, and the keys."""
        yield Static(id="head", markup=False)
        with VerticalScroll(id="body"), Horizontal():
            with Vertical(id="left"):
                yield Static(id="first", markup=False)
            with Vertical(id="right"):
                yield Static(id="second", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Look at once, then at the interval."""
        # What is shown is for reading: nothing moves by itself, which would cost the machine its cores.
        self.animation_level = "none"
        self._timer = self.set_interval(self.interval_s, self._renew)
        self._renew()

    def on_resize(self, _event: Resize) -> None:
        """Columns, as many as there is room for."""
        self._draw()

    def action_pause(self) -> None:
        """Hold the figures still, or go on."""
        self.paused = not self.paused
        if not self.paused:
            self._renew()
        self._draw()

    def action_slower(self) -> None:
        """A longer interval."""
        self._set_interval(next((step for step in _STEPS_S if step > self.interval_s), LONGEST_S))

    def action_faster(self) -> None:
        """A shorter one."""
        self._set_interval(next((step for step in reversed(_STEPS_S) if step < self.interval_s), SHORTEST_S))

    def action_sort(self) -> None:
        """CPUs and rings in the next order."""
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self._draw()

    def _set_interval(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._timer.stop()
        self._timer = self.set_interval(interval_s, self._renew)
        self._draw()

    def _renew(self) -> None:
        if not self.paused:
            self._figures = self._source.look() or self._figures
            self._draw()

    def _draw(self) -> None:
        if not self.is_running:
            return
        is_wide, is_tall = self.size.width >= _WIDE, self.size.height >= _TALL
        self.query_one("#right").display = is_wide
        self.query_one("#head", Static).update(self._head())
        found = sections(self._figures, self.order) if self._figures else []
        left = [section for section in found if section.name in _LEFT or not is_wide]
        self.query_one("#first", Static).update(_drawn(left, spaced=is_tall))
        right = [section for section in found if section not in left]
        self.query_one("#second", Static).update(_drawn(right, spaced=is_tall))

    def _head(self) -> Text:
        if self._figures is None:
            return Text(harmless(self._source.note))
        said = [Cell(text, "bold yellow") for text in ("paused" if self.paused else "", self._source.note) if text]
        view = [Cell(f"every {self.interval_s:g} s"), Cell(self.order), *said]
        lines = [*heading(self._figures), view]
        return Text("\n").join(Text("  ").join(_styled(cell) for cell in line) for line in lines)


def _drawn(found: list[Section], *, spaced: bool) -> Text:
    lines: list[Text] = []
    for section in found:
        if lines and spaced:
            lines.append(Text(""))
        lines.append(_row([Cell(column.heading, "bold underline") for column in section.columns], section.columns))
        lines += [_row(row, section.columns) for row in section.rows]
    return Text("\n").join(lines)


def _row(row: list[Cell], columns: tuple[Column, ...]) -> Text:
    parts = []
    for cell, column in zip(row, columns, strict=True):
        if cell.fill is None:
            padded = placed(cell, column)
            text = padded.strip()
            left = len(padded) - len(padded.lstrip())
            parts.append(Text(" " * left).append(text, cell.style).append(" " * (len(padded) - left - len(text))))
        else:
            parts.append(_bar(cell, column))
    return Text("  ").join(parts)


def _bar(cell: Cell, column: Column) -> Text:
    """A bar, and beside it the number."""
    number = f"{cell.text:>6}"
    width = column.width - len(number)
    eighths = round((cell.fill or 0.0) * width * 8)
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    style = "red" if (cell.fill or 0.0) >= _HIGH and column.heading == "filled" else "green"
    return Text().append(bar.ljust(width), style).append(number)


def _styled(cell: Cell) -> Text:
    return Text(harmless(cell.text), cell.style)
