"""What all tests share: real kernels' captures, and the check that a test run leaves nothing behind."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "captures"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux

# Hundreds of processes are started, and each would translate all of emu again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The first example of a test may compile.
settings.register_profile("emu", deadline=None)
settings.load_profile("emu")


def pytest_configure(config):
    """Compile each kind of machine once, before the workers of a whole run would each begin to."""
    is_whole = config.args == config.getini("testpaths") and not config.option.collectonly
    if is_whole and config.getoption("numprocesses", None) and not os.environ.get("NUMBA_DISABLE_JIT"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "emu", "run", "--cpus", "1", "--ops", "1", "--quiet"]
            machines = [
                subprocess.Popen(
                    [*command, "--engine", engine, "--out", f"{folder}/{engine}"], stdout=subprocess.DEVNULL
                )
                for engine in ("processes", "sim")
            ]
            assert [machine.wait() for machine in machines] == [0, 0]


@pytest.fixture(scope="session")
def captures_dir() -> Path:
    """Folder of the traces of real kernels."""
    if not CAPTURES.is_dir():
        pytest.skip(f"the captures of real kernels are not at {CAPTURES}")
    return CAPTURES


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind():
    before = _segments()
    yield
    until = time.monotonic() + 2
    while (_children() or _orphans(before)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _children(), "processes are left of this test run"
    assert not _orphans(before), "segments are left of this test run"


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_kept(request):
    """Forget what a module has cached: every process forked later would copy the tables of its memory."""
    yield
    for kept in vars(request.module).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()


def _segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("emu-[0-9]*-*")}


def _orphans(before: set[str]) -> list[str]:
    """New segments of this process or of a dead one; those of other living processes are not ours to judge."""
    myself = psutil.Process().pid
    owners = {name: int(name.split("-")[1]) for name in _segments() - before}
    return [name for name, owner in owners.items() if owner == myself or not psutil.pid_exists(owner)]


def _children() -> list[psutil.Process]:
    """Children except the resource tracker, which lives as long as we do."""
    return [child for child in psutil.Process().children(recursive=True) if not _is_tracker(child)]


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.ZombieProcess:
        return False
    except psutil.NoSuchProcess:
        return True
