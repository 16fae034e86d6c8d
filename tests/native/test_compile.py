"""The cache of compiled code is fast, and never runs old code."""

import ast
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emu.native import compile as compiling
from emu.native.atomics import interpreted
from emu.native.compile import COMPILED_FOLDERS, KEPT_CACHES, PACKAGE, _prune, source_key

DECORATORS = {"jit", "inline", "slow", "entry"}

CHOOSE_A_CACHE = """
from numba.core import config
import emu.native.compile
print(config.CACHE_DIR)
"""

LOAD_AN_ENTRY = """
from emu.native.compile import compile_entries
from emu.native.events import drain_ring
cold = compile_entries([drain_ring])
print(cold, sum(drain_ring.stats.cache_hits.values()), len(drain_ring.signatures))
"""


def imports(path):
    """(module, names) of all imports from emu in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "emu":
            yield node.module, {alias.name for alias in node.names}


def compiled_modules():
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if any(module == "emu.native.compile" and names & DECORATORS for module, names in imports(path))
    ]


def run_python(code, cache, package=PACKAGE):
    # Python looks for the package in the working folder first.
    where = {"cwd": package.parent, "env": {**os.environ, "EMU_CACHE_DIR": str(cache)}}
    result = subprocess.run([sys.executable, "-c", code], **where, capture_output=True, text=True, check=True)
    return result.stdout.split()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose source is hashed instead."""
    copy = tmp_path / "emu"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiling, "PACKAGE", copy)
    return copy


@pytest.mark.interpreted
def test_a_copy_of_the_source_has_the_same_key(package):
    key = source_key()
    shutil.copytree(package, package.parent / "other")
    assert source_key() == key
    assert len(key) == 16


@pytest.mark.interpreted
@pytest.mark.parametrize("folder", COMPILED_FOLDERS)
def test_editing_a_source_file_changes_the_key(package, folder):
    before = source_key()
    path = next(iter(sorted((package / folder).glob("*.py"))))
    path.write_text(path.read_text() + "\n# edited\n")
    assert source_key() != before


@pytest.mark.interpreted
def test_a_new_source_file_changes_the_key(package):
    before = source_key()
    (package / "native" / "new.py").touch()
    assert source_key() != before


@pytest.mark.interpreted
def test_everything_compiled_lives_in_folders_that_the_key_covers():
    modules = compiled_modules()
    assert len(modules) > len(COMPILED_FOLDERS)
    for path in modules:
        assert path.parent.parent == PACKAGE, f"{path}: the key does not look into subfolders"
        assert path.parent.name in COMPILED_FOLDERS, f"{path}: the key does not cover {path.parent.name}"


@pytest.mark.interpreted
def test_compiled_modules_take_names_only_from_folders_that_the_key_covers():
    for path in compiled_modules():
        for module, _ in imports(path):
            assert module.split(".")[1] in COMPILED_FOLDERS, f"{path}: an edit of {module} would run old code"


@pytest.mark.skipif(interpreted, reason="interpreted runs compile nothing")
def test_a_second_process_loads_an_entry_from_the_cache_until_the_source_is_edited(package, tmp_path):
    cache = tmp_path / "cache"
    assert run_python(LOAD_AN_ENTRY, cache, package) == ["True", "0", "1"]
    assert run_python(LOAD_AN_ENTRY, cache, package) == ["False", "1", "1"]
    assert [folder.name for folder in cache.iterdir()] == [source_key()]
    imported = package / "native" / "record.py"
    imported.write_text(imported.read_text() + "\n# edited\n")
    assert run_python(LOAD_AN_ENTRY, cache, package) == ["True", "0", "1"]


@pytest.mark.interpreted
def test_interpreted_runs_compile_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    code = LOAD_AN_ENTRY.replace("print", "print(cold); raise SystemExit; print")
    assert run_python(code, tmp_path) == ["False"]


@pytest.mark.interpreted
def test_caches_of_old_sources_are_forgotten(tmp_path):
    for number in range(KEPT_CACHES + 5):
        folder = tmp_path / f"{number:016x}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / "something else").mkdir()
    (chosen,) = run_python(CHOOSE_A_CACHE, tmp_path)
    left = sorted(folder.name for folder in tmp_path.iterdir())
    assert Path(chosen).name in left
    assert "something else" in left
    assert len(left) == KEPT_CACHES + 2
    assert f"{KEPT_CACHES + 4:016x}" in left


@pytest.mark.interpreted
def test_many_may_forget_the_same_caches_at_once(tmp_path):
    for number in range(400):
        folder = tmp_path / f"{number:016x}"
        folder.mkdir()
        os.utime(folder, (number, number))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: _prune(tmp_path, "f" * 16), range(8)))
    assert len(list(tmp_path.iterdir())) == KEPT_CACHES


@pytest.mark.interpreted
def test_a_cache_folder_that_cannot_be_written_is_replaced(tmp_path):
    blocked = tmp_path / "a file, not a folder"
    blocked.touch()
    (chosen,) = run_python(CHOOSE_A_CACHE, blocked)
    assert not chosen.startswith(str(tmp_path))
    assert os.access(chosen, os.W_OK)
