"""From a policy's file to what a machine of it runs: marked contexts, and entries compiled for them.

The mark is a name that the hash of the file's text is part of. So machines of several policies run in one process, one
after the other, and what is compiled is kept on disk under the text that it was made of.
"""

from __future__ import annotations

import ast
import linecache
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from numba import types
from numba.core import config as numba_config

from emu.config import MAX_CPUS, Config, ConfigError
from emu.iommu.flush_queue import iommu_dma_cookie, iova_fq, iova_fq_entry
from emu.iommu.policy import put_in
from emu.machine.context import context_type
from emu.native.compile import entry_with, try_part
from emu.policy import FUNCTIONS, RECORDS, PolicyError, PolicySource, read_policy

_ANSWERED_BEFORE = "rings"
"""Asked in Python, when memory is planned; all others are compiled."""
_WORD = np.dtype("i8")
_SAYS_NOTHING = ("Failed in nopython", "During:", "File ", "Untyped global name error", "Invalid use")

_loaded: dict[str, Policy] = {}


@dataclass(frozen=True)
class Policy:
    """A policy that machines can be made of.

    Attributes:
        source: its file. module: what the file defines. mark: name of the second field of its contexts.
    """

    source: PolicySource
    module: ModuleType
    mark: str
    _entries: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """As users know it."""
        return self.source.name

    @property
    def ring_state(self) -> np.dtype[np.void] | None:
        """The record that it keeps of each ring."""
        return getattr(self.module, "ring_state", None)

    @property
    def shared_state(self) -> np.dtype[np.void] | None:
        """The record that it keeps of all rings together."""
        return getattr(self.module, "shared_state", None)

    def rings_for(self, cpus: int) -> int:
        """How many rings a queue has that would have one for each CPU.

        Raises:
            ConfigError: the policy answers something that cannot be.
        """
        if not hasattr(self.module, _ANSWERED_BEFORE):
            return cpus
        with self.blamed():
            answer = self.module.rings(cpus)
        if not isinstance(answer, int) or not 1 <= answer <= MAX_CPUS:
            raise ConfigError(
                f"{self.source.path}: rings({cpus}) is {answer!r}; it must be a whole number from 1 to {MAX_CPUS}"
            )
        return answer

    def context_type(self, first: str) -> np.dtype[np.void]:
        """The contexts of its machines, see emu.machine.context."""
        return context_type(first, self.mark)

    def entry_of(self, usual: Any) -> Any:
        """An entry of a machine's CPU or timer once more, for the policy's contexts: what is made of it asks it."""
        if usual not in self._entries:
            forms = {"cpu_t": self.context_type("native"), "virtual_cpu_t": self.context_type("virtual")}
            self._entries[usual] = entry_with(usual, self.mark, self.mark, **forms)
        return self._entries[usual]

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What is wrong with the policy's code, run or compiled here, is said of it.

        Raises:
            ConfigError: something is.
        """
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            why = self._why_it_does_not_run(error) or self._why_it_does_not_compile()
            if why is None:
                raise
            raise ConfigError(f"{self.source.path}:{why}") from None

    def _why_it_does_not_run(self, error: BaseException) -> str | None:
        """Line and reason, where Python was in the file."""
        line, traceback = None, error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == str(self.source.path):
                line = traceback.tb_lineno
            traceback = traceback.tb_next
        return None if line is None else f"{line}: {type(error).__name__}: {error}; correct it"

    def _why_it_does_not_compile(self) -> str | None:
        """Line and reason of the first function that does not, by itself; a machine's error is too far from it."""
        if numba_config.DISABLE_JIT:
            return None
        forms = {"cpu": self.context_type("native"), "cookie": iommu_dma_cookie, "fq": iova_fq, "entry": iova_fq_entry}
        for name, arguments in FUNCTIONS.items():
            function = getattr(self.module, name, None)
            if name == _ANSWERED_BEFORE or function is None:
                continue
            line = function.py_func.__code__.co_firstlineno
            try:
                answer = try_part(function.py_func, [forms.get(argument, _WORD) for argument in arguments])
                if isinstance(answer, types.Integer | types.Boolean):
                    continue
                reason = (
                    f"it answers {'nothing' if answer is types.none else str(answer)[:40]}, which is no whole number"
                )
            except Exception as error:  # noqa: BLE001 - numba's are of many types
                found, reason = _said_by_numba(self.source, error)
                line = found or line
            return (
                f"{line}: {name} cannot be compiled: {reason}; "
                "write it with whole numbers and records, see docs/policies.md"
            )
        return None


def policy_of(config: Config) -> Policy | None:
    """The policy that a description names; None for Linux's.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    if config.domain.policy is None:
        return None
    try:
        source = read_policy(config.domain.policy)
    except PolicyError as error:
        raise ConfigError(str(error)) from None
    # Two files of one text are two policies in what is said of them, and share what is compiled.
    known = _loaded.get(source.key)
    if known is None or known.source != source:
        _loaded[source.key] = known = _load(source)
    return known


def entry_for(policy: Policy | None, usual: Any) -> Any:
    """The entry of a CPU or timer that a machine of this policy runs."""
    return policy.entry_of(usual) if policy else usual


def _load(source: PolicySource) -> Policy:
    mark = f"policy_{source.key}"
    module = ModuleType(f"emu.policies.{mark}")
    module.__file__ = str(source.path)
    policy = Policy(source, module, mark)
    # The lines that are shown are those that run, whatever becomes of the file.
    lines = source.text.splitlines(keepends=True)
    linecache.cache[str(source.path)] = (len(source.text), None, lines, str(source.path))
    with policy.blamed():
        exec(compile(source.text, str(source.path), "exec"), vars(module))  # noqa: S102 - it is the user's to run
    for name in RECORDS:
        _check_record(source, name, getattr(module, name, None))
    functions = {name: thing for name, thing in vars(module).items() if _is_own(thing, module)}
    functions.pop(_ANSWERED_BEFORE, None)
    vars(module).update(put_in(mark, functions))
    # Where emu.explore looks for names that it has to watch.
    sys.modules[module.__name__] = module
    return policy


def _is_own(thing: Any, module: ModuleType) -> bool:
    return isinstance(thing, FunctionType) and thing.__globals__ is vars(module)


def _check_record(source: PolicySource, name: str, form: Any) -> None:
    if form is None:
        return
    is_record = isinstance(form, np.dtype) and form.names
    if not is_record or any(form[field] != _WORD for field in form.names):
        raise ConfigError(f'{source.path}: {name} must be a record of 64-bit words; write {name} = struct(count="i8")')


def _said_by_numba(source: PolicySource, error: BaseException) -> tuple[int, str]:
    """The innermost line of the policy that an error of numba's names, or 0, and the first that it says of it."""
    if isinstance(error, KeyError):
        field = str(error.args[0])
        nodes = ast.walk(ast.parse(source.text))
        lines = [node.lineno for node in nodes if isinstance(node, ast.Attribute) and node.attr == field]
        return min(lines, default=0), f"there is no field {field} in that record"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    # Innermost first; the folder may be written relative to this one.
    places = re.findall(rf'{re.escape(source.path.name)}(?:", line | \()(\d+)', plain)
    said = (line.strip(" -\t") for line in plain.splitlines())
    reason = next((line for line in said if line and not line.startswith(_SAYS_NOTHING)), type(error).__name__)
    of_what = re.search(r">>> (.*)", plain)
    if reason.endswith("for signature:") and of_what:
        reason = f"{reason} {of_what[1][:60]}"
    return (int(places[0]) if places else 0), reason.rstrip(".:")
