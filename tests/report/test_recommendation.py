"""What is recommended reads like a sentence."""

import io

from rich.console import Console

from emu.report.recommendation import knee_in_words, print_recommendation
from emu.report.sweep_progress import time_left

SWEPT = ["domain_types", "domain_fq_size", "domain_fq_timeout_ms"]


def row(size, timeout, pairs, exposure_ms, spread=None):
    return {
        "domain_types": "DMA-SQ",
        "domain_fq_size": size,
        "domain_fq_timeout_ms": timeout,
        "domain": "DMA-SQ",
        "cells": 1,
        "pairs_per_s": pairs,
        "unmap_p99_ns": 800.0,
        "exposure_max_ns": exposure_ms * 1e6,
        "segment_bytes": 4 << 20,
        "spread": spread,
    }


FRONT = [row(4096, 200.0, 100_000.0, 200.0), row(512, 20.0, 97_000.0, 20.0), row(16, 1.0, 20_000.0, 1.0)]


def test_the_knee_is_said_in_words():
    assert knee_in_words(SWEPT, FRONT, 1) == (
        "← domain DMA-SQ, fq_size 512, fq_timeout_ms 20: 97 % of the best throughput with a tenth of its exposure "
        "(20.0 ms instead of 200 ms)."
    )


def test_a_knee_that_is_the_fastest_says_so():
    assert "the best throughput" in knee_in_words(SWEPT, FRONT, 0)


def test_the_table_has_a_line_for_each_and_a_mark():
    out = io.StringIO()
    print_recommendation(Console(file=out, width=40), SWEPT, FRONT, 1)
    lines = out.getvalue().splitlines()
    assert lines[0].split()[:4] == ["domain", "fq_size", "fq_timeout_ms", "pairs/s"]
    assert lines[0].split()[4:] == ["of", "best", "unmap", "p99", "exposure", "memory"]
    assert lines[2].rstrip().endswith("←")
    assert "4 MiB" in lines[1]


def test_a_spread_is_shown_where_there_are_repetitions():
    out = io.StringIO()
    print_recommendation(Console(file=out, width=120), SWEPT, [row(16, 1.0, 5.0, 1.0, spread=0.024)], 0)
    assert "spread" in out.getvalue()
    assert "2.4 %" in out.getvalue()


def test_the_time_left_follows_the_pace():
    assert time_left(0, 5, 3.0) == ""
    assert time_left(10, 20, 60.0) == "2:00 left"
    assert time_left(1, 100, 90.0) == "2 h 30 min left"
