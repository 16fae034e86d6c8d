"""Two meanings of one step: on the machine's own clocks, and on virtual ones.

A context record whose first field is called `virtual` belongs to an emulated CPU with a clock of its own; any other to
a process or a thread. The type of the context decides when the code is compiled, so neither engine pays for the other.
Interpreted, a step can be given further meanings, for contexts whose first field has another name.

In the same way the name of the second field, the mark, picks among the meanings of steps that a policy of the user's
may have given another one, while a machine is made and before anything of it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import config
from numba.extending import overload

_SAME_SIGNATURE: dict[int, Callable[[Any], Any]] = {
    1: lambda f: lambda cpu: f(cpu),  # noqa: PLW0108 - the signature is what it is for
    2: lambda f: lambda cpu, a: f(cpu, a),  # noqa: PLW0108
    3: lambda f: lambda cpu, a, b: f(cpu, a, b),  # noqa: PLW0108
    4: lambda f: lambda cpu, a, b, c: f(cpu, a, b, c),  # noqa: PLW0108
    5: lambda f: lambda cpu, a, b, c, d: f(cpu, a, b, c, d),  # noqa: PLW0108
}
"""numba compares the names of arguments, so a chooser and what it chooses are made from one pattern."""


_INLINED = {"nogil": True, "error_model": "numpy", "forceinline": True, "no_cfunc_wrapper": True}


class Step:
    """An interpreted step: the name of the context's first field picks its meaning.

    Attributes:
        meanings: name of a first field → function; where the name is not among them the meaning is `native`.
    """

    def __init__(self, native: Any, virtual: Any) -> None:
        self.native = native
        self.meanings = {"virtual": virtual}

    def __call__(self, cpu: Any, *rest: Any) -> Any:
        """Do the step on behalf of a CPU."""
        return self.meanings.get(cpu.dtype.names[0], self.native)(cpu, *rest)


def _is_virtual_type(cpu: Any) -> bool:
    return isinstance(cpu, types.Record) and "virtual" in cpu.fields


def by_engine(native: Any, virtual: Any) -> Any:
    """A step that is `native` for the context of a process or thread and `virtual` for one with a virtual clock.

    Args:
        native: a compiled function of one to four arguments, the context first.
        virtual: another of as many.
    """
    if config.DISABLE_JIT:
        return Step(native, virtual)

    def step(*_arguments: Any) -> Any:
        raise NotImplementedError("a part of compiled code")

    step.__name__ = step.__qualname__ = native.py_func.__name__
    same_signature = _SAME_SIGNATURE[native.py_func.__code__.co_argcount]
    chosen = {False: same_signature(native), True: same_signature(virtual)}
    choose = same_signature(lambda cpu, *_rest: chosen[_is_virtual_type(cpu)])
    overload(step, jit_options=_INLINED)(choose)
    return step


class MarkedStep:
    """An interpreted step: the name of the context's second field picks its meaning.

    Attributes:
        meanings: name of a second field → function; where the name is not among them the meaning is `usual`.
    """

    def __init__(self, usual: Any) -> None:
        self.usual = usual
        self.meanings: dict[str, Any] = {}

    def __call__(self, cpu: Any, *rest: Any) -> Any:
        """Do the step on behalf of a CPU."""
        mark = cpu.dtype.names[1] if self.meanings else ""
        return self.meanings.get(mark, self.usual)(cpu, *rest)


def by_mark(usual: Any) -> Any:
    """A step that can be given further meanings, each for contexts whose second field has a certain name.

    They are added to the step's `meanings` (name → compiled function of the same arguments) before code for such a
    context is compiled; who runs with another context pays nothing for them.

    Args:
        usual: a compiled function of one to five arguments, the context first.
    """
    if config.DISABLE_JIT:
        return MarkedStep(usual)

    def step(*_arguments: Any) -> Any:
        raise NotImplementedError("a part of compiled code")

    meanings: dict[str, Any] = {}
    step.__name__ = step.__qualname__ = usual.py_func.__name__
    step.meanings = meanings  # type: ignore[attr-defined]
    same_signature = _SAME_SIGNATURE[usual.py_func.__code__.co_argcount]

    def meaning(cpu: Any) -> Any:
        marks = meanings.keys() & cpu.fields.keys() if isinstance(cpu, types.Record) else ()
        return same_signature(meanings[next(iter(marks))] if marks else usual)

    overload(step, jit_options=_INLINED)(same_signature(lambda cpu, *_rest: meaning(cpu)))
    return step
