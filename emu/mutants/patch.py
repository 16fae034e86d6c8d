"""A mutant: a realistic bug as a patch of the source, applied when a module is imported for a test build.

Functions that users run carry no switch for any of it. With EMU_MUTANT=NAME in the environment, `emu/__init__.py` has
the modules that the patch names compiled from patched source; whatever runs then says so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

VARIABLE = "EMU_MUTANT"
"""The environment variable that names the mutant."""


class MutantError(Exception):
    """There is no such mutant, or its patch does not fit the source; the message is one line."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One place of the source.

    Attributes:
        module: as it is imported. function: in which the old text stands. old: stands there once. new: instead of it.
    """

    module: str
    function: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """The source with this edit.

        Raises:
            MutantError: the old text does not stand in the function exactly once.
        """
        begin = source.find(f"\ndef {self.function}(")
        end = source.find("\n\n\n", begin)
        body = source[begin : end + 1 if end >= 0 else len(source)]
        if begin < 0 or body.count(self.old) != 1:
            found = body.count(self.old) if begin >= 0 else 0
            raise MutantError(f"{self.module}.{self.function}: {found} places look like {self.old!r}, not one")
        return source[:begin] + body.replace(self.old, self.new) + source[begin + len(body) :]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug on purpose.

    Attributes:
        name: what users write. edits: of the source. why: how it comes about in real code. explore: options of
        `emu explore` under which it is looked for. run: options of `emu run` under which a real machine may show it.
        is_remedy: not a bug but a repair, of which nothing must be found.
    """

    name: str
    edits: tuple[Edit, ...]
    why: str
    explore: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    is_remedy: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def modules(self) -> set[str]:
        """Those that are patched."""
        return {edit.module for edit in self.edits}

    def patched(self, module: str, source: str) -> str:
        """The source of a module with the bug in it.

        Raises:
            MutantError: it does not fit.
        """
        for edit in self.edits:
            if edit.module == module:
                source = edit.apply(source)
        return source


class _Loader(importlib.abc.SourceLoader):
    """Loads one module from patched source, which is also what tracebacks and schedules show."""

    def __init__(self, mutant: Mutant, module: str, path: str) -> None:
        self.mutant, self.module, self.path = mutant, module, path

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 - one loader, one module
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        source = self.mutant.patched(self.module, Path(str(path)).read_text(encoding="utf-8"))
        # Without a time of modification the cache of lines is never compared with the file.
        linecache.cache[self.path] = (len(source), None, source.splitlines(keepends=True), self.path)
        return source.encode()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.mutant.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None:
            return None
        return importlib.util.spec_from_loader(
            fullname, _Loader(self.mutant, fullname, spec.origin), origin=spec.origin
        )


def install(mutant: Mutant) -> None:
    """Have its modules imported with the bug in them, and say so.

    Raises:
        MutantError: one of them has been imported already.
    """
    loaded = mutant.modules & set(sys.modules)
    if loaded:
        raise MutantError(f"{min(loaded)} has been imported before mutant {mutant.name}")
    sys.meta_path.insert(0, _Finder(mutant))
    kind = "a remedy is tried" if mutant.is_remedy else "A BUG IS IN THE SOURCE ON PURPOSE"
    sys.stderr.write(f"emu: {VARIABLE}={mutant.name}: {kind}: {mutant.why}\n")
