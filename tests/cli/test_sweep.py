"""`emu sweep` as users call it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu.sweep.folder import cell_numbers

REPOSITORY = Path(__file__).parents[2]
TINY = """
[machine]
engine = "sim"
cpus = 2
ops = 400
[domain]
types = ["DMA-SQ"]
aperture_mb = 64
iova_ranges = 4096
[sweep.grid]
"domain.fq_size" = [16, 32, 64]
"domain.fq_timeout_ms" = [1, 2, 3, 4]
"""
GRID = "[sweep.grid]\n"
SEARCH = "[sweep.search]\npoints = 3\nobjective = 'pairs_per_s'\n[sweep.search.ranges]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "e.toml has no [sweep]"),
        ("[sweep]\n", "needs one of [sweep.grid], [sweep.random] and [sweep.search]"),
        ("[sweep]\nrepeat = 0\n" + GRID + "'machine.cpus' = [1]", "repeat: must be at least 1, not 0"),
        (GRID + "'domain.fq_siz' = [64]", "domain.fq_siz: no such key"),
        (GRID + "'domain.fq_size' = [100]", "must be a power of two, as 128 is (in the cell domain.fq_size = 100)"),
        (GRID + "'domain.fq_size' = 64", "must be a list, not 64"),
        (GRID + "'domain.fq_size' = []", "needs at least one value"),
        (GRID + "'machine.seed' = [1]", "machine.seed cannot be swept; give repeat"),
        (GRID + "'machine.cpus' = [1]", "a cell runs one domain"),
        (GRID + "'machine.ops' = [1]\n'machine.seconds' = [1]", "contradict each other"),
        (GRID + "'domain.types' = ['DMA']\n'domain.fq_size' = [64]", "needs a domain with a flush queue"),
        ("[machine]\ncpus = 'x'\n" + GRID + "'domain.fq_size' = [64]", "machine.cpus: must be a whole number"),
        ("[machine]\nrecord = true\n" + GRID + "'domain.fq_size' = [64]", "a cell keeps no events"),
        ("[hypervisor]\nwalk_ns = 3\n" + GRID + "'hypervisor.preset' = ['kvm']", '"hypervisor.walk_ns" = [3]'),
        ("[sweep.random]\n[sweep.random.ranges]\n'domain.fq_size' = {uniform=[1, 5]}", "random.points: is missing"),
        (SEARCH + "'domain.fq_size' = {powers_of_two=[1, 8]}\n'domain.types' = {choices=['DMA-SQ']}", "at least 2"),
        (SEARCH.replace("pairs", "pears") + "'domain.fq_size' = {choices=[8]}", "pears_per_s: no such figure"),
    ],
)
def test_a_wrong_experiment_is_one_line_and_nothing_is_made(emu, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    Path("e.toml").write_text(text)
    code, out, err = emu("sweep", "e.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("emu sweep: e.toml")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["e.toml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.toml",), "cannot read nowhere.toml"),
        (("here",), "here is no folder of a sweep"),
        (("--recommend", "here"), "here is no folder of a sweep"),
        (("--export", "cells.txt", "here"), "must end with .csv or .parquet"),
        (("--recommend", "--export", "cells.csv", "here"), "contradict each other"),
        (("here", "--recommend", "--jobs", "2"), "--jobs is about running cells"),
        (("here", "--jobs", "0"), "--jobs: must be at least 1"),
        (("here", "--out", "there"), "here is the folder already"),
        (("here", "--cluster", "tcp://host:1", "--jobs", "2"), "give one"),
    ],
)
def test_a_wrong_call_is_one_line(emu, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    code, out, err = emu("sweep", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_ctrl_c_keeps_what_is_done_and_the_folder_goes_on(emu, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    folder = tmp_path / "s"
    sweep = subprocess.Popen(
        [sys.executable, "-m", "emu", "sweep", str(tmp_path / "tiny.toml"), "--out", str(folder), "--jobs", "1"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 100
    while len(cell_numbers(folder)) < 2 and sweep.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    # As a terminal does: to all of them.
    os.killpg(sweep.pid, signal.SIGINT)
    _, err = sweep.communicate(timeout=30)
    assert err == f"emu sweep: interrupted; what is done is kept; go on with emu sweep {folder}\n"
    assert sweep.returncode == 130
    before = len(cell_numbers(folder))
    assert 2 <= before < 12

    code, out, err = emu("sweep", str(folder), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "folder": str(folder),
        "cells": 12,
        "done": 12,
        "done_before": before,
        "errors": 0,
        "violations": 0,
        "interrupted": False,
    }
    code, out, _ = emu("sweep", "--recommend", str(folder))
    assert code == 0
    assert "fq_timeout_ms" in out
    code, out, _ = emu("sweep", "--recommend", str(folder), "--json")
    assert json.loads(out)["cells"] == 12
