"""Futexes: sleeping in the kernel on a 32-bit word of the segment, across processes."""

from __future__ import annotations

import ctypes
import platform

from emu.native import llvm

_NUMBER = {"x86_64": 202, "aarch64": 98, "s390x": 238, "ppc64le": 221, "riscv64": 98}.get(platform.machine(), 202)
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
EVERYONE = 2**31 - 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p,
                     ctypes.c_long]  # fmt: skip


def futex_wait(address: int, expected: int, timeout_ns: int) -> int:
    """Sleep while the word at `address` is `expected`; 0 or less waits for ever. May return for no reason."""
    spec = _Timespec(timeout_ns // 1_000_000_000, timeout_ns % 1_000_000_000)
    where = ctypes.addressof(spec) if timeout_ns > 0 else None
    return int(_syscall(_NUMBER, int(address), _FUTEX_WAIT, int(expected), where, None, 0))


def futex_wake(address: int, waiters: int) -> int:
    """Wake up to `waiters` sleepers; returns how many."""
    return int(_syscall(_NUMBER, int(address), _FUTEX_WAKE, int(waiters), None, None, 0))


futex_wait = llvm.Primitive(futex_wait, llvm.futex_wait(_NUMBER))
futex_wake = llvm.Primitive(futex_wake, llvm.futex_wake(_NUMBER))
