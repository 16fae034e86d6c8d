"""Colours of the page in light and in dark, told apart by people who see few colours too.

Pictures are described in the light ones; the page's script puts the dark ones in their place.
"""

from __future__ import annotations

INK, FAINT_INK, GRID, PAPER = "#1b2026", "#57606a", "#dfe3e8", "#ffffff"

SERIES = ("#0b6bb0", "#c75000", "#00805c", "#a23b7c", "#8a6500", "#5b4bb5", "#5f6770", "#b3261e")
"""After Okabe and Ito, darkened until each has a contrast of 4 to white."""
CAUSES = ("#c75000", "#0b6bb0", "#a23b7c", "#00805c", "#8a6500")
"""Of flushes, by cause."""

DARK = {
    INK: "#e7eaee",
    FAINT_INK: "#a8b1bb",
    GRID: "#323a44",
    PAPER: "#12161b",
    "#0b6bb0": "#58b4f0",
    "#c75000": "#ff9350",
    "#00805c": "#35cf9f",
    "#a23b7c": "#ee97c9",
    "#8a6500": "#e3ba3f",
    "#5b4bb5": "#b0a4ff",
    "#5f6770": "#b5bec8",
    "#b3261e": "#ff8b83",
}
"""What takes the place of each in the dark."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "pentagon", "hourglass")
PATTERNS = ("", "/", "x", ".", "-", "+", "|", "\\")
