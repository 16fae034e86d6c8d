"""The memory of an explored machine: what a run writes lies over the segment, so that the next run begins anew.

Records are handed out here instead of NumPy's: every access to a field goes to the world that runs the CPUs, which
decides whether another CPU comes first. What kind of memory a record lies in is decided by its address: what all CPUs
share, what is a CPU's own, and what only counts and is never looked at by the code itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np

from emu.native.segment import Segment

SHARED, PRIVATE, STATISTIC = range(3)
"""Kinds of memory: only an access to what is shared lets another CPU go first; statistics are no part of the state."""

_CODES = {"i8": "q", "i4": "i", "u4": "I", "u1": "B"}
SIZES = {"q": 8, "i": 4, "I": 4, "B": 1}


class Overlay:
    """Words over those of a segment.

    Attributes:
        words: address → value, of all that was written in this run.
        digest: of everything but statistics; the same for the same contents, however they came about.
    """

    def __init__(self, segment: Segment) -> None:
        self.base = segment.base
        whole: Any = memoryview(segment._bytes)
        self._size = len(whole) // 8 * 8
        self._views: dict[str, Any] = {code: whole[: self._size].cast(code) for code in SIZES}
        self.words: dict[int, int] = {}
        self.digest = 0

    def forget(self) -> None:
        """Be as the segment is."""
        self.words.clear()
        self.digest = 0

    def load(self, address: int, code: str) -> int:
        """What is there now."""
        value = self.words.get(address)
        return self.at_first(address, code) if value is None else value

    def at_first(self, address: int, code: str) -> int:
        """What is there when a run begins."""
        if not 0 <= address - self.base < self._size:
            raise ValueError(f"{address:#x} is no memory of the machine")
        return int(self._views[code][(address - self.base) // SIZES[code]])

    def store(self, address: int, code: str, value: int) -> None:
        """Write what is part of the state."""
        self.digest ^= hash((address, self.load(address, code))) ^ hash((address, value))
        self.words[address] = value

    def note(self, address: int, value: int) -> None:
        """Write what only counts."""
        self.words[address] = value


class Record:
    """A record at an address; made by `Records`, with a property for every field."""

    __slots__ = ("_children", "address")
    dtype: np.dtype[np.void]
    places: dict[str, tuple[int, str]]
    """Field → offset and code of its memory; scalars only."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._children: dict[str, Record] = {}

    def __getitem__(self, field: str) -> Any:
        return getattr(self, field)


class Records:
    """Hands out the records of one machine.

    Args:
        regions: (first address, kind) in the order of addresses: which kind begins there.
        statistics: fields of shared records that only count: (names of its fields, field).
        load: (address, code, kind) → value.
        store: (address, code, kind, value).
    """

    def __init__(
        self,
        regions: list[tuple[int, int]],
        statistics: set[tuple[Any, str]],
        load: Callable[[int, str, int], int],
        store: Callable[[int, str, int, int], None],
    ) -> None:
        self._firsts = [first for first, _ in regions]
        self._kinds = [kind for _, kind in regions]
        self._statistics = statistics
        self._load, self._store = load, store
        self._classes: dict[tuple[int, int], type[Record]] = {}
        self._records: dict[tuple[int, int], Record] = {}
        self._dtypes: list[Any] = []

    def kind_of(self, address: int) -> int:
        """The kind of memory at an address."""
        return self._kinds[bisect_right(self._firsts, address) - 1]

    def at(self, dtype: Any, address: int) -> Any:
        """The record of a type at an address.

        Raises:
            ValueError: for NULL.
        """
        key = (id(dtype), address)
        record = self._records.get(key)
        if record is None:
            if not address:
                raise ValueError(f"NULL pointer to {dtype.names}")
            self._dtypes.append(dtype)
            record = self._records[key] = self._class_of(dtype, self.kind_of(address))(address)
        return record

    def _class_of(self, dtype: Any, kind: int) -> type[Record]:
        key = (id(dtype), kind)
        if key not in self._classes:
            self._dtypes.append(dtype)
            self._classes[key] = self._make_class(dtype, kind)
        return self._classes[key]

    def _make_class(self, dtype: Any, kind: int) -> type[Record]:
        members: dict[str, Any] = {"__slots__": (), "dtype": dtype, "places": {}}
        for name, (form, offset, *_) in dtype.fields.items():
            if form.names:
                members[name] = self._nested(name, form, offset)
            elif form.shape == ():
                code = _CODES[form.str[1:]]
                members["places"][name] = (offset, code)
                counts = (dtype.names, name) in self._statistics
                members[name] = self._scalar(offset, code, STATISTIC if counts else kind)
        return type("Record", (Record,), members)

    def _nested(self, name: str, form: Any, offset: int) -> property:
        def get(record: Record) -> Record:
            child = record._children.get(name)
            if child is None:
                child = record._children[name] = self.at(form, record.address + offset)
            return child

        return property(get)

    def _scalar(self, offset: int, code: str, kind: int) -> property:
        load, store = self._load, self._store

        def get(record: Record) -> int:
            return load(record.address + offset, code, kind)

        def put(record: Record, value: int) -> None:
            store(record.address + offset, code, kind, int(value))

        return property(get, put)
