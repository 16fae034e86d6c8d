"""Progress is for people at a terminal, and only for them."""

import io
import sys

import pytest

from emu.report.progress import ProgressBars


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, *, quiet=False):
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBars(quiet=quiet) as bars:
        bars.compiled(3, 100)
        bars.ran("DMA-SQ", 0.5)
        bars.ran("DMA-SQ", 1.0)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _terminal_type(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_a_terminal_shows_compiling_then_each_domain(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert text.index("compiling") < text.index("DMA-SQ")
    assert "100 %" in text


def test_a_pipe_shows_nothing(monkeypatch):
    assert shown(monkeypatch, io.StringIO()) == ""


def test_quiet_shows_nothing(monkeypatch):
    assert shown(monkeypatch, Terminal(), quiet=True) == ""
