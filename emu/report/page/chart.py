"""The parts of a page: sections with sentences, pictures and the tables behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.report.page.colours import FAINT_INK, GRID, INK, PAPER
from emu.report.page.series import Series

_LOG_FROM = 30.0
"""Numbers that differ by more are shown on a logarithmic axis."""
_MOST_ROWS = 200
_AMOUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


@dataclass(frozen=True, slots=True)
class Data:
    """The numbers behind a picture; all cells are markup.

    Attributes:
        caption: what they are, with units.
        is_folded: shown only when asked for.
        headers: of the columns; the first column names the rows.
        rows: as long as the headers.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_folded: bool = False

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """As many rows as a page can bear; `left_out` says how many are not among them."""
        return self.rows[:_MOST_ROWS]

    @property
    def left_out(self) -> int:
        """How many rows are not shown."""
        return max(len(self.rows) - _MOST_ROWS, 0)


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a picture's legend.

    Attributes:
        name: markup.
        group: `legendgroup` of the traces that it shows and hides.
        colour: light one.
        dash, symbol, pattern: the look, where the picture has such.
    """

    name: str
    group: str
    colour: str
    dash: str | None = None
    symbol: str | None = None
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture.

    Attributes:
        identity: unique on the page.
        title: markup.
        says: one sentence: what is to be seen, also to those who cannot; markup.
        traces, layout: Plotly's; texts are markup.
        narrow: what of the layout is other where there is little room.
        keys: the legend.
        data: the numbers behind it.
        notes: more sentences below it; markup.
    """

    identity: str
    title: str
    says: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    data: Data
    keys: Sequence[Key] = ()
    narrow: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        identity: unique on the page, for links.
        title: markup.
        parts: pictures, tables, and sentences (markup).
    """

    identity: str
    title: str
    parts: Sequence[Chart | Data | str]


@dataclass(frozen=True, slots=True)
class Scale:
    """A value axis that fits some numbers.

    Attributes:
        axis: Plotly's description of it.
        is_log: whether it is logarithmic; then 0 has a place at its foot, marked as 0.
        foot: that place.
    """

    axis: dict[str, Any]
    is_log: bool
    foot: float

    @property
    def narrow(self) -> dict[str, Any]:
        """The axis where there is little room: with every other mark."""
        if not self.is_log:
            return self.axis
        return {**self.axis, "tickvals": self.axis["tickvals"][::2], "ticktext": self.axis["ticktext"][::2]}

    def place(self, values: npt.NDArray[np.float64]) -> list[float]:
        """Where numbers go on the axis."""
        placed = np.where(values > 0, values, self.foot) if self.is_log else values
        return [float(f"{value:.6g}") for value in placed]


def scale_for(values: Iterable[float], title: str, *, is_time: bool = False) -> Scale:
    """The axis of some numbers, none below 0.

    Args:
        values: the numbers.
        title: what they are, with the unit; markup.
        is_time: they are ns and shown as times.
    """
    known = np.array([value for value in values if value is not None and np.isfinite(value)], float)
    positive = known[known > 0]
    prefixes = _TIMES if is_time else _AMOUNTS
    axis = {**plain_axis(title), "rangemode": "tozero"}
    if len(positive) and positive.max() / np.percentile(positive, 2) > _LOG_FROM:
        least, most = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
        every = max(1, round((most - least) / 6))
        marks = [10.0**power for power in range(least, most + 1, every)]
        texts = [_round(mark, prefixes) for mark in marks]
        foot = 10.0 ** (least - 0.6 * every)
        with_zero = len(positive) < len(known)
        if with_zero:
            marks, texts = [foot, *marks], ["0", *texts]
        lowest = np.log10(foot) - 0.1 * every if with_zero else least - 0.15
        axis |= {"type": "log", "tickvals": marks, "ticktext": texts, "rangemode": "normal"}
        axis |= {"range": [lowest, most + 0.15], "title": {"text": f"{title} (log scale)", "standoff": 8}}
        return Scale(axis, is_log=True, foot=foot)
    if is_time and len(positive):
        marks = _round_marks(float(positive.max()))
        axis |= {"tickvals": marks, "ticktext": [_round(mark, prefixes) for mark in marks]}
    return Scale(axis, is_log=False, foot=0.0)


def plain_axis(title: str) -> dict[str, Any]:
    """An axis that says what it shows and looks as all do."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": FAINT_INK,
        "zerolinecolor": FAINT_INK,
        "tickfont": {"color": FAINT_INK},
        "exponentformat": "SI",
        "fixedrange": False,
    }


def lanes_axis(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis with a lane for each name, at 0, -1, -2 and so on from the top."""
    return {
        **plain_axis(""),
        "title": None,
        "tickvals": [-lane for lane in range(len(names))],
        "ticktext": list(names),
        "range": [0.6 - len(names), 0.6],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def layout(x: dict[str, Any], y: dict[str, Any], height: int, **more: Any) -> dict[str, Any]:
    """What all pictures have in common."""
    return {
        "height": height,
        "margin": {"l": 12, "r": 16, "t": 12, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
        **more,
    }


def key_of(series: Series, *, dash: bool = False, symbol: bool = False) -> Key:
    """The legend's entry of a series."""
    return Key(
        name=series.name,
        group=series.name,
        colour=series.colour,
        dash=series.dash if dash else None,
        symbol=series.symbol if symbol else None,
        pattern=None if dash or symbol else series.pattern,
    )


def bar_look(series: Series) -> dict[str, Any]:
    """`marker` of its bars."""
    return {"color": series.colour, "pattern": pattern_of(series.pattern)}


def pattern_of(shape: str) -> dict[str, Any]:
    """Strips of paper over the colour of a bar."""
    return {"shape": shape, "fillmode": "overlay", "fgcolor": PAPER, "fgopacity": 1.0, "size": 7, "solidity": 0.25}


def _round(value: float, prefixes: Sequence[tuple[float, str]]) -> str:
    """A round number: 0, 20, 10 k, 500 µs."""
    factor, prefix = next((each for each in prefixes if value >= each[0] * 0.9995), prefixes[-1])
    return f"{value / factor:g} {prefix}".rstrip() if value else "0"


def _round_marks(most: float) -> list[float]:
    step = 10.0 ** np.floor(np.log10(most))
    step *= next(part for part in (0.2, 0.5, 1.0, 2.0, 5.0) if most / (step * part) <= 6)
    return [float(step * number) for number in range(int(most / step) + 2)]
