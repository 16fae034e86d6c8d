"""PCI functions as the hypervisor knows them: a record for each, found by the handle that a request carries.

The functions of a machine share one hypervisor: its queue, its servers, and how many pages the host can hold mapped.
Tables, the devices that do DMA, and what has gone wrong with them are each function's own.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.state import function_t
from emu.native.compile import inline
from emu.native.record import element

FH_ENABLED = 1 << 31
"""Set in the handle of a function that is in use; below it is its number."""

NO_FUNCTION = -1


def function_handle(number: int) -> int:
    """The handle of a function, by which a guest names it; not for compiled code."""
    return FH_ENABLED | number


@inline
def function_number(hv: Any, fh: int) -> int:
    """The number of the function of that handle, or NO_FUNCTION."""
    number = fh & ~FH_ENABLED
    return number if fh & FH_ENABLED and number < hv.function_count else NO_FUNCTION


@inline
def function_of(hv: Any, number: int) -> Any:
    """The record of a function."""
    return element(function_t, hv.functions, number)
