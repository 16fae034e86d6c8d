"""Maps of which all or none are wanted: once one fails, no other is tried, and what was mapped is taken back."""

import numpy as np
import pytest

from emu.workload.program import (
    OP_FAIL,
    OP_GIVE_UP,
    OP_MAP,
    OP_SKIP_MAPPED,
    OP_UNMAP,
    Program,
    Workload,
    op_t,
)
from tests.machine.machines import run

pytestmark = pytest.mark.interpreted

GATE = 4


def program(ops):
    """A program that runs once, from (code, slot, pages, arg)."""
    rows = np.zeros(len(ops), op_t)
    for row, (code, slot, pages, arg) in zip(rows, ops, strict=True):
        row["code"], row["slot"], row["pages"], row["arg"], row["nents"] = code, slot, pages, arg, code == OP_MAP
    return Program(rows, loop_start=len(rows))


def attempted(*pages):
    """One attempt: all maps or none, then its gate opens."""
    ops = []
    for slot, size in enumerate(pages):
        ops += [(OP_GIVE_UP, slot, 0, slot - 1)] * (slot > 0) + [(OP_MAP, slot, size, 0)]
    ops += [(OP_SKIP_MAPPED, len(pages) - 1, 0, 2 * len(pages))]
    ops += [(code, slot, 0, 0) for slot in range(len(pages)) for code in (OP_UNMAP, OP_FAIL)]
    return [*ops, (OP_FAIL, GATE, 0, 0)]


COMPLETED = [(OP_UNMAP, slot, 0, 0) for slot in (GATE, 3, 0, 1, 2)]


def replay(engine, first, second):
    """Two attempts of four maps on one CPU in an aperture of 256 pages; the other CPU completes them."""
    load = Workload(
        "attempts",
        [program(attempted(*first) + attempted(*second)), program(COMPLETED + COMPLETED)],
        slots=GATE + 1,
        max_pages=128,
    )
    return run(
        "DMA",
        workload=load,
        machine_engine=engine,
        machine_cpus=2,
        domain_aperture_mb=1,
        domain_iova_ranges=1024,
    ).run


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_an_attempt_that_gets_all_is_unmapped_where_it_completes(engine):
    result = replay(engine, (1, 64, 64, 1), (1, 64, 64, 1))
    assert (result["maps"], result["unmaps"], result["map_failures"]) == (8, 8, 0)
    assert result["pairs_by_cpu"] == [0, 8]
    assert result["conservation"]["holds"]


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_an_attempt_that_fails_takes_back_what_it_has_and_tries_no_more(engine):
    # Ranges of 100 pages begin at multiples of 128, so a third finds no place.
    result = replay(engine, (100, 100, 100, 1), (1, 64, 64, 1))
    assert (result["maps"], result["map_failures"]) == (6, 1)
    assert result["pairs_by_cpu"] == [2, 4]
    assert result["violations"] == 0
    assert result["conservation"]["holds"]


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_an_attempt_whose_last_map_fails_is_taken_back_too(engine):
    result = replay(engine, (1, 100, 100, 100), (100, 1, 1, 1))
    assert (result["maps"], result["map_failures"]) == (7, 1)
    assert result["pairs_by_cpu"] == [3, 4]
    assert result["conservation"]["holds"]


@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_an_attempt_whose_first_map_fails_maps_nothing(engine):
    result = replay(engine, (300, 1, 1, 1), (1, 1, 1, 1))
    assert (result["maps"], result["unmaps"], result["map_failures"]) == (4, 4, 1)
    assert result["pairs_by_cpu"] == [0, 4]
