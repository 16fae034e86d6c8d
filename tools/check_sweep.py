#!/usr/bin/env python3
"""Kill a sweep again and again, and a worker of a cluster, and see that no cell is lost, run twice or different.

    python tools/check_sweep.py

runs 500 small cells on virtual clocks three times: undisturbed; killed five times at random moments, with SIGKILL to
all of its processes, and started again; and on three workers of a dask.distributed scheduler on this machine, one of
which is killed while it works. Exit code 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
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

import duckdb
import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from emu.sweep.cluster import RESOURCE  # noqa: E402 - the package is found first
from emu.sweep.folder import NOT_REPEATABLE, cell_numbers, reading  # noqa: E402

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
    moments = sorted(chance.sample(range(cells), kills))
    for moment in moments:
        sweep = start(experiment, folder)
        group = [psutil.Process(sweep.pid)]
        until = time.monotonic() + _LONGEST_S
        while sweep.poll() is None and len(cell_numbers(folder)) < moment and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, _LATER_S))
        if sweep.poll() is not None:
            found.problems.append(f"it ended before it was killed at cell {moment}")
        group += group[0].children(recursive=True) if group[0].is_running() else []
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.communicate()
        _, left = psutil.wait_procs(group, timeout=5)
        found.problems += [f"process {process.pid} is left" for process in left]
        found.done_at_kills.append(len(cell_numbers(folder)))
        written = _written(folder)
        _note_repetitions(folder, found)
        if _written(folder) != written:
            found.problems.append("cells were written although the sweep was dead")
    before = _written(folder)
    found.problems += finish(start(experiment, folder))
    after = _written(folder)
    found.problems += [
        f"the file of cell {cell} was written again" for cell in before if after.get(cell) != before[cell]
    ]
    _note_repetitions(folder, found)
    if sorted(after) != list(range(cells)):
        found.problems.append(f"{len(after)} of {cells} cells are there")
    found.begun_again = sum(count - 1 for count in _begun(folder).values())
    found.problems += [f"{left.name} is left" for left in (folder / "cells").glob(".*")]
    return found


def differences(first: Path, second: Path) -> list[str]:
    """In what the cells of two sweeps differ, but for where and how long they ran."""
    columns = f"SELECT * EXCLUDE ({', '.join(NOT_REPEATABLE)})"
    with duckdb.connect(":memory:") as database:
        for name, folder in (("a", first), ("b", second)):
            database.execute(f"CREATE TABLE {name} AS {columns} FROM ({reading(folder)})")
        both = "SELECT cell FROM ((FROM a EXCEPT ALL FROM b) UNION ALL (FROM b EXCEPT ALL FROM a)) ORDER BY cell"
        return [f"cell {cell} differs" for (cell,) in database.execute(both).fetchall()]


def processes_of(folder: Path) -> int:
    """How many processes have run cells of a sweep."""
    with duckdb.connect(":memory:") as database:
        ((count,),) = database.execute(f"SELECT count(DISTINCT pid) FROM ({reading(folder)})").fetchall()
        return int(count)


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
        offer = ["--nthreads", "1", "--no-nanny", "--resources", f"{RESOURCE}=1", "--local-directory", str(folder)]
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


def _sessions(folder: Path) -> list[tuple[int, list[int]]]:
    """For each call: how many cells were done when it began, and which it has begun."""
    sessions: list[tuple[int, list[int]]] = []
    log = folder / "log.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():
        entry = json.loads(line)
        if entry["event"] == "sweep_started":
            sessions.append((entry["done"], []))
        elif entry["event"] == "cell_started":
            sessions[-1][1].append(entry["cell"])
    return sessions


def _begun(folder: Path) -> dict[int, int]:
    begun: dict[int, int] = {}
    for _, cells in _sessions(folder):
        for cell in cells:
            begun[cell] = begun.get(cell, 0) + 1
    return begun


def _note_repetitions(folder: Path, found: Storm) -> None:
    """Cells that a call has begun although they were done, or that it has begun twice itself."""
    kept: set[int] = set()
    sessions = _sessions(folder)
    for number, (done, cells) in enumerate(sessions):
        if len(set(cells)) < len(cells):
            found.problems.append(f"call {number} has begun a cell twice")
        # What was on disk at its start: in order of their numbers is not how cells end, so the set is looked up.
        again = kept.intersection(cells)
        if again:
            found.problems.append(f"call {number} has begun cells that were done: {sorted(again)}")
        if len(kept) > done:
            found.problems.append(f"call {number} found {done} cells done, but {len(kept)} were")
        kept |= _kept_in(folder, number)


def _kept_in(folder: Path, session: int) -> set[int]:
    """Cells that a call says it has kept."""
    number, kept = -1, set()
    for line in (folder / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        number += entry["event"] == "sweep_started"
        if entry["event"] == "cell_kept" and number == session:
            kept.add(entry["cell"])
    return kept


def _segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("emu-[0-9]*-*")}


def main() -> int:
    """Run the three, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeat", type=int, default=42, help="seeds of each of the 12 cells; default 42: 504 cells")
    parser.add_argument("--kills", type=int, default=5, help="how often the second one is killed; default 5")
    parser.add_argument("--seed", type=int, default=1, help="of the moments; default 1")
    chosen = parser.parse_args()
    before = _segments()
    with tempfile.TemporaryDirectory(prefix="check-sweep-") as name:
        folder = Path(name)
        experiment = folder / "experiment.toml"
        cells = write_experiment(experiment, chosen.repeat)
        began = time.monotonic()
        problems = finish(start(experiment, folder / "undisturbed"))
        took_s = time.monotonic() - began
        with duckdb.connect(":memory:") as database:
            query = f"SELECT median(took_s) * 1e3 FROM ({reading(folder / 'undisturbed')})"
            ((cell_ms,),) = database.execute(query).fetchall()
        print(
            f"undisturbed: {cells} cells in {took_s:.1f} s, {took_s / cells * 1e3:.1f} ms each with all that it takes;"
        )
        print(f"  a cell's own time {cell_ms:.1f} ms, in {processes_of(folder / 'undisturbed')} processes", flush=True)

        found = storm(experiment, folder / "killed", cells, chosen.kills, chosen.seed)
        problems += found.problems + [
            f"killed: {text}" for text in differences(folder / "undisturbed", folder / "killed")
        ]
        at = ", ".join(map(str, found.done_at_kills))
        print(
            f"killed {chosen.kills} times, with {at} cells done: {len(cell_numbers(folder / 'killed'))} cells in the end,"
        )
        print(
            f"  {found.begun_again} of them begun again that were under way, {len(found.problems)} problems", flush=True
        )

        wrong = on_cluster(experiment, folder / "cluster", cells, cells // 3)
        wrong += differences(folder / "undisturbed", folder / "cluster")
        problems += [f"cluster: {text}" for text in wrong]
        count = len(cell_numbers(folder / "cluster"))
        print(f"cluster of {WORKERS} workers, one killed: {count} cells, {len(wrong)} problems,")
        print(f"  in {processes_of(folder / 'cluster')} processes", flush=True)
    problems += [f"segment {name} is left" for name in _segments() - before]
    for problem in problems:
        print(f"WRONG: {problem}")
    print("all three have the same cells, to the byte" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
