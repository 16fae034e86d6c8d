"""The shared-memory segment: planned, created, filled, and gone on every way out.

A plan collects named arrays; creating it reserves the memory (a full /dev/shm is an error now, not a bus error later)
and maps it. Processes are forked afterwards, so addresses are the same in all. The file in /dev/shm is 0600, carries
its owner's pid in its name, and is unlinked by the owner; multiprocess's resource tracker does it if the owner is
killed, and the next run sweeps what nobody owns.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from multiprocess import shared_memory

from emu.native.record import CACHE_LINE

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_PREFIX = "emu-"
_BASE_ALIGNMENT = 1 << 16


class SegmentError(Exception):
    """There is not enough shared memory; the message says what to do."""


class SegmentPlan:
    """What a segment will hold."""

    def __init__(self) -> None:
        self.arrays: dict[str, tuple[int, np.dtype[Any], int]] = {}
        self.size = CACHE_LINE

    def add(self, name: str, dtype: Any, count: int, align: int = CACHE_LINE) -> None:
        """Append an array of `count` elements, its address aligned to `align` bytes, at most 64 KiB."""
        offset = -(-self.size // align) * align
        form = np.dtype(dtype)
        self.arrays[name] = (offset, form, count)
        self.size = offset + form.itemsize * count

    def create(self, *, private: bool = False) -> Segment:
        """Reserve and map the memory, all zero.

        Args:
            private: for this process only, and not in /dev/shm; pages that are never touched then cost nothing.

        Raises:
            SegmentError: when there is no room.
        """
        return Segment(self, private=private)


class Segment:
    """Mapped shared memory with named arrays.

    Attributes:
        name: file name in /dev/shm, where it is shared.
        size: bytes, whole pages, and the same on machines with pages of another size.
        base: address at which it is mapped here and in every process forked from here.
    """

    def __init__(self, plan: SegmentPlan, *, private: bool) -> None:
        self._plan = plan
        # Addresses, not only offsets, are aligned: some room to move the first byte.
        self.size = -(-(plan.size + _BASE_ALIGNMENT) // _BASE_ALIGNMENT) * _BASE_ALIGNMENT
        self._linked = False
        memory = _private_memory(self.size) if private else self._shared_memory()
        mapped = np.frombuffer(memory, np.uint8)
        self._bytes = mapped[-int(mapped.ctypes.data) % _BASE_ALIGNMENT :]
        self.base = int(self._bytes.ctypes.data)

    def _shared_memory(self) -> mmap.mmap:
        sweep()
        self.name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._shared: Any = shared_memory.SharedMemory(self.name, create=True, size=self.size)
        except OSError as error:
            raise SegmentError(_no_room(self.size, error)) from None
        self._linked = True
        try:
            file = os.open(_DIRECTORY / self.name, os.O_RDWR)
            try:
                os.posix_fallocate(file, 0, self.size)
                memory = mmap.mmap(file, self.size)
            finally:
                os.close(file)
        except OSError as error:
            self.unlink()
            raise SegmentError(_no_room(self.size, error)) from None
        self._shared.close()
        return memory

    def __getitem__(self, name: str) -> Any:
        """The array of that name, as a view."""
        offset, form, count = self._plan.arrays[name]
        view = self._bytes[offset : offset + form.itemsize * count].view(form)
        return view.view(np.recarray) if form.names else view

    def address(self, name: str, index: int = 0) -> int:
        """Address of an element of a named array."""
        offset, form, _ = self._plan.arrays[name]
        return self.base + offset + index * form.itemsize

    def copy_of(self, name: str) -> npt.NDArray[Any]:
        """A copy of a named array that outlives the segment."""
        return np.array(self[name])

    def unlink(self) -> None:
        """Remove the file; the memory goes with the last process that maps it."""
        if self._linked:
            self._linked = False
            self._shared.unlink()


def _private_memory(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise SegmentError(
            f"{error.strerror} for {size / 2**20:.0f} MiB; use fewer CPUs or a smaller domain.aperture_mb"
        ) from None


def _no_room(size: int, error: OSError) -> str:
    what = "no space left" if error.errno == errno.ENOSPC else error.strerror
    return (
        f"{_DIRECTORY}: {what} for a segment of {size / 2**20:.0f} MiB; "
        "use fewer CPUs, a smaller --fq-size or domain.aperture_mb, or enlarge /dev/shm"
    )


def sweep() -> list[str]:
    """Remove segments whose owner no longer lives; returns their names."""
    removed = []
    for path in _DIRECTORY.glob(f"{_PREFIX}*-*"):
        owner = path.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            try:
                path.unlink()
            except OSError:
                continue
            removed.append(path.name)
    return removed
