"""Times as perf prints them, and text of others as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.report.contention import perf_time
from emu.report.plain import one_line


@pytest.mark.parametrize(
    ("ns", "printed"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (156_190, "156.19 us"),
        (4_446_211, "4.45 ms"),
        (1_500_000_000, "1.50 s"),
        (90_000_000_000, "1.50 m"),
        (5_400_000_000_000, "1.50 h"),
        (None, "–"),
    ],
)
def test_a_time_is_as_perf_prints_it(ns, printed):
    assert perf_time(ns).strip() == printed
    assert len(perf_time(ns)) == 12


@given(st.text())
def test_text_of_others_is_one_line_of_letters(text):
    shown = one_line(text)
    assert shown.isprintable()
    assert one_line(shown) == shown
    assert (shown == text) == text.isprintable()
