"""The shared-memory segment: planned, created, filled, and gone on every way out.

A plan collects named arrays; creating it reserves the memory (a full /dev/shm is an error now, not a bus error later)
and maps it. Processes are forked afterwards, so addresses are the same in all. The file in /dev/shm is 0600, carries
its owner's pid in its name, and is unlinked by the owner; multiprocess's resource tracker does it if the owner is
killed, and the next run sweeps what nobody owns.

A shared segment describes itself, so that any process of the same user can attach to it, for reading only: a header at
the file's first byte says where its description lies, JSON that names the arrays with their types and says what the
segment is about. It comes and goes with the segment, whatever becomes of its owner.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from multiprocess import shared_memory
from numpy.lib.format import descr_to_dtype, dtype_to_descr

from emu.native.record import CACHE_LINE

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_PREFIX = "emu-"
_BASE_ALIGNMENT = 1 << 16
_MAGIC = b"emu-segm"
_FORMAT = 1
_DESCRIPTION = "description"

_header_t = np.dtype(
    [("magic", "S8"), ("format", "i8"), ("base", "i8"), ("shift", "i8"), ("offset", "i8"), ("length", "i8")]
)
"""At the file's first byte, where a plan puts nothing. `base`: address of the arrays in their owner; `shift`: where
they begin in the file; `offset`, `length`: of the description, from there."""


class SegmentError(Exception):
    """There is not enough shared memory; the message says what to do."""


class AttachError(Exception):
    """A segment cannot be attached to; the message is one line."""


class SegmentGoneError(AttachError):
    """There is no such segment, or no longer."""


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

    def create(self, *, private: bool = False, about: Mapping[str, Any] | None = None) -> Segment:
        """Reserve and map the memory, all zero.

        Args:
            private: for this process only, and not in /dev/shm; pages that are never touched then cost nothing.
            about: what others may want to know of a shared segment, anything that JSON can hold.

        Raises:
            SegmentError: when there is no room.
        """
        if private:
            return Segment(self, private=True)
        arrays = {name: (offset, dtype_to_descr(form), count) for name, (offset, form, count) in self.arrays.items()}
        text = json.dumps({"arrays": arrays, "about": about or {}}).encode()
        self.add(_DESCRIPTION, np.uint8, len(text))
        segment = Segment(self, private=False)
        segment.describe(text)
        return segment


class NamedArrays:
    """Arrays by name in mapped memory.

    Attributes:
        arrays: name → offset, type and count.
        base: address of offset 0, as pointers in the memory have it.
    """

    def __init__(self, arrays: dict[str, tuple[int, np.dtype[Any], int]], memory: Any, base: int) -> None:
        self.arrays = arrays
        self.base = base
        self._bytes = memory

    def __getitem__(self, name: str) -> Any:
        """The array of that name, as a view."""
        offset, form, count = self.arrays[name]
        view = self._bytes[offset : offset + form.itemsize * count].view(form)
        return view.view(np.recarray) if form.names else view

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def address(self, name: str, index: int = 0) -> int:
        """Address of an element of a named array."""
        offset, form, _ = self.arrays[name]
        return self.base + offset + index * form.itemsize

    def copy_of(self, name: str) -> npt.NDArray[Any]:
        """A copy of a named array that outlives the memory."""
        return np.array(self[name])


class Segment(NamedArrays):
    """Mapped shared memory with named arrays.

    Attributes:
        name: file name in /dev/shm, where it is shared.
        size: bytes, whole pages, and the same on machines with pages of another size.
        base: address at which it is mapped here and in every process forked from here.
    """

    def __init__(self, plan: SegmentPlan, *, private: bool) -> None:
        # Addresses, not only offsets, are aligned: some room to move the first byte.
        self.size = -(-(plan.size + _BASE_ALIGNMENT) // _BASE_ALIGNMENT) * _BASE_ALIGNMENT
        self._linked = False
        memory = _private_memory(self.size) if private else self._shared_memory()
        self._memory = memory
        self._mapped = np.frombuffer(memory, np.uint8)
        aligned = self._mapped[-int(self._mapped.ctypes.data) % _BASE_ALIGNMENT :]
        super().__init__(plan.arrays, aligned, int(aligned.ctypes.data))

    def describe(self, text: bytes) -> None:
        """Put the description in its place, and then say where that is."""
        self[_DESCRIPTION][:] = np.frombuffer(text, np.uint8)
        header = self._mapped[: _header_t.itemsize].view(_header_t)
        header["format"] = _FORMAT
        header["base"] = self.base
        header["shift"] = self.base - int(self._mapped.ctypes.data)
        header["offset"], _, header["length"] = self.arrays[_DESCRIPTION]
        header["magic"] = _MAGIC

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

    def let_go(self) -> None:
        """Have none of it count as this process's memory, until it is looked at again; what is in it stays."""
        if self._linked:
            self._memory.madvise(mmap.MADV_DONTNEED)

    def unlink(self) -> None:
        """Remove the file; the memory goes with the last process that maps it."""
        if self._linked:
            self._linked = False
            self._shared.unlink()


class Attachment(NamedArrays):
    """Another process's segment, mapped for reading only; it stays readable after it has been unlinked.

    Args:
        path: its file.

    Attributes:
        name: file name in /dev/shm.
        owner: pid of the process that made it.
        about: what that said of it.
        has_ended: whether its owner has given it up, which looks at the file system.

    Raises:
        SegmentGoneError: there is none, or no longer.
        AttachError: it is somebody else's, not finished, or no segment that this version knows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.owner = owner_of(path.name)
        mapped, self._inode = _mapped_for_reading(path)
        try:
            header = mapped[: _header_t.itemsize].view(_header_t)[0]
            if header["magic"] != _MAGIC:
                raise AttachError(f"{path} is no segment that can be attached to, or not yet")
            if header["format"] != _FORMAT:
                raise AttachError(f"{path} is of another version of emu, attach to it with that one")
            memory = mapped[int(header["shift"]) :]
            text = bytes(memory[int(header["offset"]) :][: int(header["length"])])
            description = json.loads(text)
            arrays = {name: _array_of(*array) for name, array in description["arrays"].items()}
            self.about: dict[str, Any] = dict(description["about"])
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, RecursionError):
            raise AttachError(f"{path} does not describe itself as a segment of emu does") from None
        last = max((offset + form.itemsize * count for offset, form, count in arrays.values()), default=0)
        if last > len(memory):
            raise AttachError(f"{path} is shorter than it says")
        super().__init__(arrays, memory, int(header["base"]))

    @property
    def has_ended(self) -> bool:
        """Whether its owner has unlinked it or died."""
        try:
            there = self.path.stat().st_ino == self._inode
        except OSError:
            return True
        return not (there and psutil.pid_exists(self.owner))


def _mapped_for_reading(path: Path) -> tuple[npt.NDArray[np.uint8], int]:
    """The file's bytes, and its inode."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SegmentGoneError(f"{path} is gone") from None
    except OSError as error:
        raise AttachError(f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(file)
        if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
            raise AttachError(f"{path} is not yours")
        if status.st_size < _header_t.itemsize:
            raise AttachError(f"{path} is no segment that can be attached to, or not yet")
        memory = mmap.mmap(file, status.st_size, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise AttachError(f"{path} cannot be mapped: {error}") from None
    finally:
        os.close(file)
    return np.frombuffer(memory, np.uint8), status.st_ino


def _array_of(offset: int, description: Any, count: int) -> tuple[int, np.dtype[Any], int]:
    form: np.dtype[Any] = descr_to_dtype(_as_descr(description))
    if offset < 0 or count < 0 or form.hasobject:
        raise ValueError("no array that a segment can hold")
    return offset, form, count


def _as_descr(value: Any) -> Any:
    """A description of a type as NumPy has it: JSON knows no tuples."""
    if isinstance(value, str):
        return value
    return [(name, _as_descr(form), *(tuple(shape) for shape in shapes)) for name, form, *shapes in value]


def owner_of(name: str) -> int:
    """Pid in a segment's file name; 0 where there is none."""
    owner = name.removeprefix(_PREFIX).split("-")[0]
    return int(owner) if owner.isdecimal() else 0


def shared_segments() -> list[Path]:
    """This user's segments whose owners live, the newest last."""
    found = []
    for path in _DIRECTORY.glob(f"{_PREFIX}*-*"):
        with suppress(OSError):
            status = path.stat()
            if status.st_uid == os.getuid() and psutil.pid_exists(owner_of(path.name)):
                found.append((status.st_ctime_ns, path))
    return [path for _, path in sorted(found)]


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
        owner = owner_of(path.name)
        if owner and not psutil.pid_exists(owner):
            try:
                path.unlink()
            except OSError:
                continue
            removed.append(path.name)
    return removed
