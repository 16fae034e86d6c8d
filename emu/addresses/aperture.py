"""The address space of a captured domain, read off the addresses that were handed out.

Addresses are allocated top-down, so the first ones lie at the end of the space.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.capture.events import PAGE_SHIFT
from emu.capture.ftrace import Capture

_MIB = 1 << 20
S390_START = 1 << 32
"""Where zPCI lets the space begin (a function's `start_dma`)."""
X86_RESERVED = ((0xC0000000, 0xFEBFFFFF), (0xFEE00000, 0xFEEFFFFF))
"""The bridge's window for devices' memory, as on QEMU's machine, and that for interrupts (MSI): first and last byte."""
_REACH = 1 << 42


@dataclass(frozen=True, slots=True)
class Aperture:
    """The space between `start` and `end`, in bytes, less the reserved ranges (first and last byte of each)."""

    start: int
    end: int
    reserved: tuple[tuple[int, int], ...] = ()

    @property
    def mib(self) -> int:
        """Its size."""
        return (self.end - self.start) // _MIB

    def is_inside(self, other: Aperture) -> bool:
        """Whether another one has every address of this one, or reserves it."""
        return other.start <= self.start and self.end <= other.end


def aperture_of(capture: Capture) -> Aperture | None:
    """The space from which a capture's addresses can have come; None when it is not one of those known here."""
    mappings = capture.mappings
    lowest = int(mappings["start"].min())
    highest = int((mappings["start"] + (mappings["pages"] << PAGE_SHIFT)).max())
    end = -(-highest // _MIB) * _MIB
    if end > _REACH:
        return None
    if lowest >= S390_START:
        return Aperture(S390_START, end)
    reserved = tuple(window for window in X86_RESERVED if window[1] < end)
    return Aperture(0, end, reserved)
