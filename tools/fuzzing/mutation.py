"""Inputs out of other inputs: one seed gives one sequence, whatever the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

_NUMBER = re.compile(rb"0x[0-9a-f]+|-?[0-9]+")
_NUMBERS = (
    b"0", b"1", b"-1", b"2", b"9", b"10", b"127", b"128", b"255", b"256", b"4095", b"4096", b"4097", b"8192", b"9999",
    b"10000",
    b"65535", b"65536", b"2147483647", b"2147483648", b"4294967295", b"4294967296", b"999999999999999999",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"-9223372036854775808", b"1e999", b"-0",
    b"0.5",
    b"0x0", b"0x1000", b"0xfff", b"0xfffffffffffff000", b"0x3ffffffffffff000", b"0x4000000000000000",
    b"0x7fffffffffffffff",
    b"0x8000000000000000", b"0xffffffffffffffff", b"0x10000000000000000",
)  # fmt: skip
_LONGEST_BYTES = 4096
_SELDOM = 2000
"""One input in so many is grown to a length that lines, blocks and numbers do not usually have."""
_LONG_BYTES = (5_000, 20_000, 70_000, 140_000)


class Mutator:
    """Makes inputs.

    Args:
        corpus: what to begin with, at least one.
        words: what the format is made of.
        seed: of everything random.
    """

    def __init__(self, corpus: Sequence[bytes], words: Sequence[bytes], seed: str) -> None:
        self._corpus = corpus
        self._words = words
        self._random = Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._steps = (
            self._flip, self._overwrite, self._cut_out, self._repeat, self._insert_word, self._replace_number,
            self._replace_number, self._splice, self._move_line, self._drop_line, self._repeat_line, self._borrow_line,
            self._truncate,
        )  # fmt: skip

    def next(self) -> bytes:
        """The next input."""
        random = self._random
        data = random.choice(self._corpus)
        for _ in range(1 + int(random.expovariate(0.6))):
            data = random.choice(self._steps)(data)
        if random.randrange(_SELDOM) == 0:
            return self._grown(data)
        return data[:_LONGEST_BYTES]

    def _span(self, data: bytes) -> tuple[int, int]:
        begin = self._random.randrange(len(data) + 1)
        return begin, min(len(data), begin + 1 + int(self._random.expovariate(0.1)))

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return b"\0"
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]

    def _overwrite(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + self._random.randbytes(end - begin) + data[end:]

    def _cut_out(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:end] + data[begin:end] * self._random.randrange(1, 9) + data[end:]

    def _insert_word(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + self._random.choice(self._words) + data[self._random.choice((begin, end)) :]

    def _replace_number(self, data: bytes) -> bytes:
        found = list(_NUMBER.finditer(data))
        if not found:
            return data + self._random.choice(_NUMBERS)
        chosen = self._random.choice(found)
        return data[: chosen.start()] + self._random.choice(_NUMBERS) + data[chosen.end() :]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self._corpus)
        return data[: self._random.randrange(len(data) + 1)] + other[self._random.randrange(len(other) + 1) :]

    def _move_line(self, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        if lines:
            lines.insert(self._random.randrange(len(lines)), lines.pop(self._random.randrange(len(lines))))
        return b"".join(lines)

    def _drop_line(self, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        if lines:
            del lines[self._random.randrange(len(lines))]
        return b"".join(lines)

    def _repeat_line(self, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        if lines:
            lines.insert(self._random.randrange(len(lines)), self._random.choice(lines))
        return b"".join(lines)

    def _borrow_line(self, data: bytes) -> bytes:
        lines, others = data.splitlines(keepends=True), self._random.choice(self._corpus).splitlines(keepends=True)
        lines.insert(self._random.randrange(len(lines) + 1), self._random.choice(others) if others else b"\n")
        return b"".join(lines)

    def _truncate(self, data: bytes) -> bytes:
        return data[: self._random.randrange(len(data) + 1)]

    def _grown(self, data: bytes) -> bytes:
        begin, end = self._span(data)
        times = self._random.choice(_LONG_BYTES) // max(end - begin, 1)
        return data[:begin] + data[begin:end] * times + data[end:]
