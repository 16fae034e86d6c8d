"""Every parser under hostile inputs: none may crash it, hang it or make it grow.

    python tools/fuzz.py [PARSER...] [--inputs N] [--seed S] [--unguided] [--out FOLDER]
    python tools/fuzz.py --replay FILE...

Parsers: captures, counters, config, costs, options, events, rings, control; all of them when none is named. Each goes
through two passes. In the first, atheris (`pip install -e '.[fuzz]'`) looks for inputs that reach more code, while the
parser is interpreted and every access of compiled code's Python is checked; `--unguided` leaves it out. What it has
gathered is the corpus of the second: N inputs (a million unless said otherwise), mutations of the corpus, go through
the
parser as users have it, compiled, with arrays that end where a page nobody may touch begins. The same seed gives the
same inputs. Meanwhile a parser may use 200 MiB more memory than at the beginning, and 5 s for an input.

An input may be taken, or refused by the parser's own error, in one line; anything else is a finding. Findings are saved
in FOLDER (fuzz-findings) as PARSER-KIND-HASH, and `--replay` feeds such files again, one process each.

Exit code 0: nothing was found; 1: something was; 2: wrong call.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

from fuzzing.at_speed import STATUS_BYTES, Status
from fuzzing.judge import finding_of
from fuzzing.targets import PARSERS, opened

_INTERPRETED = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
_GUIDED_SHARE = 50
"""One input in so many is guided: interpreted code is that much slower."""
_MOST_GUIDED = 20_000
_GUIDED_S = 60
_TRACED_MUTATIONS = 200
_LOOK_EVERY_S = 0.25
_HANGS_AFTER_LOOKS = 20
"""Looks, not seconds: a process that is stopped together with its watcher does not hang."""
_DICTIONARY_WORDS = 400


@dataclass(slots=True)
class Result:
    """What became of one parser."""

    parser: str
    inputs: int = 0
    seconds: float = 0.0
    guided: int = 0
    edges: int = 0
    lines: tuple[int, int] = (0, 1)
    growth_mb: float = 0.0
    slowest_ms: float = 0.0
    slowest_bytes: int = 0
    findings: list[Path] = field(default_factory=list)


def save(folder: Path, parser: str, kind: str, data: bytes, why: str) -> Path:
    """Keep an input that something is wrong with, and what, beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{parser}-{kind}-{hashlib.blake2b(data, digest_size=6).hexdigest()}"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(why, encoding="utf-8", errors="replace")
    return path


def write_seeds(parser: str, corpus: Path) -> list[bytes]:
    """Write the inputs to begin with; the words of the format."""
    target = opened(parser)
    try:
        for number, seed in enumerate(target.seeds()):
            (corpus / f"0-seed-{number:03}").write_bytes(seed)
        return target.words()
    finally:
        target.close()


def guide(result: Result, words: Sequence[bytes], corpus: Path, seed: int, runs: int, out: Path) -> None:
    """Let atheris make the corpus larger."""
    with tempfile.TemporaryDirectory(prefix="emu-fuzz-") as scratch:
        dictionary = Path(scratch) / "words"
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words[:_DICTIONARY_WORDS] if len(word) <= 64)
        dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
        artifacts = Path(scratch) / "found-"
        command = [sys.executable, str(TOOLS / "fuzzing" / "guided.py"), result.parser, str(corpus)]
        command += [f"-runs={runs}", f"-seed={seed or 1}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"]
        command += [f"-artifact_prefix={artifacts}", f"-dict={dictionary}", f"-max_total_time={_GUIDED_S}"]
        command += ["-print_final_stats=1", "-detect_leaks=0"]
        done = subprocess.run(command, env=_INTERPRETED, capture_output=True, text=True, errors="replace", check=False)
        for found in sorted(Path(scratch).glob("found-*")):
            if found.name.startswith("found-slow-unit-"):
                continue
            kind = "hang" if "timeout" in found.name else "guided"
            result.findings.append(save(out, result.parser, kind, found.read_bytes(), done.stderr))
    if done.returncode and not result.findings:
        sys.exit(f"fuzz.py: the guided pass of {result.parser} failed: {done.stderr[-2000:]}")
    if units := re.findall(r"stat::number_of_executed_units: (\d+)|^#(\d+)", done.stderr, re.MULTILINE):
        result.guided = max(int(number or other) for number, other in units)
    if edges := re.findall(r"cov: (\d+)", done.stderr):
        result.edges = max(map(int, edges))


def run_at_speed(result: Result, corpus: Path, seed: int, inputs: int, out: Path) -> None:
    """Mutate the corpus; a process that dies or hangs is a finding, and another goes on with other mutations."""
    attempt = 0
    while result.inputs < inputs:
        # A file, not a pipe, for what it says: nobody reads a pipe while it is watched.
        with (
            tempfile.NamedTemporaryFile(prefix="emu-fuzz-") as file,
            tempfile.TemporaryFile("w+", prefix="emu-fuzz-") as said,
        ):
            file.truncate(STATUS_BYTES)
            status = Status(Path(file.name))
            left = inputs - result.inputs
            command = [sys.executable, str(TOOLS / "fuzzing" / "at_speed.py"), result.parser, str(left)]
            command += [f"{seed}.{attempt}" if attempt else str(seed), file.name, str(corpus)]
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            is_hung = _watch(process, status, f"{result.parser:9}", result.inputs, inputs)
            number, data = status.now()
            said.seek(0)
            told = said.read()
        if process.returncode == 0:
            _take(result, json.loads(told.splitlines()[-1]), out)
            if result.findings:
                return
            continue
        if not number:
            sys.exit(f"fuzz.py: {result.parser} cannot be fuzzed: {told[-2000:]}")
        result.inputs += number
        kind = "hang" if is_hung else "crash"
        result.findings.append(save(out, result.parser, kind, data, f"exit code {process.returncode}\n{told}"))
        attempt += 1
        if len(result.findings) >= 5:
            return


def _take(result: Result, told: dict[str, Any], out: Path) -> None:
    result.inputs += told["inputs"]
    result.seconds += told["seconds"]
    result.growth_mb = max(result.growth_mb, told["growth_mb"])
    if told["slowest_ms"] > result.slowest_ms:
        result.slowest_ms, result.slowest_bytes = told["slowest_ms"], len(told["slowest"]) // 2
    for why, data in told["findings"]:
        kind = "memory" if why.startswith("memory") else "error"
        result.findings.append(save(out, result.parser, kind, bytes.fromhex(data), why))


def _watch(process: subprocess.Popen[str], status: Status, name: str, done: int, inputs: int) -> bool:
    """Wait for a process; whether it had to be killed because one input took too long."""
    last, looks, begun = 0, 0, time.monotonic()
    while process.poll() is None:
        time.sleep(_LOOK_EVERY_S)
        number, _ = status.now()
        looks = looks + 1 if number == last and number else 0
        last = number
        if looks > _HANGS_AFTER_LOOKS:
            process.kill()
            process.wait()
            return True
        if sys.stderr.isatty() and number:
            left_s = (time.monotonic() - begun) / number * (inputs - done - number)
            sys.stderr.write(f"\r{name} {done + number} of {inputs} inputs, {left_s:.0f} s left \x1b[K")
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    return False


def measure_lines(result: Result, corpus: Path, seed: int) -> list[str]:
    """Count the lines that the corpus reaches; those that it does not."""
    command = [sys.executable, str(TOOLS / "fuzzing" / "reached.py"), result.parser, str(seed)]
    command += [str(min(_TRACED_MUTATIONS, result.inputs // 100)), str(corpus)]
    done = subprocess.run(command, env=_INTERPRETED, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"fuzz.py: coverage of {result.parser} cannot be measured: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    result.lines = told["reached"], told["lines"]
    missed: list[str] = told["missed"]
    return missed


def fuzz(parser: str, arguments: argparse.Namespace) -> Result:
    """Both passes of one parser."""
    result = Result(parser)
    out = Path(arguments.out)
    with tempfile.TemporaryDirectory(prefix="emu-fuzz-") as folder:
        corpus = Path(folder)
        words = write_seeds(parser, corpus)
        if not arguments.unguided:
            runs = min(max(arguments.inputs // _GUIDED_SHARE, 1), _MOST_GUIDED)
            guide(result, words, corpus, arguments.seed, runs, out)
        run_at_speed(result, corpus, arguments.seed, arguments.inputs, out)
        missed = measure_lines(result, corpus, arguments.seed)
    if arguments.missed:
        print(f"{parser}: not reached: {' '.join(missed)}")
    return result


def replay(path: Path) -> int:
    """Feed a saved input to its parser again, in this process; 1 if something is wrong with it."""
    parser = path.name.partition("-")[0]
    if parser not in PARSERS or not path.is_file():
        sys.exit(f"fuzz.py: {path}: not a saved input; their names begin with {', '.join(PARSERS)}")
    target = opened(parser)
    try:
        finding = finding_of(target, path.read_bytes())
    finally:
        target.close()
    print(f"{path}: {finding or 'fine'}")
    return int(finding is not None)


_ROW = "{:9} {:>9} {:>9} {:>9} {:>13} {:>7} {:>10} {:>17} {:>9}"
_TITLES = ("parser", "inputs", "inputs/s", "guided", "lines reached", "edges", "growth MiB", "slowest", "findings")


def row(result: Result) -> str:
    """One line of the table."""
    reached, lines = result.lines
    return _ROW.format(
        result.parser,
        result.inputs,
        f"{result.inputs / result.seconds:.0f}" if result.seconds else "–",
        result.guided or "–",
        f"{reached} ({100 * reached / lines:.0f} %)",
        result.edges or "–",
        f"{result.growth_mb:.1f}",
        f"{result.slowest_ms:.1f} ms, {result.slowest_bytes} B",
        len(result.findings),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    description, _, _ = (__doc__ or "").partition("\n")
    command = argparse.ArgumentParser(prog="fuzz.py", description=description)
    command.add_argument("parsers", nargs="*", metavar="PARSER", help=f"{', '.join(PARSERS)}; default all")
    command.add_argument("--inputs", type=int, default=1_000_000, help="inputs for each parser at speed")
    command.add_argument("--seed", type=int, default=1, help="of everything random")
    command.add_argument("--unguided", action="store_true", help="without atheris: begin with the built-in inputs only")
    command.add_argument("--missed", action="store_true", help="also say which lines were not reached")
    command.add_argument("--out", default="fuzz-findings", help="folder for what is found")
    command.add_argument("--replay", nargs="+", type=Path, metavar="FILE", help="feed saved inputs again")
    given = command.parse_args(arguments)
    if given.replay:
        if len(given.replay) == 1:
            return replay(given.replay[0])
        # One process each: the first may end it.
        codes = [
            subprocess.run([sys.executable, __file__, "--replay", str(path)], check=False).returncode
            for path in given.replay
        ]
        return int(any(codes))
    unknown = sorted({*given.parsers} - {*PARSERS})
    if unknown or given.inputs < 1 or given.seed < 0:
        command.error(
            f"no parser {unknown[0]}; there are {', '.join(PARSERS)}" if unknown else "inputs from 1, seeds from 0"
        )
    if not given.unguided and importlib.util.find_spec("atheris") is None:
        command.error(
            "atheris is not installed: pip install -e '.[fuzz]', or leave the guided pass out with --unguided"
        )
    print(_ROW.format(*_TITLES))
    findings: list[Path] = []
    for parser in given.parsers or PARSERS:
        result = fuzz(parser, given)
        print(row(result), flush=True)
        findings += result.findings
    for path in findings:
        print(f"{path}: see {path.name}.txt; python tools/fuzz.py --replay {path}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
