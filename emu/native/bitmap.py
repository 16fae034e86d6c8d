"""Bitmaps in the segment, as lib/bitmap.c and lib/iommu-helper.c, in words of 32 bits."""

from __future__ import annotations

from emu.native.atomics import ctz, fetch_and, fetch_or
from emu.native.compile import inline, slow
from emu.native.record import element, struct

word_t = struct(bits="u4")
WORD_BITS = 32
_ALL = 0xFFFFFFFF


def bitmap_bytes(bits: int) -> int:
    """Memory that a bitmap of this many bits takes."""
    return -(-bits // WORD_BITS) * word_t.itemsize


@inline
def test_and_set_bit(bitmap: int, bit: int) -> bool:
    """Atomically set a bit; whether it was set."""
    mask = 1 << (bit & (WORD_BITS - 1))
    return (fetch_or(element(word_t, bitmap, bit >> 5), "bits", mask) & mask) != 0


@inline
def test_and_clear_bit(bitmap: int, bit: int) -> bool:
    """Atomically clear a bit; whether it was set."""
    mask = 1 << (bit & (WORD_BITS - 1))
    return (fetch_and(element(word_t, bitmap, bit >> 5), "bits", _ALL ^ mask) & mask) != 0


@inline
def _mask(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


@slow
def bitmap_set(bitmap: int, start: int, count: int) -> None:
    """Set a run of bits; the caller holds the bitmap's lock."""
    while count > 0:
        first = start & (WORD_BITS - 1)
        here = min(count, WORD_BITS - first)
        word = element(word_t, bitmap, start >> 5)
        word.bits = word.bits | _mask(first, here)
        start += here
        count -= here


@slow
def bitmap_clear(bitmap: int, start: int, count: int) -> None:
    """Clear a run of bits; the caller holds the bitmap's lock."""
    while count > 0:
        first = start & (WORD_BITS - 1)
        here = min(count, WORD_BITS - first)
        word = element(word_t, bitmap, start >> 5)
        word.bits = word.bits & (_ALL ^ _mask(first, here))
        start += here
        count -= here


@slow
def _find_next(bitmap: int, size: int, start: int, flip: int) -> int:
    """First bit at or above `start` that is set after its word is xor-ed with `flip`; `size` if there is none."""
    if start >= size:
        return size
    index = start >> 5
    word = (element(word_t, bitmap, index).bits ^ flip) & (_ALL ^ _mask(0, start & (WORD_BITS - 1)))
    last = (size - 1) >> 5
    while word == 0:
        index += 1
        if index > last:
            return size
        word = element(word_t, bitmap, index).bits ^ flip
    return min((index << 5) + ctz(word), size)


@slow
def find_next_bit(bitmap: int, size: int, start: int) -> int:
    """First set bit at or above `start`, or `size`."""
    return _find_next(bitmap, size, start, 0)


@slow
def find_next_zero_area(bitmap: int, size: int, start: int, count: int, boundary: int, shift: int = 0) -> int:
    """First run of `count` clear bits at or above `start`; with `shift` added it crosses no multiple of `boundary`.

    Returns:
        Its first bit, or -1 if there is none.
    """
    while True:
        index = _find_next(bitmap, size, start, _ALL)
        end = index + count
        if end > size:
            return -1
        if ((shift + index) & (boundary - 1)) + count > boundary:
            start = ((shift + index + boundary - 1) & -boundary) - shift
            continue
        taken = _find_next(bitmap, end, index, 0)
        if taken >= end:
            return index
        start = taken + 1
