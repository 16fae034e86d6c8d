"""How fast the engine `sim` is: map+unmap pairs for each second of this machine's time, on one core.

Each row is a machine of its own in a process of its own: lazily queued pairs of one page (map_benchmark on DMA-FQ,
preset lpar), so that what is measured is the engine and the emulated kernel and not a hypervisor's queue. The first
run of a row warms the caches of compiled code and is not counted; the median of the others is shown, with their range.

    python tools/bench_sim.py [--pairs 3000000] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from emu.config import load
from emu.experiment import compile_machine, run_machine
from emu.workload.build import build_workload

CPUS = (1, 64, 1024, 4096)
WANTED = {1: 2_000_000, 1024: 1_000_000}
"""Pairs a second that there must be."""
MOST_BYTES = {4096: 4 << 30}


def measure(cpus: int, pairs: int) -> dict[str, float]:
    """One run in this process."""
    overrides = [
        ("machine", "engine", "sim"),
        ("machine", "cpus", cpus),
        ("machine", "ops", max(pairs, 200 * cpus)),
        ("domain", "aperture_mb", 1 << 14),
        ("workload", "name", "map_benchmark"),
    ]
    config = load(None, "lpar", overrides)
    compile_machine(config.machine)
    workload = build_workload(config)
    since = time.perf_counter()
    outcome = run_machine(config, "DMA-FQ", workload)
    seconds = time.perf_counter() - since
    if outcome.run["violations"] or not outcome.run["conservation"]["holds"]:
        raise SystemExit("the books of the run do not balance")
    bytes_used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"pairs_per_s": outcome.run["ops"] / seconds, "bytes": bytes_used}


def main() -> int:
    """Print a row for each number of CPUs; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description="pairs per second of the engine sim")
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.pairs)))
        return 0
    print(f"load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    print(f"{'CPUs':>5} {'pairs/s of wall time':>21} {'range':>19} {'memory':>9}")
    missed = False
    for cpus in CPUS:
        runs = [_run_apart(cpus, arguments.pairs) for _ in range(arguments.repeat + 1)][1:]
        rates = [run["pairs_per_s"] for run in runs]
        most_bytes = max(run["bytes"] for run in runs)
        rate = statistics.median(rates)
        failed = rate < WANTED.get(cpus, 0) or most_bytes > MOST_BYTES.get(cpus, 1 << 62)
        missed = missed or failed
        spread = f"{min(rates) / 1e6:.2f} to {max(rates) / 1e6:.2f} M"
        print(
            f"{cpus:>5} {rate / 1e6:>19.2f} M {spread:>19} {most_bytes / 2**30:>6.2f} GB {'MISSED' if failed else ''}"
        )
    return 1 if missed else 0


def _run_apart(cpus: int, pairs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(cpus), "--pairs", str(pairs)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
