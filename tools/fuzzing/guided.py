"""The guided pass: atheris drives one parser, interpreted, towards code that no input has reached yet.

    NUMBA_DISABLE_JIT=1 python guided.py PARSER ATHERIS_ARGUMENTS...

The arguments are libFuzzer's: a folder that grows into the corpus, `-runs=`, `-seed=` and so on. Exit code 77: a
finding,
saved where `-artifact_prefix=` says, and told on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import atheris

with atheris.instrument_imports(
    include=["emu.capture", "emu.config", "emu.cli.options", "emu.machine.control_socket", "emu.native.events"]
):
    from fuzzing.judge import finding_of
    from fuzzing.targets import opened


class FindingError(Exception):
    """Ends the pass; the message is the finding."""


def main() -> None:
    """Drive one parser until the runs are over, or something is found."""
    target = opened(sys.argv[1])

    def feed(data: bytes) -> None:
        finding = finding_of(target, data)
        if finding:
            raise FindingError(finding)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
