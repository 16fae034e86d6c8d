"""What it costs a machine to be looked at: its throughput under `emu top`, beside that of one that nobody watches.

    python tools/bench_top.py [--way live]... [--rounds 9] [--seconds 10] [--settle 4] [--domain DMA-FQ] [--json]

Ways to look: `live`, the live view at its default interval on a terminal that nobody sees, and `once`, a new
`emu top --once` as soon as the last one has ended, which starts a Python each time. In every round a machine without
and one with each way take turns, in another order each time, and the throughputs of a round are divided; the median of
the ratios is shown with the range of the middle half. Only the time after --settle counts, by what the machine's own
log says: until then the watcher starts, which is not what looking costs.

Exit code 0: measured; 2: a machine could not be run, or was not looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from paired import ratio_of, ratio_text

ROOT = Path(__file__).resolve().parent.parent
EMU = (sys.executable, "-m", "emu")
NOBODY = "nobody"
PATIENCE_S = 120.0


class BenchError(Exception):
    """There is nothing to measure; the message says why."""


def environment() -> dict[str, str]:
    """Where this checkout's emu runs."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}


@contextmanager
def live(pid: int) -> Iterator[None]:
    """The live view of a machine, on a terminal whose other end is read and forgotten."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*EMU, "top", str(pid)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), cwd=ROOT
    )
    os.close(theirs)
    seen = bytearray()

    def forget() -> None:
        try:
            while text := os.read(ours, 1 << 16):
                seen[:] = (seen + text)[-4096:]
        except OSError:  # the view has ended
            return

    reader = threading.Thread(target=forget, daemon=True)
    reader.start()
    try:
        yield
        if process.poll() is not None:
            raise BenchError(f"the live view ended: {bytes(seen).decode(errors='replace').strip()[-200:]}")
    finally:
        process.terminate()
        process.wait()
        reader.join()
        os.close(ours)


@contextmanager
def once(pid: int) -> Iterator[None]:
    """Looks of a new process each, one after the other."""
    stop, codes = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            command = [*EMU, "top", str(pid), "--once", "--json"]
            codes.append(
                subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, check=False).returncode
            )

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        stop.set()
        looking.join()
    if 0 not in codes:
        raise BenchError("emu top --once has seen nothing")


WAYS = {"live": live, "once": once}


def pairs_per_s(log: list[dict[str, Any]], settle_s: float) -> float:
    """Throughput between the first and the last sample of a machine after `settle_s`, by its log.

    Raises:
        BenchError: there are no two.
    """
    samples = [entry for entry in log if entry["event"] == "sample" and entry["at_ns"] >= settle_s * 1e9]
    if len(samples) < 2:
        raise BenchError("too few samples; give more --seconds or less --settle")
    first, last = samples[0], samples[-1]
    return (last["pairs"] - first["pairs"]) * 1e9 / (last["at_ns"] - first["at_ns"])


def entries_of(folder: Path) -> list[dict[str, Any]]:
    """The log of a run so far."""
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def measure(way: str, arguments: argparse.Namespace) -> float:
    """Run one machine, looked at in that way; returns its throughput in pairs/s.

    Raises:
        BenchError: it could not be run, or was not looked at.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        command = [*EMU, "run", "--preset", arguments.preset, "--cpus", str(arguments.cpus), "--quiet"]
        command += ["--domain", arguments.domain, "--seconds", str(arguments.seconds), "--out", str(folder)]
        run = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            until = time.monotonic() + PATIENCE_S
            while not any(entry["event"] == "load_started" for entry in entries_of(folder)):
                if run.poll() is not None or time.monotonic() > until:
                    raise BenchError("the machine did not start")
                time.sleep(0.05)
            with WAYS[way](run.pid) if way != NOBODY else nullcontext():
                while run.poll() is None and not any(
                    entry["event"] == "sample" and entry["at_ns"] > (arguments.seconds - 0.5) * 1e9
                    for entry in entries_of(folder)[-3:]
                ):
                    time.sleep(0.2)
        finally:
            _, said = run.communicate()
        if run.returncode:
            raise BenchError(f"the machine ended with {run.returncode}: {said.decode().strip()}")
        return pairs_per_s(entries_of(folder), arguments.settle)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--way", action="append", choices=[*WAYS], help="how to look; default live")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0, help="run time of each machine")
    parser.add_argument("--settle", type=float, default=4.0, help="seconds of it that do not count")
    parser.add_argument("--preset", default="kvm")
    parser.add_argument("--domain", default="DMA-FQ")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    ways = [NOBODY, *(arguments.way or ["live"])]
    measured: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for number in range(arguments.rounds):
            turn = number % len(ways)
            for way in (*ways[turn:], *ways[:turn]):
                measured[way].append(measure(way, arguments))
            if sys.stderr.isatty():
                print(f"round {number + 1} of {arguments.rounds}", end="\r", file=sys.stderr)
    except BenchError as error:
        print(f"bench_top: {error}", file=sys.stderr)
        return 2
    found = {way: {"pairs_per_s": median(measured[way]), **ratio_of(measured[way], measured[NOBODY])} for way in ways}
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "ways": found}, indent=1))
        return 0
    print(f"{'watched by':<12}{'pairs/s':>10}  beside nobody")
    for way, figures in found.items():
        print(f"{way:<12}{figures['pairs_per_s']:>10.0f}  {ratio_text(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
