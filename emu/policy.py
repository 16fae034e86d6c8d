"""A policy's file: found, read and checked before anything is run or compiled.

A policy is Python: some of the functions in FUNCTIONS, as numba compiles them, with what they need: constants, records
for what it keeps (`ring_state`, `shared_state`), functions of its own whose names begin with an underscore. What is
refused here would otherwise be found out deep inside a compiler, or never: a name that nobody asks for, a wrong number
of arguments, a loop without an end while a ring's lock is held, code from a module that the cache does not know.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

SHIPPED = Path(__file__).parent / "policies"

FUNCTIONS = {
    "rings": ("cpus",),
    "ring_of": ("cpu", "cookie", "iova_pfn", "pages"),
    "flush_at_once": ("cpu", "cookie", "iova_pfn", "pages"),
    "flush_before": ("cpu", "cookie", "fq", "iova_pfn", "pages"),
    "flush_after": ("cpu", "cookie", "fq"),
    "flush_by_range": ("cpu", "cookie", "fq"),
    "timeout_ns": ("cpu", "cookie"),
    "may_free": ("cpu", "cookie", "entry", "counter"),
}
"""What a policy may define, with the names of the arguments; docs/policies.md says what each decides."""

RECORDS = ("ring_state", "shared_state")
"""What it may keep: a record for each ring, and one for all together."""

_MODULES = ("__future__", "math", "typing")
_PACKAGES = ("emu.native.", "emu.iommu.")
_REFUSED = {
    ast.While: "while may never end, and others wait for the ring's lock; write for … in range(…)",
    ast.Raise: "nobody could catch what it raises; answer something",
    ast.Assert: "nobody could catch what it raises; answer something",
    ast.Try: "there is nothing to catch",
    ast.With: "there is nothing to close",
    ast.Yield: "it answers once",
    ast.YieldFrom: "it answers once",
    ast.Await: "it answers at once",
    ast.Lambda: "write a function with a name that begins with an underscore",
    ast.Global: "keep it in ring_state or shared_state, which all CPUs see",
    ast.Nonlocal: "keep it in ring_state or shared_state, which all CPUs see",
    ast.Import: "import at the top of the file",
    ast.ImportFrom: "import at the top of the file",
    ast.ClassDef: "functions and constants are enough",
    ast.AsyncFunctionDef: "it answers at once",
}


class PolicyError(Exception):
    """There is no such policy, or it is wrong; the message is one line: file, line, what, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy's file as it was when it was read.

    Attributes:
        name: without folder and ".py". path: where it lies. text: all of it.
    """

    name: str
    path: Path
    text: str

    @property
    def key(self) -> str:
        """Hash of the text, 16 hex digits: what was compiled of another text is never run."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()


def shipped_policies() -> list[str]:
    """Names of those that come with emu, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.py"))


def find_policy(named: str, folder: Path) -> str:
    """What a description keeps of a policy: the name of a shipped one, or a file's absolute path.

    Args:
        named: as the user wrote it; a file has a "/" in it or ends in ".py".
        folder: where relative paths begin.
    """
    return str((folder / named).resolve()) if "/" in named or named.endswith(".py") else named


def read_policy(named: str) -> PolicySource:
    """Read and check a policy.

    Args:
        named: what `find_policy` returned.

    Raises:
        PolicyError: it cannot be read, or something in it is wrong.
    """
    is_shipped = named in shipped_policies()
    if not is_shipped and "/" not in named and not named.endswith(".py"):
        raise PolicyError(
            f"no policy {named}; emu has {', '.join(shipped_policies())}, and a file of yours is named as {named}.py"
        )
    path = SHIPPED / f"{named}.py" if is_shipped else Path(named)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"cannot read {path}: {error.strerror}; give a policy's Python file") from None
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not text in UTF-8; give a policy's Python file") from None
    source = PolicySource(path.stem, path, text)
    _check(source)
    return source


def _check(source: PolicySource) -> None:
    try:
        tree = ast.parse(source.text, str(source.path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise PolicyError(f"{source.path}:{line}: {getattr(error, 'msg', error)}; correct it") from None
    for number, complaint in _complaints(tree):
        raise PolicyError(f"{source.path}:{number}: {complaint}")


def _complaints(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what is wrong and what to do)."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            yield from _about_function(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from _about_import(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            yield from _about_assignment(statement)
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            yield statement.lineno, "only imports, constants, records and functions make up a policy; take this away"
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and defined.count(node.name) > 1:
            yield node.lineno, f"{node.name} is defined twice; keep one"
    if not set(defined) & FUNCTIONS.keys():
        yield 1, f"it defines no function that is asked for; define one of {', '.join(FUNCTIONS)}"


def _about_function(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    name, number = function.name, function.lineno
    if function.decorator_list:
        yield number, f"{name} has a decorator; take it away, emu compiles what it needs"
    if name in FUNCTIONS:
        arguments = tuple(argument.arg for argument in function.args.args)
        others = (function.args.vararg, function.args.kwarg, *function.args.posonlyargs, *function.args.kwonlyargs)
        if len(arguments) != len(FUNCTIONS[name]) or any(others) or function.args.defaults:
            yield number, f"{name} takes other arguments; write def {name}({', '.join(FUNCTIONS[name])})"
    elif not name.startswith("_"):
        near = get_close_matches(name, FUNCTIONS, 1)
        meant = f", as {near[0]} is" if near else ""
        known = f"functions of a policy are {', '.join(FUNCTIONS)}, and a part of one begins with an underscore"
        yield number, f"nobody asks for {name}{meant}; {known}"
    answers = [node for node in ast.walk(function) if isinstance(node, ast.Return)]
    if name in FUNCTIONS and (not answers or any(answer.value is None for answer in answers)):
        yield number, f"{name} does not always answer; have every way through it return a value"
    for node in ast.walk(function):
        if type(node) in _REFUSED:
            yield node.lineno, f"{name}: {_REFUSED[type(node)]}"  # type: ignore[attr-defined]
        elif isinstance(node, ast.FunctionDef) and node is not function:
            yield node.lineno, f"{name}: a function inside it; define it beside, with an underscore before its name"


def _about_import(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    if isinstance(statement, ast.ImportFrom):
        modules = [statement.module or "."]
    else:
        modules = [alias.name for alias in statement.names]
    for module in modules:
        is_known = module in _MODULES or module.startswith(_PACKAGES)
        if not is_known or (isinstance(statement, ast.ImportFrom) and statement.level):
            allowed = "only emu.native.…, emu.iommu.…, math and typing can be imported"
            yield (
                statement.lineno,
                f"imports {module}, whose edits the cache of compiled code would not see; {allowed}",
            )


def _about_assignment(statement: ast.Assign | ast.AnnAssign) -> Iterator[tuple[int, str]]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    for target in targets:
        name = target.id if isinstance(target, ast.Name) else ""
        if not (name.startswith("_") or name.isupper() or name in RECORDS):
            yield (
                statement.lineno,
                f"{name or 'this'} is neither a constant (in capitals) nor {' nor '.join(RECORDS)}; rename it",
            )
