"""What is done to a process that runs emu and nothing else, so that it starts and ends at once; a library may not.

Half of what a short run took was Python's own: a million objects of numba, pydantic and the like, which stay, were
looked through for garbage again and again while they were made, and twice more at the end.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SELDOM = (200_000, 20, 20)
_BLAS = "scipy.linalg"

_is_ours = False


def own_process() -> None:
    """This process is a command of emu's, or works for one. To be called before anything heavy is imported."""
    global _is_ours
    _is_ours = True
    gc.set_threshold(*_SELDOM)
    # The first to be registered is the last to run. Nothing is collected then; the system takes all back at once.
    atexit.register(gc.freeze)


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """For work whose objects by the million nearly all stay."""
    usual = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@contextmanager
def without_blas() -> Iterator[None]:
    """Let numba, where it is about to be used first, not import half of SciPy for its BLAS, which emu never calls.

    Does nothing in somebody else's process, who may multiply matrices.
    """
    if not _is_ours or _BLAS in sys.modules:
        yield
        return
    # None makes an import fail.
    sys.modules[_BLAS] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_BLAS]
