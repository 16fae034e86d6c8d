"""Stacks for compiled code: several threads of control in one thread of the system, which switch when they say so.

A stack begins in an entry, called with one int64, that never returns: its last act is to switch away. In interpreted
code each is a greenlet.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from emu.native import llvm
from emu.native.atomics import interpreted

STACK_BYTES = 64 << 10
"""Room for the deepest call, and for a signal's frame. Only pages that were touched cost memory."""
_UCONTEXT_BYTES = 8192
"""More than a ucontext_t takes anywhere; the largest, of aarch64, has 4560."""
_WORD = 8

_greenlets: dict[int, Any] = {}


def switch_stack(save: int, to: int) -> None:
    """Go on at the stack `to`, noting this one in the word at `save`."""
    import greenlet  # noqa: PLC0415 - needed by interpreted code only

    here = greenlet.getcurrent()
    _greenlets[id(here)] = here
    ctypes.c_int64.from_address(int(save)).value = id(here)
    _greenlets[int(to)].switch()


switch_stack = llvm.Primitive(switch_stack, llvm.switch_stack())


def entry_address(function: Any) -> int:
    """Address of a compiled entry, as C would call it."""
    (compiled,) = function.overloads.values()
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))


class Stacks:
    """Memory for `count` stacks, which lives as long as this object."""

    def __init__(self, count: int) -> None:
        self._stride = STACK_BYTES + (0 if llvm.SWITCHES_BY_ASSEMBLY else _UCONTEXT_BYTES)
        self._memory = None if interpreted else mmap.mmap(-1, max(count, 1) * self._stride)
        self._used: list[int] = []

    def begin(self, function: Callable[[int], int], argument: int) -> int:
        """A fresh stack that begins with function(argument): what to give to `switch_stack` as `to`."""
        if self._memory is None:
            stack = _begin_greenlet(function, argument)
        else:
            lowest = np.frombuffer(self._memory, np.uint8).ctypes.data + len(self._used) * self._stride
            make = _make_frame if llvm.SWITCHES_BY_ASSEMBLY else _make_context
            stack = make(lowest, entry_address(function), argument)
        self._used.append(stack)
        return stack

    def main(self) -> int:
        """What the word for the stack of the caller must hold before it switches away for the first time."""
        self._main = ctypes.create_string_buffer(_UCONTEXT_BYTES)
        return ctypes.addressof(self._main)

    def close(self) -> None:
        """Forget all of them; none may be in use."""
        for stack in self._used:
            _greenlets.pop(stack, None)
        self._used.clear()


def _begin_greenlet(function: Callable[[int], int], argument: int) -> int:
    import greenlet  # noqa: PLC0415

    fiber = greenlet.greenlet(lambda: function(argument))
    _greenlets[id(fiber)] = fiber
    return id(fiber)


def _make_frame(lowest: int, function: int, argument: int) -> int:
    """What switch_stack() would have left on a stack that is about to enter `function`."""
    # At a function's first instruction the stack pointer is 8 below a multiple of 16.
    return_address = lowest + STACK_BYTES - 2 * _WORD
    ctypes.c_int64.from_address(return_address).value = function
    stack_pointer = return_address - llvm.SAVED_REGISTERS * _WORD
    ctypes.c_int64.from_address(stack_pointer).value = argument
    return stack_pointer


class _Ucontext(ctypes.Structure):
    """How ucontext_t begins, on every 64-bit Linux."""

    _fields_ = (
        ("uc_flags", ctypes.c_ulong),
        ("uc_link", ctypes.c_void_p),
        ("ss_sp", ctypes.c_void_p),
        ("ss_flags", ctypes.c_int),
        ("ss_size", ctypes.c_size_t),
    )


def _make_context(lowest: int, function: int, argument: int) -> int:
    """A ucontext_t beside its stack."""
    address = lowest + STACK_BYTES
    libc = ctypes.CDLL(None)
    libc.getcontext(ctypes.c_void_p(address))
    context = _Ucontext.from_address(address)
    context.uc_link = None
    context.ss_sp = lowest
    context.ss_size = STACK_BYTES
    # Declared for ints, but every 64-bit C library passes whole registers.
    libc.makecontext(ctypes.c_void_p(address), ctypes.c_void_p(function), 1, ctypes.c_void_p(argument))
    return address
