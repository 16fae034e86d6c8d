"""A command's process starts and ends at once; somebody else's is left as it is."""

import subprocess
import sys

import pytest

from emu.native.atomics import interpreted

COMPILES = """
import gc, sys
from emu.machine.lifecycle import init_machine
from emu.native.compile import compile_entries
compile_entries([init_machine])
print("scipy.linalg" in sys.modules, gc.get_threshold()[0] > 10_000)
"""
OWNS = "from emu.process import own_process; own_process()"


def told(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(interpreted, reason="numba is not used")
def test_numba_of_a_command_imports_no_blas_and_that_of_a_library_what_it_wants():
    pytest.importorskip("scipy", reason="SciPy is not installed; pip install 'emu[claims]'")
    assert told(OWNS + COMPILES) == ["False", "True"]
    assert told(COMPILES) == ["True", "False"]


@pytest.mark.skipif(interpreted, reason="numba is not used")
def test_a_command_may_use_scipy_after_all():
    pytest.importorskip("scipy", reason="SciPy is not installed; pip install 'emu[claims]'")
    assert told(OWNS + COMPILES + "import scipy.linalg; print(scipy.linalg.det([[3.0]]))")[-1] == "3.0"


def test_a_command_collects_nothing_as_it_ends():
    leave_garbage = """
class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        print("collected")
cycle = Cycle()
del cycle
"""
    assert told(leave_garbage) == ["collected"]
    assert told(OWNS + leave_garbage) == []
