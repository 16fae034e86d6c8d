"""Compile each entry as one program: all that it calls is linked into it unoptimised, and everything is optimised once.

numba optimises and emits machine code for every function by itself, then links it into its caller and optimises it
there again, level by level. For a call tree as deep as a kernel's that takes a minute. Inside `whole_program()` only
entries are linked, optimised and emitted; what they call is typed and lowered to IR. The result is there five times
sooner, and faster: what is linked in becomes private to its entry, and the optimiser inlines it as a C compiler inlines
static functions. Functions compiled this way cannot be called from Python, only from their entry.

This leans on numba's internals (codegen.JITCodeLibrary, CPUContext.get_executable, CPUCallConv.call_function). Where a
release has moved them, the context does nothing, and compiling is correct but slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from numba.core import callconv, cgutils, codegen, cpu


def _refuses_its_arguments() -> Any:
    """What a part is when called from Python: numba insists on a builtin, and on another one for every function."""
    return ["compiled as a part of an entry"].index


def _close(library: Any, *, out_of_line: bool) -> None:
    """What JITCodeLibrary.finalize does, less linking, optimising and emitting, which is for its entry."""
    library._raise_if_finalized()
    if out_of_line:
        for function in library._final_module.functions:
            if not function.is_declaration:
                function.add_function_attribute("noinline")
    for part in library._linking_libraries:
        library._reload_init.update(part._reload_init)
    library._finalize_dynamic_globals()
    library._get_module_for_linking = partial(_with_its_parts, library)
    library._finalized = True


def _link_parts(library: Any, module: Any) -> None:
    """Link all that a library calls, directly or not, into a module, each once."""
    found = {library}
    waiting = list(reversed(library._linking_libraries))
    while waiting:
        part = waiting.pop()
        if part not in found:
            found.add(part)
            library._reload_init.update(part._reload_init)
            module.link_in(_Library._get_module_for_linking(part), preserve=True)
            waiting.extend(reversed(part._linking_libraries))


def _with_its_parts(library: Any) -> Any:
    """What another compilation links, which asks for what it calls itself and no further."""
    module = _Library._get_module_for_linking(library).clone()
    _link_parts(library, module)
    return module


def _make_parts_private(library: Any) -> None:
    """Let the optimiser treat what was linked in as static: numba leaves it visible to other modules."""
    for function in library._final_module.functions:
        if not function.is_declaration and function.linkage.name == "linkonce_odr":
            function.linkage = "internal"


def _place_for_result(builder: Any, kind: Any, size: Any = None, name: str = "", zfill: bool = False) -> Any:  # noqa: ARG001
    """cgutils.alloca_once, less the store of zero on entry, which slow paths would cost those who do not take them."""
    with builder.goto_entry_block():
        return builder.alloca(kind, size, name)


def _rename_locals(library: Any) -> None:
    """Give an entry's private functions names of its own.

    The optimiser is free to change how they are called, but the loader looks symbols up by name, private or not:
    another module's function of the same name would be bound to them.
    """
    for function in library._final_module.functions:
        if function.linkage.name in ("internal", "private"):
            function.name = f"{library.name}.{function.name}"


class _Steps:
    """numba's steps of compiling, changed for entries and their parts; the originals are called where they serve."""

    def __init__(self, is_entry: Callable[[str], bool], is_slow: Callable[[str], bool]) -> None:
        self.is_entry = is_entry
        self.is_slow = is_slow
        self.originals = {(owner, name): getattr(owner, name) for owner, name in _STEPS}

    def original(self, owner: Any, name: str) -> Any:
        return self.originals[owner, name]

    def finalize(self, library: Any) -> None:
        if self.is_entry(library.name):
            _link_parts(library, library._final_module)
            library._linking_libraries = []
            self.original(_Library, "finalize")(library)
        else:
            _close(library, out_of_line=self.is_slow(library.name))

    def optimise_functions(self, library: Any, module: Any) -> None:
        # Nothing yet: the entry's whole module is optimised, from the first step on.
        module.data_layout = library._codegen._data_layout

    def optimise(self, library: Any) -> None:
        _make_parts_private(library)
        self.original(_Library, "_optimize_final_module")(library)

    def finalize_module(self, library: Any) -> None:
        _rename_locals(library)
        self.original(_Library, "_finalize_final_module")(library)

    def get_executable(self, context: Any, library: Any, fndesc: Any, env: Any) -> Any:
        if self.is_entry(library.name):
            return self.original(_Context, "get_executable")(context, library, fndesc, env)
        library._ensure_finalized()
        return _refuses_its_arguments()

    def create_wrapper(self, context: Any, library: Any, *arguments: Any, **keywords: Any) -> None:
        if self.is_entry(library.name):
            self.original(_Context, "create_cpython_wrapper")(context, library, *arguments, **keywords)

    def call_function(self, convention: Any, *arguments: Any, **keywords: Any) -> Any:
        alloca_once = cgutils.alloca_once
        cgutils.alloca_once = _place_for_result
        try:
            return self.original(_Convention, "call_function")(convention, *arguments, **keywords)
        finally:
            cgutils.alloca_once = alloca_once


_Library, _Context, _Convention = codegen.JITCodeLibrary, cpu.CPUContext, callconv.CPUCallConv
_STEPS: dict[tuple[Any, str], Callable[..., Any]] = {
    (_Library, "finalize"): _Steps.finalize,
    (_Library, "_optimize_functions"): _Steps.optimise_functions,
    (_Library, "_optimize_final_module"): _Steps.optimise,
    (_Library, "_finalize_final_module"): _Steps.finalize_module,
    (_Context, "get_executable"): _Steps.get_executable,
    (_Context, "create_cpython_wrapper"): _Steps.create_wrapper,
    (_Convention, "call_function"): _Steps.call_function,
}
_ALSO_NEEDED = ("_raise_if_finalized", "_finalize_dynamic_globals", "_get_module_for_linking")


def _numba_is_as_known() -> bool:
    names = all(hasattr(owner, name) for owner, name in _STEPS)
    return names and all(hasattr(_Library, name) for name in _ALSO_NEEDED)


@contextmanager
def whole_program(is_entry: Callable[[str], bool], is_slow: Callable[[str], bool]) -> Iterator[None]:
    """Compile everything but entries as parts.

    Args:
        is_entry: whether the function of this qualified name is one.
        is_slow: whether it must stay out of line.
    """
    if not _numba_is_as_known():
        yield
        return
    steps = _Steps(is_entry, is_slow)
    for (owner, name), step in _STEPS.items():
        setattr(owner, name, _as_method(steps, step))
    try:
        yield
    finally:
        for (owner, name), original in steps.originals.items():
            setattr(owner, name, original)


def _as_method(steps: _Steps, step: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return step(steps, self, *arguments, **keywords)

    return method
