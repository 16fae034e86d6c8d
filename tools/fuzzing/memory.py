"""Memory that tells of accesses beyond its arrays: for compiled code by pages nobody may touch, interpreted by looking.

Compiled code follows raw addresses, so what it reads beyond an array is some other array, and nothing is seen. Here the
arrays of the code under test come from a `Guarded` pool, in which each ends where an inaccessible page begins: the
first
byte beyond is a fault. Interpreted, a `Checked` memory stands in for the primitives `deref`, `element` and `byte_at`,
knows
every array, and raises `OutOfBoundsError` for all that lies in none of them.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from bisect import bisect_right, insort
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_PAGE = mmap.PAGESIZE
_NO_ACCESS = 0
"""`PROT_NONE`, which the module mmap does not know."""
_SLOTS = 64
_SLOT_BYTES = 128 * _PAGE


class OutOfBoundsError(Exception):
    """Interpreted code reached for what is in no array."""


class Memory:
    """Makes the arrays of the code under test; stands in for `numpy` in its modules, which it otherwise is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def begin(self) -> None:
        """Forget the arrays of the input before."""

    def know(self, array: Array) -> Array:
        """Let an array that came from elsewhere be reached."""
        return array

    def zeros(self, shape: int, dtype: Any = float) -> Array:
        return self.know(np.zeros(shape, dtype))

    def empty(self, shape: int, dtype: Any = float) -> Array:
        return self.zeros(shape, dtype)

    def full(self, shape: int, value: Any, dtype: Any = float) -> Array:
        array = self.zeros(shape, dtype)
        array[...] = value
        return array

    def frombuffer(self, buffer: Any, dtype: Any = float) -> Array:
        array = self.zeros(len(buffer) // np.dtype(dtype).itemsize, dtype)
        array[...] = np.frombuffer(buffer, dtype)
        return array


class Guarded(Memory):
    """Arrays up to half a megabyte, each right before an inaccessible page; larger ones are usual arrays."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * (_SLOT_BYTES + _PAGE))
        self._used = 0
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for slot in range(_SLOTS):
            guard = first + (slot + 1) * (_SLOT_BYTES + _PAGE) - _PAGE
            if protect(ctypes.c_void_p(guard), ctypes.c_size_t(_PAGE), _NO_ACCESS):
                raise OSError(ctypes.get_errno(), "a page cannot be made inaccessible")

    def begin(self) -> None:
        self._used = 0

    def zeros(self, shape: int, dtype: Any = float) -> Array:
        bytes_needed = int(shape) * np.dtype(dtype).itemsize
        if bytes_needed > _SLOT_BYTES or self._used == _SLOTS or not bytes_needed:
            return np.zeros(shape, dtype)
        end = (self._used + 1) * (_SLOT_BYTES + _PAGE) - _PAGE
        self._used += 1
        array: Array = np.frombuffer(self._memory, dtype, shape, end - bytes_needed)
        ctypes.memset(array.__array_interface__["data"][0], 0, bytes_needed)
        return array


class Checked(Memory):
    """Every array by address, and primitives that look there first."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: dict[int, tuple[int, memoryview]] = {}
        self._last = (0, 0, memoryview(b""))
        self._kept: list[Array] = []

    def begin(self) -> None:
        self._kept.clear()
        self._starts.clear()
        self._regions.clear()
        self._last = (0, 0, memoryview(b""))

    def know(self, array: Array) -> Array:
        start = array.__array_interface__["data"][0]
        if array.nbytes:
            if start not in self._regions:
                insort(self._starts, start)
            self._regions[start] = (
                start + array.nbytes,
                memoryview((ctypes.c_char * array.nbytes).from_address(start)).cast("B"),
            )
            # The view does not keep the array alive, and an address may be all that the code under test keeps of it.
            self._kept.append(array)
            self._last = (0, 0, memoryview(b""))
        return array

    def byte_at(self, address: int, index: int) -> int:
        """As the primitive of `emu.native.record`."""
        at = address + index
        start, end, memory = self._last
        if not start <= at < end:
            start, end, memory = self._last = self._find(at, 1)
        return memory[at - start]

    def deref(self, dtype: Any, address: int) -> Any:
        """As the primitive of `emu.native.record`."""
        start, _, memory = self._find(address, dtype.itemsize)
        return _record_class(dtype)(memory, address - start, start)

    def element(self, dtype: Any, address: int, index: int) -> Any:
        """As the primitive of `emu.native.record`."""
        return self.deref(dtype, int(address) + int(index) * dtype.itemsize)

    def _find(self, address: int, length: int) -> tuple[int, int, memoryview]:
        place = bisect_right(self._starts, address) - 1
        if place >= 0:
            start = self._starts[place]
            end, memory = self._regions[start]
            if address + length <= end:
                return start, end, memory
        raise OutOfBoundsError(f"{length} bytes at {address:#x} are in no array")


class _Record:
    """A record in some memory: its fields are read and written there, cut to their width as compiled code does."""

    __slots__ = ("_at", "_base", "_memory")
    dtype: Any

    def __init__(self, memory: memoryview, at: int, base: int) -> None:
        self._memory = memory
        self._at = at
        self._base = base

    def __getitem__(self, field: str) -> Any:
        return getattr(self, field)

    def __setitem__(self, field: str, value: Any) -> None:
        setattr(self, field, value)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"data": (self._base + self._at, False)}


_classes: dict[int, tuple[Any, type[_Record]]] = {}
_FORMATS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?"}


def _record_class(dtype: Any) -> type[_Record]:
    known = _classes.get(id(dtype))
    if known:
        return known[1]
    members: dict[str, Any] = {"__slots__": (), "dtype": dtype}
    for name, (form, offset, *_) in dtype.fields.items():
        members[name] = _nested(form, offset) if form.names else _scalar(form, offset)
    made = type("Record", (_Record,), members)
    # With the dtype itself, so that its identity is not given to another.
    _classes[id(dtype)] = (dtype, made)
    return made


def _nested(form: Any, offset: int) -> property:
    inner = _record_class(form)
    return property(lambda self: inner(self._memory, self._at + offset, self._base))


def _scalar(form: Any, offset: int) -> property:
    packed = struct.Struct("=" + _FORMATS[form.str[1:]])
    unpack, pack = packed.unpack_from, packed.pack_into
    bits = 8 * form.itemsize
    half = 1 << (bits - 1) if form.kind == "i" else 0

    def read(self: Any) -> Any:
        return unpack(self._memory, self._at + offset)[0]

    def write(self: Any, value: Any) -> None:
        if half or form.kind == "u":
            value = ((int(value) + half) & ((1 << bits) - 1)) - half
        pack(self._memory, self._at + offset, value)

    return property(read, write)
