"""Entries are compiled as whole programs; their parts stay usable by whatever else is compiled in the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.native.atomics import interpreted

ROOT = Path(__file__).resolve().parents[2]

CHAIN = """
from emu.native.bitmap import bitmap_clear, bitmap_set, find_next_bit
from emu.native.compile import entry, slow

@slow
def leaf(x):
    return x + 1

@slow
def left(x):
    return leaf(x) * 10

@slow
def right(x):
    return leaf(x) * 100

@slow
def fork(x):
    return left(x) + right(x)

@entry
def first(x):
    return fork(x)

@entry
def second(x):
    return fork(x) + leaf(x)

@entry
def changed(address):
    bitmap_set(address, 5, 2)
    bitmap_clear(address, 6, 1)
    return find_next_bit(address, 256, 0)
"""

COMPILE_CHAIN = """
import numpy as np
from numba import njit
from chain import bitmap_clear, bitmap_set, changed, find_next_bit, first, fork, leaf, second
from emu.native.compile import compile_entries
assert compile_entries([first, second, changed])
words = np.zeros(8, np.uint32)
"""


def run_cold(code, tmp_path):
    """Run code in a new process whose cache is empty, once the entries of the chain have been compiled."""
    (tmp_path / "chain.py").write_text(CHAIN)
    environment = {
        "EMU_CACHE_DIR": str(tmp_path / "cache"),
        "PATH": "",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_CHAIN + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(interpreted, reason="nothing is compiled")
def test_parts_that_call_parts_serve_entries_and_other_compiled_code(tmp_path):
    code = """
@njit
def outside(x):
    return fork(x)
print(first(1), second(1), outside(1))
"""
    assert run_cold(code, tmp_path).split() == ["220", "222", "220"]


@pytest.mark.skipif(interpreted, reason="nothing is compiled")
def test_parts_that_write_to_memory_serve_other_compiled_code(tmp_path):
    code = """
@njit(nogil=True)
def change(address):
    bitmap_set(address, 3, 70)
    bitmap_clear(address, 3, 10)
    return find_next_bit(address, 256, 0)
print(changed(words.ctypes.data), change(words.ctypes.data))
"""
    assert run_cold(code, tmp_path).split() == ["5", "13"]


@pytest.mark.skipif(interpreted, reason="nothing is compiled")
def test_a_part_called_from_python_refuses(tmp_path):
    code = """
try:
    leaf(1)
except (TypeError, ValueError):
    print("refused")
"""
    assert run_cold(code, tmp_path).strip() == "refused"
