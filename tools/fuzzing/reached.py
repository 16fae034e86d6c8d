"""Which lines of a parser a corpus reaches, interpreted.

    NUMBA_DISABLE_JIT=1 python reached.py PARSER SEED MUTATIONS CORPUS

Prints one line of JSON: lines reached, lines that there are in functions, and those not reached by module.
"""

from __future__ import annotations

import importlib
import json
import sys
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from fuzzing.judge import finding_of
from fuzzing.mutation import Mutator
from fuzzing.targets import opened

Lines = set[tuple[str, int]]


def lines_in(path: str, leaves_out: tuple[str, ...]) -> Lines:
    """Every line that a function of the file has code for, but for the lines that begin one."""
    found: Lines = set()
    waiting = [compile(Path(path).read_text(encoding="utf-8"), path, "exec")]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if code.co_flags & CO_OPTIMIZED and not code.co_qualname.startswith(leaves_out):
            found |= {(path, line) for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
    return found


class Tracer:
    """Notes every line of some files that runs."""

    def __init__(self, files: set[str]) -> None:
        self.lines: Lines = set()
        self._files = files

    def __call__(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in self._files:
            return None
        note = self.lines.add

        def each(frame: FrameType, event: str, _argument: Any) -> Any:
            if event == "line":
                note((path, frame.f_lineno))
            return each

        return each


def main() -> int:
    """Measure as the command line says."""
    parser, seed, mutations, corpus = sys.argv[1:]
    target = opened(parser)
    files = {str(importlib.import_module(module).__file__) for module in target.modules}
    texts = [path.read_bytes() for path in sorted(Path(corpus).iterdir())]
    mutator = Mutator(texts, target.words(), f"{parser} {seed}")
    tracer = Tracer(files)
    sys.settrace(tracer)
    try:
        for data in (*texts, *(mutator.next() for _ in range(int(mutations)))):
            finding_of(target, data)
    finally:
        sys.settrace(None)
        target.close()
    there = set().union(*(lines_in(file, target.leaves_out) for file in files))
    missed = sorted(there - tracer.lines)
    said = [f"{Path(path).name}:{line}" for path, line in missed]
    sys.stdout.write(json.dumps({"reached": len(there & tracer.lines), "lines": len(there), "missed": said}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
