"""The bugs that are put in on purpose still fit the source."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.mutants.catalogue import MUTANTS
from emu.mutants.patch import Edit, MutantError
from emu.native.compile import source_key

REPOSITORY = Path(__file__).parents[2]


def source_of(module):
    return Path(importlib.util.find_spec(module).origin).read_text()


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=str)
def test_a_patch_fits_one_place_and_compiles(mutant):
    for module in mutant.modules:
        source = source_of(module)
        patched = mutant.patched(module, source)
        assert patched != source
        compile(patched, module, "exec")


def test_a_patch_that_fits_nowhere_is_refused():
    edit = Edit("emu.iommu.dma", "dma_map", "no such text", "")
    with pytest.raises(MutantError, match="0 places"):
        edit.apply(source_of("emu.iommu.dma"))


def test_there_are_enough_of_them():
    assert sum(not mutant.is_remedy for mutant in MUTANTS.values()) >= 18


def test_a_build_with_a_bug_has_a_cache_of_its_own(monkeypatch):
    key = source_key()
    monkeypatch.setenv("EMU_MUTANT", "free-at-equal")
    assert source_key() != key


@pytest.mark.parametrize(
    ("name", "code", "said"), [("free-at-equal", 0, "A BUG IS IN THE SOURCE"), ("none", 2, "there is no mutant none")]
)
def test_whoever_runs_with_a_bug_is_told(name, code, said):
    command = [sys.executable, "-c", "import emu"]
    environment = {**os.environ, "EMU_MUTANT": name}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
