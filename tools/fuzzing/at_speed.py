"""The pass at speed: mutations of a corpus through one parser, compiled, in a process that may well die of it.

    python at_speed.py PARSER INPUTS SEED STATUS CORPUS

What is being done is in the file STATUS all the time, mapped into memory, so that whoever watches knows which input a
process died of, or hangs in. The last line of stdout is the result in JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from fuzzing.judge import finding_of
from fuzzing.mutation import Mutator
from fuzzing.target import Target
from fuzzing.targets import opened

STATUS_BYTES = 1 << 20
_HEAD = struct.Struct("=QQ")
"""Inputs begun, and how long the input is that follows."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEMORY_EVERY = 256
MOST_GROWTH_MB = 200
_MOST_FINDINGS = 20
_WARM_INPUTS = 64


class Status:
    """What a process is doing, for others to see: they may open the file at any time."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), STATUS_BYTES)

    def begin(self, number: int, data: bytes) -> None:
        """Say which input comes now."""
        kept = data[: STATUS_BYTES - _HEAD.size]
        self._memory[_HEAD.size : _HEAD.size + len(kept)] = kept
        _HEAD.pack_into(self._memory, 0, number, len(kept))

    def now(self) -> tuple[int, bytes]:
        """The number of the input under way, and the input."""
        number, length = _HEAD.unpack_from(self._memory, 0)
        return number, bytes(self._memory[_HEAD.size : _HEAD.size + length])


def run(target: Target, corpus: Sequence[bytes], inputs: int, seed: str, status: Status) -> dict[str, object]:
    """Feed a parser: every input of the corpus, then mutations of them.

    Returns:
        What was counted and measured. Times are of CPU; memory is the growth of the resident size, at its largest.
    """
    mutator = Mutator(corpus, target.words(), seed)
    findings: dict[str, tuple[str, str]] = {}
    slowest_s, slowest, peak, first_bytes = 0.0, b"", 0, 0
    begun = time.process_time()
    fed = 0
    for number in range(inputs):
        data = corpus[number] if number < len(corpus) else mutator.next()
        status.begin(number + 1, data)
        before = time.process_time()
        finding = finding_of(target, data)
        took_s = time.process_time() - before
        fed += 1
        if took_s > slowest_s and number >= _WARM_INPUTS:
            slowest_s, slowest = took_s, data
        if finding:
            findings.setdefault(_kind_of(finding), (finding, data.hex()))
        if number < _WARM_INPUTS:
            # What the first inputs need, tables and code, is no growth.
            first_bytes = _resident_bytes()
        elif number % _MEMORY_EVERY == 0 or len(data) > 1 << 16:
            peak = max(peak, _resident_bytes() - first_bytes)
        if len(findings) >= _MOST_FINDINGS or peak > MOST_GROWTH_MB << 20:
            break
    if peak > MOST_GROWTH_MB << 20:
        findings["memory"] = (f"memory has grown by {peak >> 20} MiB", data.hex())
    return {
        "inputs": fed,
        "seconds": time.process_time() - begun,
        "growth_mb": peak / (1 << 20),
        "slowest_ms": slowest_s * 1e3,
        "slowest": slowest.hex(),
        "findings": list(findings.values()),
    }


def _kind_of(finding: str) -> str:
    """Findings of one kind are kept once: the same error in the same place."""
    lines = finding.strip().splitlines()
    places = [line for line in lines if line.startswith("  File")]
    return f"{places[-1] if places else ''} {lines[-1].partition(':')[0]}"


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - this is done very often
        return int(file.read().split()[1]) * _PAGE_BYTES


def main() -> int:
    """Run one pass as the command line says."""
    parser, inputs, seed, status, corpus = sys.argv[1:]
    target = opened(parser)
    try:
        texts = [path.read_bytes() for path in sorted(Path(corpus).iterdir())]
        found = run(target, texts, int(inputs), f"{parser} {seed}", Status(Path(status)))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        target.close()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
