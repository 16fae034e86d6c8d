"""Every touch of llvmlite: what a primitive becomes when the code is compiled.

A `Primitive` has two meanings. Called from interpreted Python it runs its plain function; met by numba in compiled
code it emits the LLVM instructions given here. The plain functions live beside their names in `atomics.py`, `clock.py`
and `futex.py`; nothing outside this file builds IR.

Pitfalls this file knows about: inline assembly aborts the process unless LLVM's assembly parser is initialised, which
only the switch of stacks asks for; `pause` and `rdtsc` come from target intrinsics. libc is called by symbol name,
because a ctypes pointer would turn numba's cache off. A field primitive must refuse non-literal field names with None,
or users see a masked error.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.extending import _Intrinsic

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VOID = ir.VoidType()
_TIMESPEC = ir.LiteralStructType([_I64, _I64])
_CLOCK_MONOTONIC = 1

MACHINE = platform.machine()
IS_X86 = MACHINE in ("x86_64", "AMD64")

SWITCHES_BY_ASSEMBLY = IS_X86 and "EMU_PORTABLE_STACKS" not in os.environ
"""Otherwise stacks are switched by libc's swapcontext(), which costs a system call."""

Typing = Callable[..., Any]


class Primitive(_Intrinsic):  # type: ignore[misc]
    """One operation with a plain-Python meaning and an LLVM lowering.

    Args:
        plain: the meaning in interpreted Python; also gives the name and the docstring.
        lowering: numba typing function `(typingctx, *argument types) -> (signature, codegen) | None`.
    """

    def __init__(self, plain: Callable[..., Any], lowering: Typing) -> None:
        super().__init__(plain.__name__, lowering)
        self.plain = plain
        self.__doc__ = plain.__doc__
        self.__name__ = plain.__name__
        self._register()

    def __call__(self, *args: Any) -> Any:
        """Run the plain meaning."""
        return self.plain(*args)


def _field_pointer(context: Any, builder: Any, record: Any, pointer: Any, field: str) -> Any:
    return cgutils.get_record_member(
        builder, pointer, record.offset(field), context.get_data_type(record.typeof(field))
    )


def _record_field(record: Any, field: Any) -> bool:
    return isinstance(record, types.Record) and isinstance(field, types.StringLiteral)


def field_rmw(operation: str, ordering: str = "seq_cst") -> Typing:
    """`op(record, "field", value) -> old value`: one locked read-modify-write."""

    def typing(typingctx: Any, record: Any, field: Any, value: Any) -> Any:
        if not _record_field(record, field):
            return None
        field_type = record.typeof(field.literal_value)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _field_pointer(context, builder, record, args[0], field.literal_value)
            return builder.atomic_rmw(operation, pointer, args[2], ordering)

        return field_type(record, field, field_type), codegen

    return typing


def field_cmpxchg() -> Typing:
    """`op(record, "field", old, new) -> value found`: one locked compare-and-exchange."""

    def typing(typingctx: Any, record: Any, field: Any, old: Any, new: Any) -> Any:
        if not _record_field(record, field):
            return None
        field_type = record.typeof(field.literal_value)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _field_pointer(context, builder, record, args[0], field.literal_value)
            pair = builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "acquire")
            return builder.extract_value(pair, 0)

        return field_type(record, field, field_type, field_type), codegen

    return typing


def field_load(ordering: str) -> Typing:
    """`op(record, "field") -> value`: an atomic load."""

    def typing(typingctx: Any, record: Any, field: Any) -> Any:
        if not _record_field(record, field):
            return None
        field_type = record.typeof(field.literal_value)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _field_pointer(context, builder, record, args[0], field.literal_value)
            return builder.load_atomic(pointer, ordering, field_type.bitwidth // 8)

        return field_type(record, field), codegen

    return typing


def field_store(ordering: str) -> Typing:
    """`op(record, "field", value)`: an atomic store."""

    def typing(typingctx: Any, record: Any, field: Any, value: Any) -> Any:
        if not _record_field(record, field):
            return None
        field_type = record.typeof(field.literal_value)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _field_pointer(context, builder, record, args[0], field.literal_value)
            builder.store_atomic(args[2], pointer, ordering, field_type.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(record, field, field_type), codegen

    return typing


def field_address() -> Typing:
    """`op(record, "field") -> int64`: the field's address."""

    def typing(typingctx: Any, record: Any, field: Any) -> Any:
        if not _record_field(record, field):
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _field_pointer(context, builder, record, args[0], field.literal_value)
            return builder.ptrtoint(pointer, _I64)

        return types.int64(record, field), codegen

    return typing


def record_address() -> Typing:
    """`op(record) -> int64`: the record's address."""

    def typing(typingctx: Any, record: Any) -> Any:
        if not isinstance(record, types.Record):
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.ptrtoint(args[0], _I64)

        return types.int64(record), codegen

    return typing


def record_at() -> Typing:
    """`op(dtype, address) -> record`: a typed pointer, without a copy or a reference count."""

    def typing(typingctx: Any, dtype: Any, address: Any) -> Any:
        if not (isinstance(dtype, types.DType) and isinstance(dtype.dtype, types.Record)):
            return None
        record = dtype.dtype

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[1], context.get_value_type(record))

        return record(dtype, types.int64), codegen

    return typing


def record_element() -> Typing:
    """`op(dtype, address, index) -> record`: element `index` of an array of records that starts at `address`."""

    def typing(typingctx: Any, dtype: Any, address: Any, index: Any) -> Any:
        if not (isinstance(dtype, types.DType) and isinstance(dtype.dtype, types.Record)):
            return None
        record = dtype.dtype

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            offset = builder.mul(args[2], _I64(record.size))
            return builder.inttoptr(builder.add(args[1], offset), context.get_value_type(record))

        return record(dtype, types.int64, types.int64), codegen

    return typing


def byte_load() -> Typing:
    """`op(address, index) -> int64`: one byte of an array of bytes, 0 to 255."""

    def typing(typingctx: Any, address: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = builder.inttoptr(builder.add(args[0], args[1]), ir.IntType(8).as_pointer())
            return builder.zext(builder.load(pointer), _I64)

        return types.int64(types.int64, types.int64), codegen

    return typing


def fence(ordering: str) -> Typing:
    """`op()`: a memory fence."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.void(), codegen

    return typing


def compiler_barrier() -> Typing:
    """`op()`: a fence within one thread; orders what is compiled, and becomes no instruction."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.fence("seq_cst", "singlethread")
            return context.get_dummy_value()

        return types.void(), codegen

    return typing


def pause() -> Typing:
    """`op()`: the processor's hint that it is in a spin loop."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if IS_X86:
                builder.call(_symbol(builder, "llvm.x86.sse2.pause", _VOID, []), [])
            elif MACHINE in ("aarch64", "arm64"):
                builder.call(_symbol(builder, "llvm.aarch64.hint", _VOID, [_I32]), [_I32(1)])
            return context.get_dummy_value()

        return types.void(), codegen

    return typing


def prefetch_to_write() -> Typing:
    """`op(address)`: have a cache line fetched that is going to be written; any address will do."""

    def typing(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
            fetch = _symbol(builder, "llvm.prefetch.p0i8", _VOID, [pointer.type, _I32, _I32, _I32])
            builder.call(fetch, [pointer, _I32(1), _I32(3), _I32(1)])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return typing


def cycle_counter() -> Typing:
    """`op() -> int64`: the time-stamp counter."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.call(_symbol(builder, "llvm.readcyclecounter", _I64, []), [])

        return types.int64(), codegen

    return typing


def log2_floor() -> Typing:
    """`op(int64) -> int64`: index of the highest set bit; the argument must not be 0."""

    def typing(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.sub(_I64(63), builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1)))

        return types.int64(types.int64), codegen

    return typing


def trailing_zeros() -> Typing:
    """`op(int64) -> int64`: index of the lowest set bit; the argument must not be 0."""

    def typing(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.int64), codegen

    return typing


def _symbol(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def monotonic_ns() -> Typing:
    """`op() -> int64`: clock_gettime(CLOCK_MONOTONIC) in ns."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            spec = cgutils.alloca_once(builder, _TIMESPEC)
            get = _symbol(builder, "clock_gettime", _I32, [_I32, spec.type])
            builder.call(get, [_I32(_CLOCK_MONOTONIC), spec])
            seconds = builder.load(cgutils.gep_inbounds(builder, spec, 0, 0))
            nanoseconds = builder.load(cgutils.gep_inbounds(builder, spec, 0, 1))
            return builder.add(builder.mul(seconds, _I64(1_000_000_000)), nanoseconds)

        return types.int64(), codegen

    return typing


def _store_timespec(builder: Any, spec: Any, duration_ns: Any) -> None:
    billion = _I64(1_000_000_000)
    builder.store(builder.sdiv(duration_ns, billion), cgutils.gep_inbounds(builder, spec, 0, 0))
    builder.store(builder.srem(duration_ns, billion), cgutils.gep_inbounds(builder, spec, 0, 1))


def nanosleep() -> Typing:
    """`op(ns)`: sleep relative to now; returns early on a signal."""

    def typing(typingctx: Any, duration: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            spec = cgutils.alloca_once(builder, _TIMESPEC)
            _store_timespec(builder, spec, args[0])
            sleep = _symbol(builder, "nanosleep", _I32, [spec.type, _I64])
            builder.call(sleep, [spec, _I64(0)])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return typing


def sched_yield() -> Typing:
    """`op()`: give the core away."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.call(_symbol(builder, "sched_yield", _I32, []), [])
            return context.get_dummy_value()

        return types.void(), codegen

    return typing


def futex_wait(number: int) -> Typing:
    """`op(address, expected, timeout_ns) -> int64`: FUTEX_WAIT; a timeout of 0 or less means for ever.

    Neither futex operation is FUTEX_PRIVATE: the waiters are in other processes.
    """

    def typing(typingctx: Any, address: Any, expected: Any, timeout: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            where, value, timeout_ns = args
            spec = cgutils.alloca_once(builder, _TIMESPEC)
            _store_timespec(builder, spec, timeout_ns)
            bounded = builder.icmp_signed(">", timeout_ns, _I64(0))
            spec_address = builder.select(bounded, builder.ptrtoint(spec, _I64), _I64(0))
            return _futex(builder, number, where, 0, value, spec_address)

        return types.int64(types.int64, types.int64, types.int64), codegen

    return typing


def futex_wake(number: int) -> Typing:
    """`op(address, waiters) -> int64`: FUTEX_WAKE; returns how many were woken."""

    def typing(typingctx: Any, address: Any, waiters: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _futex(builder, number, args[0], 1, args[1], _I64(0))

        return types.int64(types.int64, types.int64), codegen

    return typing


def _futex(builder: Any, number: int, address: Any, operation: int, value: Any, timespec: Any) -> Any:
    syscall = _symbol(builder, "syscall", _I64, [_I64] * 7)
    zero = _I64(0)
    return builder.call(syscall, [_I64(number), address, _I64(operation), value, timespec, zero, zero])


_SWITCH_X86_64 = """
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdi
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %rdi
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
"""
"""What the System V ABI has a called function keep, and the register of the first argument, for the function that a
fresh stack begins with: that stack's return address."""
SAVED_REGISTERS = 7


def switch_stack() -> Typing:
    """`op(save, to)`: go on, on another stack, where that was left; return when somebody switches back.

    The stack pointer, or with swapcontext() the address of the ucontext_t, is kept in the word at `save`.
    """

    def typing(typingctx: Any, save: Any, to: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if SWITCHES_BY_ASSEMBLY:
                builder.call(_switch_function(builder.module), args)
            else:
                mine = builder.load(builder.inttoptr(args[0], _I64.as_pointer()))
                builder.call(_symbol(builder, "swapcontext", _I32, [_I64, _I64]), [mine, args[1]])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return typing


def _switch_function(module: Any) -> Any:
    """A function of its own, never inlined: its pushes would write over what a caller keeps below its stack pointer."""
    name = "emu_switch_stack"
    if name in module.globals:
        return module.globals[name]
    binding.initialize_native_asmparser()
    function = ir.Function(module, ir.FunctionType(_VOID, [_I64, _I64]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("naked")
    function.attributes.add("noinline")
    body = ir.IRBuilder(function.append_basic_block())
    body.asm(ir.FunctionType(_VOID, []), _SWITCH_X86_64, "~{memory}", [], side_effect=True)
    body.unreachable()
    return function
