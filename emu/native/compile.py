"""Compiling: the decorators, and a cache that never runs stale code.

`@jit` marks a function that becomes part of its callers, `@inline` one that must vanish into them, `@slow` one that
must not, `@entry` one that Python calls with addresses; only entries are cached on disk. numba keys its cache on one
file, so an edit of an imported module, or a changed global, would still run old code. Here the cache folder's name is
a hash of all source that compiled code can come from, of the versions of numba and NumPy and of the clock chosen for
this machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import njit
from numba.core import config, event

from emu.native.clock import TICKS_ARE_CYCLES
from emu.native.llvm import SWITCHES_BY_ASSEMBLY
from emu.native.whole_program import whole_program
from emu.process import collecting_seldom, without_blas

PACKAGE = Path(__file__).resolve().parent.parent
COMPILED_FOLDERS = ("native", "capture", "iommu", "hypervisor", "machine", "workload", "addresses", "oracle")
KEPT_CACHES = 6
_ENTRY_WEIGHT = 15

_function_count = 0
_slow: set[str] = set()


def source_key() -> str:
    """Hash of everything that compiled code depends on, 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in COMPILED_FOLDERS:
        for path in sorted((PACKAGE / folder).glob("*.py")):
            digest.update(f"{folder}/{path.name}".encode())
            digest.update(path.read_bytes())
    if os.environ.get("EMU_MUTANT"):
        # A test build: the source is patched as it is imported.
        digest.update(os.environ["EMU_MUTANT"].encode())
        for path in sorted((PACKAGE / "mutants").glob("*.py")):
            digest.update(path.read_bytes())
    digest.update(
        f"{numba.__version__} {version('llvmlite')} {np.__version__} {TICKS_ARE_CYCLES} {SWITCHES_BY_ASSEMBLY}".encode()
    )
    return digest.hexdigest()


def cache_root() -> Path:
    """Where compiled code is kept: $EMU_CACHE_DIR, or the user's cache folder."""
    configured = os.environ.get("EMU_CACHE_DIR")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emu"


def _choose_cache() -> Path:
    key = source_key()
    for root in (cache_root(), Path(tempfile.gettempdir()) / f"emu-cache-{os.getuid()}"):
        try:
            (root / key).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(root / key, os.W_OK) and (root / key).stat().st_uid == os.getuid():
            # It is in use: others forget the oldest.
            os.utime(root / key)
            _prune(root, key)
            return root / key
    return Path(tempfile.mkdtemp(prefix="emu-cache-"))


def _prune(root: Path, key: str) -> None:
    """Forget caches of old sources, whose names are as long, so that edits do not fill the disk."""
    folders = (folder for folder in root.iterdir() if folder.is_dir() and folder.name != key)
    others = [folder for folder in folders if len(folder.name) == len(key)]
    for folder in sorted(others, key=_last_used, reverse=True)[KEPT_CACHES:]:
        shutil.rmtree(folder, ignore_errors=True)


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        # Another emu forgets it at this moment.
        return 0.0


config.CACHE_DIR = str(_choose_cache())


def _compiled(function: Callable[..., Any], *, forceinline: bool = False, **options: Any) -> Any:
    global _function_count
    _function_count += 1
    # Said explicitly: a function without the option inherits it from whoever happens to call it first.
    return njit(nogil=True, error_model="numpy", forceinline=forceinline, **options)(function)


def jit(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, as a part of whoever calls it."""
    return _compiled(function, no_cfunc_wrapper=True)


def inline(function: Callable[..., Any]) -> Any:
    """The same, and inlined into every caller: for small steps of the hot path."""
    return _compiled(function, forceinline=True, no_cfunc_wrapper=True)


def slow(function: Callable[..., Any]) -> Any:
    """Compile, and keep out of line: for what the hot path rarely does, so that it stays small."""
    _slow.add(function.__qualname__)
    return jit(function)


def entry(function: Callable[..., Any]) -> Any:
    """A function of addresses that Python calls: compiled for int64 arguments, cached on disk."""
    return _compiled(function, cache=True)


def try_part(function: Callable[..., Any], arguments: Iterable[np.dtype[Any]]) -> Any:
    """Compile a plain function by itself, as a part, and forget it: what is wrong with it is said of it alone.

    Args:
        function: not decorated.
        arguments: a dtype for each argument, of a record or of a number.

    Returns:
        numba's type of what it returns.

    Raises:
        Exception: numba's, of many types.
    """
    forms = tuple(numba.from_dtype(form) for form in arguments)
    with whole_program(lambda _name: False, _slow.__contains__):
        part = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)
        part.compile(forms)
    return part.overloads[forms].signature.return_type


def entry_with(function: Any, suffix: str, folder: str, **names: Any) -> Any:
    """The same entry once more, in which some names mean something else.

    Args:
        function: made by `entry`.
        suffix: makes its name another one.
        folder: inside the cache, in which it is kept; of the folders that are kept there the KEPT_CACHES latest stay.
        **names: global names of its module, and what they mean.
    """
    source = getattr(function, "py_func", function)
    twin = FunctionType(source.__code__, {**source.__globals__, **names}, source.__name__)
    twin.__qualname__ = f"{source.__qualname__}_{suffix}"
    twin.__module__ = source.__module__
    if config.DISABLE_JIT:
        return entry(twin)
    usual = config.CACHE_DIR
    config.CACHE_DIR = str(_inner_cache(Path(usual), folder))
    try:
        return entry(twin)
    finally:
        config.CACHE_DIR = usual


def _inner_cache(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(mode=0o700, exist_ok=True)
    # It is in use: the latest are kept.
    os.utime(folder)
    _prune(root, name)
    return folder


class _Listener(event.Listener):  # type: ignore[misc]
    """Counts compiled functions; an entry, which is optimised with all its parts, counts for many."""

    def __init__(self, entries: set[str], progress: Callable[[int, int], None]) -> None:
        self.done = 0
        self.entries = entries
        self.progress = progress

    def on_start(self, event: Any) -> None:
        pass

    def on_end(self, event: Any) -> None:
        is_entry = event.data["dispatcher"].py_func.__qualname__ in self.entries
        self.done += _ENTRY_WEIGHT if is_entry else 1
        self.progress(self.done, max(self.done, _function_count + _ENTRY_WEIGHT * len(self.entries)))


def compile_entries(entries: Iterable[Any], progress: Callable[[int, int], None] | None = None) -> bool:
    """Make entries ready to be called in this process and in those forked from it.

    Args:
        entries: functions decorated with `entry`, or their plain Python selves when interpreted.
        progress: told (work done, work known, in functions) while something is compiled.

    Returns:
        Whether anything had to be compiled, that is, was not in the cache.
    """
    if config.DISABLE_JIT:
        return False
    functions = list(entries)
    names = {function.py_func.__qualname__ for function in functions}
    listener = _Listener(names, progress or (lambda _done, _total: None))
    cold = False
    program = whole_program(names.__contains__, _slow.__contains__)
    with collecting_seldom(), without_blas(), event.install_listener("numba:compile", listener), program:
        for function in functions:
            if not function.signatures:
                arguments = function.py_func.__code__.co_argcount
                function.compile((numba.types.int64,) * arguments)
                cold = cold or not function.stats.cache_hits
    return cold
