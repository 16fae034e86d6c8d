#!/usr/bin/env python3
"""Kill processes of running machines at random, over all roles, and see whether everything comes out right each time.

Usage: python tools/kill_storm.py [--kills 1000] [--seed 1]

Machines of random schemes and sizes run one after the other. Of each, one to three processes are killed at random
moments: by a fault of the run's own (also while they hold a lock), or from outside, as by an out-of-memory killer. Some
machines stop then, others go on and have timer and hypervisor started anew; now and then the command itself is killed.
What must hold each time: the command ends in time (no hang above 2 s), its exit code and its report name the dead,
violations are 0 and the books balance but for what the dead had in hand, and no process or segment is left.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from emu.cli.app import dispatch
from emu.cli.failure import INTERRUPTED

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
LONGEST_HANG_S = 2.0
SECONDS = 0.3
DEATH = 3
MOST_PROBLEMS = 20
HELD = ("iova_cpu_rcache.lock", "iova_fq.lock", "iova_rbtree_lock", "iova_rcache.lock", "iommu_bitmap_lock")
BASE = ("--json", "--quiet", "--set", "domain.aperture_mb=256", "--set", "domain.iova_ranges=65536")


@dataclass
class Tally:
    """What came of all the kills so far."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    held: collections.Counter[str] = field(default_factory=collections.Counter)
    endings: collections.Counter[str] = field(default_factory=collections.Counter)
    handovers_ns: list[int] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    runs: int = 0
    books: int = 0
    problems: list[str] = field(default_factory=list)


def children() -> list[psutil.Process]:
    """This process's children but for the resource tracker."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and not any(
                "resource_tracker" in word for word in child.cmdline()
            ):
                found.append(child)
    return found


def is_running(process: psutil.Process) -> bool:
    """Whether it is more than a name that somebody must bury."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def what_is_left(pid: int) -> list[str]:
    """Processes and segments that should have gone."""
    left = [f"process {child.pid}" for child in children()]
    return left + [f"segment {path.name}" for path in SHARED_MEMORY.glob(f"emu-{pid}-*")]


def draw(chance: random.Random) -> list[str]:
    """Options of a machine, without what kills its processes."""
    domain = chance.choice(["DMA", "DMA-FQ", "DMA-FQ", "DMA-SQ", "DMA-SQ", "s390-lazy", "s390-strict"])
    options = ["--domain", domain, "--cpus", str(chance.randint(1, 4)), "--seed", str(chance.randrange(1 << 30))]
    if domain in ("DMA-FQ", "DMA-SQ"):
        options += ["--fq-size", str(chance.choice([32, 256, 2048])), "--fq-timeout", str(chance.choice([5, 50]))]
    if chance.random() < 0.3:
        options += ["--preset", chance.choice(["lpar", "zvm", "bare-metal"])]
    service = chance.random()
    if service < 0.2 or "bare-metal" in options or "lpar" in options:
        options += ["--set", "hypervisor.service=inline"]
    elif service < 0.4:
        options += ["--set", "hypervisor.servers=2"]
    if chance.random() < 0.6:
        options += ["--on-death", "continue"]
    if chance.random() < 0.6:
        options += ["--restart", "hypervisor", "--restart", "timer"]
    return options


def faults(chance: random.Random, options: list[str], kills: int) -> list[str]:
    """So many kills by the run's own faults."""
    roles = ["any", "cpu*", "timer"] + ([] if "hypervisor.service=inline" in options else ["hypervisor"])
    chosen = []
    for _ in range(kills):
        is_queued = any(name in options for name in ("DMA-FQ", "DMA-SQ"))
        locks = [lock for lock in HELD if ("s390" in options[1]) == (lock == "iommu_bitmap_lock")]
        locks = [lock for lock in locks if is_queued or lock != "iova_fq.lock"]
        if chance.random() < 0.3:
            chosen += ["--fault", f"kill:cpu*@holding:{chance.choice(locks)}"]
        else:
            chosen += ["--fault", f"kill:{chance.choice(roles)}@random"]
    return chosen


def kill_from_outside(chance: random.Random, moments_s: list[float], stop: threading.Event) -> None:
    """Kill random processes of the machine that is running, so long after it has begun to run."""
    while not stop.is_set() and len(children()) < 2:
        time.sleep(0.005)
    for moment_s in moments_s:
        if stop.wait(moment_s):
            return
        living = children()
        if living:
            with contextlib.suppress(psutil.Error):
                chance.choice(living).kill()


def run_once(chance: random.Random, tally: Tally, folder: Path) -> None:
    """One machine and its deaths."""
    options, kills = draw(chance), chance.randint(1, 3)
    outside = chance.random() < 0.4
    arguments = ["run", "--seconds", str(SECONDS), *BASE, *options, "--out", str(folder / f"run{tally.runs}")]
    arguments += [] if outside else faults(chance, options, kills)
    stop = threading.Event()
    moments_s = sorted(chance.uniform(0, SECONDS) / kills for _ in range(kills))
    killer = threading.Thread(target=kill_from_outside, args=(chance, moments_s, stop), daemon=True)
    if outside:
        killer.start()
    out, err = io.StringIO(), io.StringIO()
    # Where it hangs, if it does.
    signal.signal(signal.SIGALRM, lambda _number, frame: traceback.print_stack(frame, file=sys.__stderr__))
    signal.setitimer(signal.ITIMER_REAL, SECONDS + LONGEST_HANG_S)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = dispatch(arguments)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if code == INTERRUPTED:
        # Ctrl-C was for the storm.
        raise KeyboardInterrupt
    stop.set()
    if outside:
        killer.join()
    tally.runs += 1
    late_s = seconds_late(folder / f"run{tally.runs - 1}" / "events.jsonl")
    judge(tally, " ".join(arguments[1:]), code, out.getvalue(), err.getvalue(), late_s)


def seconds_late(log: Path) -> float:
    """From the last death, or the end of the load if that came later, to the end of the command, by its own log."""
    if not log.exists():
        return 0.0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    until_ns = [event["time_ns"] for event in events if event["event"] == "process_died"]
    until_ns += [event["time_ns"] + SECONDS * 1e9 for event in events if event["event"] == "load_started"]
    stopped = any(event["event"] == "death" for event in events)
    from_ns = max(until_ns[:-1] if stopped and len(until_ns) > 1 else until_ns, default=0.0)
    return (events[-1]["time_ns"] - from_ns) / 1e9 if until_ns else 0.0


def judge_books(tally: Tally, run: dict[str, Any], wrong: Callable[[str], None]) -> None:
    """What the survivors have counted, and what the machine's memory holds."""
    if run["violations"]:
        wrong(f"{run['violations_by_kind']}")
    if run["conservation"] is not None:
        tally.books += 1
        if not run["conservation"]["holds"]:
            wrong(f"books do not balance: {run['conservation']}")
        return
    tally.endings["books not made, as iommu_bitmap_lock was held"] += 1
    if run["ops"] and not any("iommu_bitmap_lock" in death["held"] for death in run["deaths"]):
        wrong("no books")


def judge(tally: Tally, command: str, code: int, out: str, err: str, late_s: float) -> None:
    """Note what came of a run, and what did not come out as it must."""

    def wrong(what: str) -> None:
        tally.problems.append(f"{what}\n    emu run {command}\n    {err.strip()}")

    left = what_is_left(os.getpid())
    if left:
        wrong(f"left behind: {', '.join(left)}")
    try:
        (run,) = json.loads(out)["runs"]
    except ValueError:
        wrong(f"exit code {code} and no result")
        return
    deaths: list[dict[str, Any]] = run["deaths"]
    tally.kills.update(death["role"].rstrip(" 0123456789") for death in deaths)
    tally.held.update(lock for death in deaths for lock in death["held"])
    tally.handovers_ns += [handover["ns"] for death in deaths for handover in death["handovers"]]
    tally.ends_s.append(late_s)
    if late_s > LONGEST_HANG_S:
        wrong(f"hung for {late_s:.1f} s")
    judge_books(tally, run, wrong)
    recovered = all(death["recovered"] and death["fault"] for death in deaths) and not run["died"]
    expected = 0 if recovered else DEATH
    tally.endings["went on to the end" if not run["died"] else "stopped in order"] += 1
    if code != expected:
        wrong(f"exit code {code}, not {expected}: {run['died']}; {deaths}")
    named = [death for death in deaths if death["role"] in err and "SIGKILL" in err]
    if deaths and not named:
        wrong("the dead are not named")
    if any(death["recovered"] and f"{death['role']} (pid {death['pid']})" not in err for death in deaths):
        wrong("a recovered death is not named")


def kill_command(chance: random.Random, tally: Tally, folder: Path) -> None:
    """Kill the command itself: the system must take its processes along, and its segment must go."""
    command = [sys.executable, "-m", "emu", "run", *BASE, "--seconds", "20", *draw(chance)]
    process = subprocess.Popen(
        [*command, "--out", str(folder / f"command{tally.runs}")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    tally.runs += 1
    until = time.monotonic() + 60
    crew: list[psutil.Process] = []
    while len(crew) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
        with contextlib.suppress(psutil.NoSuchProcess):
            crew = psutil.Process(process.pid).children(recursive=True)
    time.sleep(chance.uniform(0, SECONDS))
    if process.poll() is not None:
        tally.problems.append(f"the command ended by itself: {process.communicate()[1]}\n    {' '.join(command)}")
        return
    killed_at = time.monotonic()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(crew, timeout=LONGEST_HANG_S)
    while list(SHARED_MEMORY.glob(f"emu-{process.pid}-*")) and time.monotonic() - killed_at < LONGEST_HANG_S:
        time.sleep(0.01)
    # Who adopts orphans may leave them unburied.
    alive = [child for child in alive if is_running(child)]
    left = [*map(str, alive), *(path.name for path in SHARED_MEMORY.glob(f"emu-{process.pid}-*"))]
    tally.kills["the command itself"] += 1
    tally.ends_s.append(time.monotonic() - killed_at)
    if left:
        tally.problems.append(f"the command was killed, and there are left: {', '.join(left)}")


def storm(kills: int, seed: int, on_progress: Any = lambda _tally: None) -> Tally:
    """Kill until there were so many deaths."""
    chance, tally = random.Random(seed), Tally()  # noqa: S311 - not for secrets
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        # Compiled before it is timed.
        dispatch(["run", "--ops", "10", "--domain", "DMA", "--json", "--quiet", "--out", folder])
    with tempfile.TemporaryDirectory(prefix="kill-storm-") as folder:
        while tally.kills.total() < kills and len(tally.problems) < MOST_PROBLEMS:
            if chance.random() < 0.03:
                kill_command(chance, tally, Path(folder))
            else:
                run_once(chance, tally, Path(folder))
            on_progress(tally)
    return tally


def report(tally: Tally, seed: int, took_s: float) -> list[str]:
    """What is to be said about a storm."""
    by_role = ", ".join(f"{count} × {role}" for role, count in tally.kills.most_common())
    held = ", ".join(f"{count} × {lock}" for lock, count in tally.held.most_common()) or "none"
    endings = ", ".join(f"{count} {what}" for what, count in tally.endings.most_common())
    lines = [
        f"{tally.kills.total()} SIGKILLs in {tally.runs} machines, seed {seed}, {took_s:.0f} s: {by_role}",
        f"locks held at death: {held}",
        f"{endings}; books made in {tally.books}",
        f"longest from the last death, or the load's end, to the command's end: {max(tally.ends_s):.2f} s",
    ]
    if tally.handovers_ns:
        median, worst = statistics.median(tally.handovers_ns) / 1e6, max(tally.handovers_ns) / 1e6
        lines.append(f"lock hand-over, {len(tally.handovers_ns)} times: median {median:.2f} ms, worst {worst:.1f} ms")
    lines.append(f"problems: {len(tally.problems)}")
    return lines + tally.problems


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="how many; default 1000")
    parser.add_argument("--seed", type=int, default=1, help="of everything random; default 1")
    options = parser.parse_args()
    began = time.monotonic()

    def progress(tally: Tally) -> None:
        if sys.stderr.isatty():
            done = tally.kills.total()
            left_s = (time.monotonic() - began) / max(done, 1) * max(options.kills - done, 0)
            print(f"\r{done} of {options.kills} kills, {len(tally.problems)} problems, {left_s:.0f} s left  ", end="",
                  file=sys.stderr)  # fmt: skip

    tally = storm(options.kills, options.seed, progress)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print("\n".join(report(tally, options.seed, time.monotonic() - began)))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
