#!/usr/bin/env python3
"""Kill a sweep again and again, and a worker of a cluster, and see that no cell is lost, run twice or different.

    python tools/check_sweep.py

runs 500 small cells on virtual clocks three times: undisturbed; killed five times at random moments, with SIGKILL to
all of its processes, and started again; and on three workers of a dask.distributed scheduler on this machine, one of
which is killed while it works. Exit code 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from emu.sweep.folder import NOT_REPEATABLE, cell_numbers, reading  # noqa: E402 - the package is found first

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
WORKERS = 3
_LONGEST_S = 600.0
_LATER_S = 0.05
"""A kill comes up to so long after the cell that it waits for: in the midst of another, or of its file."""


@dataclass
class Storm:
    """What came of a sweep that was killed.

    Attributes:
        done_at_kills: cells that were done each time.
        begun_again: cells that were under way when it was killed, and had to be begun again.
        problems: what must not be.
    """

    done_at_kills: list[int] = field(default_factory=list)
    begun_again: int = 0
    problems: list[str] = field(default_factory=list)


def write_experiment(path: Path, repeat: int) -> int:
    """An experiment of tiny cells; returns how many."""
    path.write_text(
        f"""
[machine]
engine = "sim"
cpus = 2
ops = 400

[domain]
aperture_mb = 64
iova_ranges = 4096

[sweep]
repeat = {repeat}

[sweep.grid]
"domain.types" = ["DMA-FQ", "DMA-SQ"]
"domain.fq_size" = [16, 64, 256]
"domain.fq_timeout_ms" = [1, 10]
"""
    )
    return 12 * repeat


def start(experiment: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "emu", "sweep", str(experiment), "--out", str(folder), *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(sweep: subprocess.Popen[str]) -> list[str]:
    """Wait for its end; what is wrong with that."""
    out, err = sweep.communicate(timeout=_LONGEST_S)
    return [f"exit code {sweep.returncode}: {out}{err}"] if sweep.returncode or err else []


def storm(experiment: Path, folder: Path, cells: int, kills: int, seed: int) -> Storm:
    """Run a sweep that is killed so often, and then to its end."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    found = Storm()
    written: dict[int, int] = {}
    for moment in sorted(chance.sample(range(cells), kills)):
        lines = len(_log(folder))
        sweep = start(experiment, folder)
        found.problems += _kill(sweep, folder, moment, chance.uniform(0, _LATER_S))
        found.problems += _repetitions(folder, written, lines)
        written = _written(folder)
        found.done_at_kills.append(len(written))
    lines = len(_log(folder))
    found.problems += finish(start(experiment, folder))
    found.problems += _repetitions(folder, written, lines)
    if cell_numbers(folder) != list(range(cells)):
        found.problems.append(f"{len(cell_numbers(folder))} of {cells} cells are there")
    begun = collections.Counter(entry["cell"] for entry in _log(folder) if entry["event"] == "cell_started")
    found.begun_again = begun.total() - len(begun)
    found.problems += [f"{left.name} is left" for left in (folder / "cells").glob(".*")]
    return found


def _kill(sweep: subprocess.Popen[str], folder: Path, moment: int, later_s: float) -> list[str]:
    """Kill all of a sweep's processes, a while after so many cells are done; what is wrong then."""
    until = time.monotonic() + _LONGEST_S
    while sweep.poll() is None and len(cell_numbers(folder)) < moment and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(later_s)
    if sweep.poll() is not None:
        return [f"it ended before it was killed at cell {moment}: {finish(sweep)}"]
    group = [psutil.Process(sweep.pid), *psutil.Process(sweep.pid).children(recursive=True)]
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.communicate()
    _, left = psutil.wait_procs(group, timeout=5)
    return [f"process {process.pid} is left" for process in left]


def _repetitions(folder: Path, written: dict[int, int], lines: int) -> list[str]:
    """What a call has done again, although it was done: its files then, and how long the log was."""
    begun = [entry["cell"] for entry in _log(folder)[lines:] if entry["event"] == "cell_started"]
    problems = [f"cell {cell} was begun although it was done" for cell in written.keys() & set(begun)]
    problems += [f"cell {cell} was begun twice" for cell, times in collections.Counter(begun).items() if times > 1]
    now = _written(folder)
    return problems + [f"cell {cell} was written again" for cell, at in written.items() if now.get(cell) != at]


def differences(first: Path, second: Path) -> list[str]:
    """In what the cells of two sweeps differ, but for where and how long they ran."""
    if not (cell_numbers(first) and cell_numbers(second)):
        return ["there are no cells"]
    columns = f"SELECT * EXCLUDE ({', '.join(NOT_REPEATABLE)})"
    with duckdb.connect(":memory:") as database:
        for name, folder in (("a", first), ("b", second)):
            database.execute(f"CREATE TABLE {name} AS {columns} FROM ({reading(folder)})")
        both = "SELECT cell FROM ((FROM a EXCEPT ALL FROM b) UNION ALL (FROM b EXCEPT ALL FROM a)) ORDER BY cell"
        return [f"cell {cell} differs" for (cell,) in database.execute(both).fetchall()]


def processes_of(folder: Path) -> int:
    """How many processes have run cells of a sweep."""
    return int(_of_cells(folder, "count(DISTINCT pid)"))


def _machine_ms(folder: Path) -> float:
    return float(_of_cells(folder, "median(took_s) * 1e3"))


def _of_cells(folder: Path, what: str) -> Any:
    if not cell_numbers(folder):
        return 0
    with duckdb.connect(":memory:") as database:
        return database.execute(f"SELECT {what} FROM ({reading(folder)})").fetchall()[0][0]  # noqa: S608 - ours


def on_cluster(experiment: Path, folder: Path, cells: int, kill_at: int) -> list[str]:
    """Run a sweep on a cluster, one worker of which is killed when so many cells are done; what is wrong."""
    with cluster(folder.parent) as (address, workers):
        sweep = start(experiment, folder, "--cluster", address)
        until = time.monotonic() + _LONGEST_S
        victim = None
        while sweep.poll() is None and time.monotonic() < until:
            if len(cell_numbers(folder)) >= kill_at:
                # One whose own process for cells is at work.
                victim = next((worker for worker in workers if _is_at_work(worker)), None)
            if victim:
                break
            time.sleep(0.002)
        if victim is None:
            sweep.kill()
            return [f"no worker was killed: {finish(sweep)}"]
        children = victim.children(recursive=True)
        victim.kill()
        problems = finish(sweep)
        _, left = psutil.wait_procs(children, timeout=10)
        problems += [f"process {process.pid} of the dead worker is left" for process in left]
    if cell_numbers(folder) != list(range(cells)):
        problems.append(f"{len(cell_numbers(folder))} of {cells} cells are there")
    return problems


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """A scheduler and three workers on this machine: its address, and the workers' processes."""
    dask = [sys.executable, "-m", "distributed.cli.dask_"]
    quiet = {"cwd": REPOSITORY, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    place = folder / "scheduler.json"
    where = ["--scheduler-file", str(place)]
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    started = [subprocess.Popen([*dask[:2], f"{dask[2]}scheduler", *where, *local, "--port", "0"], **quiet)]
    try:
        until = time.monotonic() + 60
        while not place.exists() and time.monotonic() < until:
            time.sleep(0.05)
        address = json.loads(place.read_text())["address"]
        offer = ["--nthreads", "1", "--no-nanny", "--resources", "measuring=1", "--local-directory", str(folder)]
        workers = [
            subprocess.Popen([*dask[:2], f"{dask[2]}worker", address, *local, *offer], **quiet) for _ in range(WORKERS)
        ]
        started += workers
        import distributed  # noqa: PLC0415 - of an extra

        with distributed.Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(WORKERS, timeout=60)
        yield address, [psutil.Process(worker.pid) for worker in workers]
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _is_at_work(worker: psutil.Process) -> bool:
    return any(child.cpu_times().user > 0.5 for child in worker.children())


def _written(folder: Path) -> dict[int, int]:
    """When the file of each cell was written, in ns."""
    return {number: (folder / "cells" / f"{number:06d}.parquet").stat().st_mtime_ns for number in cell_numbers(folder)}


def _log(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _orphans() -> set[str]:
    """Segments of the dead; those of other living machines are not ours to judge."""
    names = {path.name for path in SHARED_MEMORY.glob("emu-[0-9]*-*")}
    return {name for name in names if not psutil.pid_exists(int(name.split("-")[1]))}


def _check(folder: Path, chosen: argparse.Namespace) -> list[str]:
    experiment, whole, killed, spread = (folder / name for name in ("experiment.toml", "whole", "killed", "cluster"))
    cells = write_experiment(experiment, chosen.repeat)
    began = time.monotonic()
    problems = finish(start(experiment, whole))
    took_s = time.monotonic() - began
    print(f"undisturbed: {cells} cells in {took_s:.1f} s, which is {took_s / cells * 1e3:.1f} ms a cell,")
    print(f"  in {processes_of(whole)} processes; the machine of a cell takes {_machine_ms(whole):.1f} ms", flush=True)

    found = storm(experiment, killed, cells, chosen.kills, chosen.seed)
    wrong = found.problems + differences(whole, killed)
    problems += [f"killed: {text}" for text in wrong]
    at = ", ".join(map(str, found.done_at_kills))
    print(f"killed {chosen.kills} times, with {at} cells done: in the end {len(cell_numbers(killed))} cells,")
    print(f"  {found.begun_again} begun again that were under way at a kill; {len(wrong)} problems", flush=True)

    wrong = on_cluster(experiment, spread, cells, cells // 3) + differences(whole, spread)
    problems += [f"cluster: {text}" for text in wrong]
    print(f"cluster of {WORKERS} workers, one killed at work: in the end {len(cell_numbers(spread))} cells,")
    print(f"  in {processes_of(spread)} processes; {len(wrong)} problems", flush=True)
    return problems


def main() -> int:
    """Run the three, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeat", type=int, default=42, help="seeds of each of the 12 cells; default 42: 504 cells")
    parser.add_argument("--kills", type=int, default=5, help="how often the second one is killed; default 5")
    parser.add_argument("--seed", type=int, default=1, help="of the moments; default 1")
    chosen = parser.parse_args()
    before = _orphans()
    with tempfile.TemporaryDirectory(prefix="check-sweep-") as name:
        problems = _check(Path(name), chosen)
    problems += [f"segment {name} is left" for name in _orphans() - before]
    for problem in problems:
        print(f"WRONG: {problem}")
    print("all three have the same cells, to the byte" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
