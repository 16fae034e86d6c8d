"""How fast a question to a large recorded run is answered, and in how much memory.

    python tools/bench_logs.py [--events N] [--flush-every N] [--strict] [--ask QUESTION] [--json]

Makes the folder of a run of four CPUs that recorded N events (100 million unless said otherwise, 3.2 GB, in the
temporary folder, removed afterwards): maps and unmaps, each CPU's in a file of its own, and a flush of everything once
in so many of them; with `--strict` every map and unmap has its request to the hypervisor too, as in a strict domain.
Then `emu logs FOLDER --ask slowest-flushes` runs in a process of its own: seconds from its start to its end, and its
largest resident size.

Exit code 0: the answer came in less than 10 s, in less than 2 GB; 1: not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emu.iommu.tracepoints import (
    CAUSE_SHIFT,
    EVENT_FLUSH,
    EVENT_FLUSHED,
    EVENT_MAP,
    EVENT_RPCIT,
    EVENT_RPCIT_DONE,
    EVENT_UNMAP,
    PAGES_BITS,
)
from emu.native.events import EventFile, event_t

MOST_SECONDS = 10.0
MOST_BYTES = 2_000_000_000
CPUS = 4
_CHUNK = 1 << 20
_TICK_NS = 0.5
_OPERATION_TICKS = 400
_FLUSH = (
    (EVENT_FLUSH, 255),
    (EVENT_RPCIT, -(1 << 20)),
    (EVENT_RPCIT_DONE, 4_000 << 32 | 4_200_000),
    (EVENT_FLUSHED, 0),
)


def events_of(cpu: int, first: int, count: int, flush_every: int, *, strict: bool) -> npt.NDArray[np.void]:
    """A CPU's events from number `first` on: one period of flushes after the other."""
    numbers = np.arange(first, first + count)
    events = np.zeros(count, event_t)
    cycle = [EVENT_RPCIT, EVENT_RPCIT_DONE, EVENT_MAP, EVENT_RPCIT, EVENT_RPCIT_DONE, EVENT_UNMAP]
    codes = np.array(cycle if strict else [EVENT_MAP, EVENT_UNMAP], np.int16)
    events["ticks"] = numbers * _OPERATION_TICKS
    events["code"] = codes[numbers % len(codes)]
    events["slot"] = events["cpu"] = cpu
    events["a"] = 1 << 20 | numbers & 0xFFFF
    events["b"] = (_OPERATION_TICKS // 2 + numbers % 97) << PAGES_BITS | 1
    place = numbers % flush_every
    for step, (code, b) in enumerate(_FLUSH):
        chosen = place == step
        events["code"][chosen], events["b"][chosen] = code, b
    done = place == len(_FLUSH) - 1
    events["ticks"][done] += numbers[done] % 301
    events["b"][place == 0] |= cpu % 2 << CAUSE_SHIFT
    return events


def write_run(folder: Path, events: int, flush_every: int, *, strict: bool) -> None:
    """Write the folder of such a run."""
    for cpu in range(CPUS):
        with EventFile(folder, f"cpu{cpu}") as file:
            for first in range(0, events // CPUS, _CHUNK):
                count = min(_CHUNK, events // CPUS - first)
                file.append(events_of(cpu, first, count, flush_every, strict=strict))
    run = {
        "domain": "DMA" if strict else "DMA-FQ",
        "seconds": events / CPUS * _OPERATION_TICKS * _TICK_NS / 1e9,
        "clock": {"tick_ns": _TICK_NS, "start_ticks": 0, "start_ns": 0, "is_virtual": False},
        "events": {"recorded": events, "lost": 0},
        "processes": [{"role": f"cpu {cpu}", "pid": 1} for cpu in range(CPUS)],
        "locks": [],
    }
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "command": "run", "environment": {}, "runs": [run]}))
    (folder / "events.jsonl").write_text("")


def ask(folder: Path, question: str) -> dict[str, Any]:
    """Ask in a process of its own, and measure it."""
    command = [sys.executable, "-m", "emu", "logs", str(folder), "--ask", question, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    answer = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {
        "question": question,
        "rows": len(json.loads(answer)),
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--flush-every", type=int, default=1000, metavar="N", help="events of a CPU")
    parser.add_argument("--strict", action="store_true", help="with a request for each operation")
    parser.add_argument("--ask", default="slowest-flushes", metavar="QUESTION")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), options.events, options.flush_every, strict=options.strict)
        result = {"events": options.events, **ask(Path(folder), options.ask)}
    print(json.dumps(result) if options.json else _said(result))
    return 0 if result["seconds"] < MOST_SECONDS and result["peak_rss_bytes"] < MOST_BYTES else 1


def _said(result: dict[str, Any]) -> str:
    return (
        f"{result['events']:,} events, {result['question']}: {result['rows']} rows in {result['seconds']:.1f} s "
        f"({result['cpu_s']:.1f} s of CPU; less than {MOST_SECONDS:.0f} s), "
        f"{result['peak_rss_bytes'] / 1e6:.0f} MB at most (less than {MOST_BYTES / 1e6:.0f})"
    )


if __name__ == "__main__":
    sys.exit(main())
