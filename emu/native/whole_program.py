"""Compile each entry as one program: its callees are linked into it unoptimised, and everything is optimised once.

numba optimises and emits machine code for every function by itself, then links it into its caller and optimises it
there again, level by level. For a call tree as deep as a kernel's that takes a minute. Inside `whole_program()` only
entries are optimised and emitted; what they call is typed, lowered to IR and linked. The result is there five times
sooner, and faster: what is linked in becomes private to its entry, and the optimiser inlines it as a C compiler inlines
static functions. Functions compiled this way cannot be called from Python, only from their entry.

This leans on numba's internals (codegen.JITCodeLibrary, CPUContext.get_executable). Where a release has moved them, the
context does nothing, and compiling is correct but slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite.binding import Linkage
from numba.core import codegen, cpu


def _refuses_its_arguments() -> Any:
    """What a part is when called from Python: numba insists on a builtin, and on another one for every function."""
    return ["compiled as a part of an entry"].index


def _link(library: Any, *, out_of_line: bool) -> None:
    """What JITCodeLibrary.finalize does, less optimising and emitting."""
    library._raise_if_finalized()
    if out_of_line:
        for function in library._final_module.functions:
            if not function.is_declaration:
                function.add_function_attribute("noinline")
    for linked in dict.fromkeys(library._linking_libraries):
        library._reload_init.update(linked._reload_init)
        library._final_module.link_in(linked._get_module_for_linking(), preserve=True)
    library._finalize_dynamic_globals()
    library._finalized = True


def _make_parts_private(library: Any) -> None:
    """Let the optimiser treat what was linked in as static: numba leaves it visible to other modules."""
    for function in library._final_module.functions:
        if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
            function.linkage = "internal"


@contextmanager
def whole_program(is_entry: Callable[[str], bool], is_slow: Callable[[str], bool]) -> Iterator[None]:
    """Compile everything but entries as parts.

    Args:
        is_entry: whether the function of this qualified name is one.
        is_slow: whether it must stay out of line.
    """
    library_class, context_class = codegen.JITCodeLibrary, cpu.CPUContext
    needed = (
        *("_raise_if_finalized", "_final_module", "_linking_libraries", "_finalize_dynamic_globals"),
        "_optimize_final_module",
    )
    probe = codegen.JITCodeLibrary.__mro__[1]
    if not all(hasattr(probe, name) or name.startswith(("_final_module", "_linking")) for name in needed):
        yield
        return
    finalize, get_executable = library_class.finalize, context_class.get_executable
    optimise = library_class._optimize_final_module
    create_wrapper = context_class.create_cpython_wrapper

    def finalize_part(self: Any) -> None:
        if is_entry(self.name):
            finalize(self)
        else:
            _link(self, out_of_line=is_slow(self.name))

    def optimise_entry(self: Any) -> None:
        _make_parts_private(self)
        optimise(self)

    def get_part(self: Any, library: Any, fndesc: Any, env: Any) -> Any:
        if is_entry(library.name):
            return get_executable(self, library, fndesc, env)
        library._ensure_finalized()
        return _refuses_its_arguments()

    def create_wrapper_of_entry(self: Any, library: Any, *arguments: Any, **keywords: Any) -> None:
        if is_entry(library.name):
            create_wrapper(self, library, *arguments, **keywords)

    library_class.finalize, context_class.get_executable = finalize_part, get_part
    library_class._optimize_final_module = optimise_entry
    context_class.create_cpython_wrapper = create_wrapper_of_entry
    try:
        yield
    finally:
        library_class.finalize, context_class.get_executable = finalize, get_executable
        library_class._optimize_final_module = optimise
        context_class.create_cpython_wrapper = create_wrapper
