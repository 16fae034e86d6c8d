"""The table: every number whole, no line longer than the terminal."""

import io
import re

import pytest
from conftest import make_run
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from emu.report.quantity import amount, duration, times
from emu.report.reading import gain_and_exposure, most_waited_for_locks, remarks
from emu.report.table import baseline_of, print_table

EVERY_DOMAIN = ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict", "identity"]
HUGE = {
    "pairs_per_s": 123_456_789.123,
    "overruns": 98_765_432,
    "violations": 12_345_678,
    "iovas_per_flush": 1e15,
    "flushes": {"full": 10**9, "timeout": 10**7, "no_resources": 10**8, "wrap": 10**6},
    "exposure": {"windows": 1, "p50_ns": 3.6e12, "p99_ns": 3.6e12, "max_ns": 8.64e13, "page_seconds": 1.5e12},
}


def table(runs, width=80):
    text = io.StringIO()
    print_table(Console(file=text, width=width), runs)
    return text.getvalue()


def cells(text, label):
    """What the line of a row says in its columns, in every part of the table."""
    lines = [line for line in text.splitlines() if line.strip().startswith(label)]
    return [cell for line in lines for cell in re.split(r"  +", line.strip().removeprefix(label).strip())]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("changes", [{}, HUGE], ids=["usual", "huge"])
def test_no_line_is_longer_than_the_terminal(width, changes):
    lines = table([make_run(name, **changes) for name in EVERY_DOMAIN], width).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_no_number_is_cut_or_wrapped(width):
    text = table([make_run(name, **HUGE) for name in EVERY_DOMAIN], width)
    assert "…" not in text
    assert cells(text, "map+unmap pairs per s") == ["123 M"] * 6
    assert cells(text, "page·seconds") == ["1.50 T"] * 6


def test_six_domains_fit_side_by_side_in_80_columns():
    assert table([make_run(name) for name in EVERY_DOMAIN]).count("map+unmap pairs per s") == 1


def test_a_narrow_terminal_gets_the_table_in_parts():
    assert table([make_run(name) for name in EVERY_DOMAIN], 50).count("map+unmap pairs per s") == 3


def test_strict_is_what_the_others_are_compared_with():
    runs = [make_run("DMA-SQ", pairs_per_s=300.0), make_run("DMA", pairs_per_s=100.0)]
    assert baseline_of(runs)["domain"] == "DMA"
    assert cells(table(runs), "relative to DMA") == ["3.00 ×", "1.00 ×"]


def test_without_strict_the_first_is():
    assert "relative to DMA-SQ" in table([make_run("DMA-SQ"), make_run("DMA-FQ")])


def test_what_a_run_does_not_have_is_a_dash_not_a_zero():
    nothing = make_run("identity", ops=0, iovas_per_flush=None, exposure={"windows": 0, "max_ns": 0.0}, locks=[])
    assert cells(table([nothing]), "IOVAs freed per flush") == ["–"]
    assert cells(table([nothing]), "longest, ms") == ["–"]
    assert cells(table([nothing]), "map p50") == ["–"]


def test_causes_that_did_not_occur_take_no_line():
    assert "wrap-around" not in table([make_run()])
    assert "wrap-around" in table([make_run(flushes={"full": 0, "timeout": 0, "no_resources": 0, "wrap": 3})])


def test_a_run_that_never_began_has_a_column():
    dead = make_run("DMA", ops=0, seconds=0.0, pairs_per_s=0.0, iovas_per_flush=None)
    assert cells(table([dead]), "relative to DMA") == ["–"]


def test_no_runs_no_table():
    assert table([]) == ""


def test_the_reading_weighs_gain_against_exposure():
    lines = gain_and_exposure([make_run("DMA", pairs_per_s=100.0), make_run("DMA-SQ", pairs_per_s=280.0)])
    assert lines == ["DMA-SQ: 2.80 × the pairs of DMA, but a device could reach unmapped pages for up to 1.02 s."]


def test_the_reading_compares_the_two_queues():
    few = {**make_run()["counters"], "Global RPCITs": 512}
    lines = gain_and_exposure([make_run("DMA-FQ", counters=few), make_run("DMA-SQ")])
    assert lines[1] == "DMA-FQ flushed everything once in 256 unmaps, DMA-SQ once in 32768: 128 × as rarely."


@pytest.mark.parametrize("domains", [["DMA"], ["identity"], ["DMA", "identity"], []])
def test_without_a_lazy_domain_there_is_nothing_to_weigh(domains):
    assert gain_and_exposure([make_run(name) for name in domains]) == []


def test_the_reading_survives_runs_in_which_nothing_happened():
    nothing = {"ops": 0, "pairs_per_s": 0.0, "seconds": 0.0, "counters": dict.fromkeys(make_run()["counters"], 0)}
    runs = [make_run(name, **nothing, exposure={"windows": 0}) for name in EVERY_DOMAIN]
    assert gain_and_exposure(runs) == []
    assert most_waited_for_locks(runs) == []


def test_the_lock_that_costs_most_is_named():
    (line,) = most_waited_for_locks([make_run("DMA-SQ"), make_run("DMA", locks=[])])
    assert line == "Most waited-for lock, of CPU time: DMA-SQ iova_fq.lock 4 %"


def test_overruns_are_explained():
    (line,) = remarks([make_run("DMA-FQ", overruns=2, overrun_iovas=512)])
    assert "2 ring overruns lost 512 IOVAs" in line


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"), (float("nan"), "–"), (0, "0"), (0.0, "0"), (0.0305, "0.030"), (0.00001, "<0.001"), (3.917, "3.92"),
        (12, "12"), (12.34, "12.3"), (255, "255"), (999.7, "1000"), (32767, "32767"), (99_999.6, "100000"),
        (123_456, "123 k"), (999_700.0, "1.00 M"), (1_050_000, "1.05 M"), (18.1e6, "18.1 M"), (2e9, "2.00 G"),
    ],
)  # fmt: skip
def test_amounts(value, written):
    assert amount(value) == written


@pytest.mark.parametrize(
    ("ns", "written"),
    [(None, "–"), (0, "0 ns"), (830, "830 ns"), (12_500, "12.5 µs"), (1_020_000_000, "1.02 s"), (999_900, "1.00 ms")],
)
def test_durations(ns, written):
    assert duration(ns) == written


@pytest.mark.parametrize(("ratio", "written"), [(None, "–"), (0.524, "0.52 ×"), (2.8, "2.80 ×"), (41.3, "41.3 ×")])
def test_ratios(ratio, written):
    assert times(ratio) == written


@given(st.floats(min_value=0, max_value=1e14))
def test_every_amount_fits_its_column(value):
    assert len(amount(value)) <= 8
    assert len(times(value)) <= 10
