"""Records: C structs as NumPy dtypes, and pointers to them.

Everything that processes share is a record in one segment. A pointer is an int64 address: processes are forked after
the segment was mapped, so an address means the same in all of them, and following one costs what it costs in C.
`deref(iova_magazine, cpu_rcache.loaded)` reads like the kernel's `cpu_rcache->loaded`, and `element(t, base, i)` like
a flexible array member. NULL is 0.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from emu.native import llvm

CACHE_LINE = 64
NULL = 0


def struct(*, lines: tuple[str, ...] = (), **fields: Any) -> np.dtype[np.void]:
    """A record dtype laid out as a C compiler would.

    Args:
        lines: fields that start a cache line of their own; the record is then padded to whole lines, so that
            neighbours in an array do not share one either.
        **fields: name = dtype, in order.

    Returns:
        An aligned structured dtype.

    Raises:
        ValueError: for a field that interpreted code could not reach, because NumPy's records have an attribute of
            that name.
    """
    hidden = [name for name in fields if hasattr(np.record, name)]
    if hidden:
        raise ValueError(f"{hidden} are attributes of numpy.record; choose other names")
    offset, offsets = 0, []
    alignment = max(np.dtype(f).alignment for f in fields.values())
    for name, form in fields.items():
        boundary = CACHE_LINE if name in lines else np.dtype(form).alignment
        offset = -(-offset // boundary) * boundary
        offsets.append(offset)
        offset += np.dtype(form).itemsize
    boundary = CACHE_LINE if lines else alignment
    size = -(-offset // boundary) * boundary
    layout: Any = {"names": list(fields), "formats": list(fields.values()), "offsets": offsets, "itemsize": size}
    return np.dtype(layout, align=True)


def _view(dtype: np.dtype[np.void], address: int) -> Any:
    memory = (ctypes.c_char * dtype.itemsize).from_address(int(address))
    return np.frombuffer(memoryview(memory), dtype).view(np.recarray)[0]


def deref(dtype: Any, address: int) -> Any:
    """The record of type `dtype` at `address`."""
    if not address:
        raise ValueError(f"NULL pointer to {dtype.names}")
    return _view(dtype, address)


def element(dtype: Any, address: int, index: int) -> Any:
    """Element `index` of an array of `dtype` that starts at `address`."""
    return deref(dtype, int(address) + int(index) * dtype.itemsize)


def byte_at(address: int, index: int) -> int:
    """Byte `index` of an array of bytes that starts at `address`."""
    return ctypes.c_uint8.from_address(int(address) + int(index)).value


def address_of(record: Any, field: str) -> Any:
    """Address of a field, an int64."""
    return np.int64(record.__array_interface__["data"][0] + record.dtype.fields[field][1])


def pointer_to(record: Any) -> Any:
    """Address of a record, an int64.

    In interpreted code too: NumPy computes the sum of a Python int and a 4-byte field in 4 bytes.
    """
    return np.int64(record.__array_interface__["data"][0])


deref = llvm.Primitive(deref, llvm.record_at())
element = llvm.Primitive(element, llvm.record_element())
byte_at = llvm.Primitive(byte_at, llvm.byte_load())
address_of = llvm.Primitive(address_of, llvm.field_address())
pointer_to = llvm.Primitive(pointer_to, llvm.record_address())

int64_t = struct(value="i8")
"""One 64-bit word: a table entry, a histogram bucket, a bitmap word."""
