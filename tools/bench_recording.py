"""What recording every operation costs, and what it loses of a flood.

    python tools/bench_recording.py [--cpus 2] [--rounds 15] [--seconds 0.4] [--flood-seconds 10] [--json]

The cost: the default load on lazy domains, on real processes. Runs that record every operation (`--record`) and runs
that do not take turns, which of the two is first changes every time, and each pair of neighbours gives one ratio; the
median of the ratios is shown with the range of the middle half.

An event: what it takes of a CPU that does nothing but map and unmap with `identity`, by the same turns.

The flood: 1 CPU, then 2, that do nothing but map and unmap with `identity`, at a pace of five million events a second
each and then as fast as they can. What is in the files and what was counted as lost must be all that happened, which
the CPUs' own counters say. Nothing is lost while the supervisor has a core to empty the rings on.

Under lpar, CPUs that find no other core for the supervisor share theirs with it: such rows are shown, and not judged.

Exit code 0: no row that is judged costs more than 15 %, and every event is written or counted; 1: otherwise; 2: a
machine could not be run.
"""

# ruff: noqa: E402 - this checkout's emu must be found first

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from paired import middle_half, ratio_of, ratio_text

from emu.config import DomainType, cores, load
from emu.experiment import MachineError, run_machine
from emu.native.events import event_chunks
from emu.workload.build import build_workload

DOMAINS: tuple[DomainType, ...] = ("DMA-FQ", "DMA-SQ")
PRESETS = ("kvm", "lpar")
MOST_COST = 0.15
PACED_HOLD_NS = 150.0
"""With what a map, an unmap and looking at the clock take, 400 ns or less for two events."""


def run(
    overrides: list[tuple[str, str, Any]], domain: DomainType, folder: Path | None = None, preset: str = "kvm"
) -> dict[str, Any]:
    """One run's result; it is recorded where there is a folder.

    Raises:
        MachineError: it could not be started, or a process of it died.
    """
    recorded = [("machine", "record", folder is not None), ("domain", "types", [domain])]
    config = load(None, preset, [*recorded, *overrides])
    outcome = run_machine(config, domain, build_workload(config), record_to=folder)
    if outcome.died:
        raise MachineError(outcome.died)
    return outcome.run


def cost_of(preset: str, domain: DomainType, cpus: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Throughput of runs that record beside that of runs that do not, and what recording lost."""
    found: dict[bool, list[float]] = {True: [], False: []}
    lost = 0
    options: list[tuple[str, str, Any]] = [("machine", "cpus", cpus), ("machine", "seconds", seconds)]
    # The first run compiles.
    run([("machine", "cpus", cpus), ("machine", "seconds", 0.05)], domain, preset=preset)
    for i in range(rounds):
        for recorded in (True, False) if i % 2 else (False, True):
            with tempfile.TemporaryDirectory() as folder:
                result = run(options, domain, Path(folder) if recorded else None, preset)
            found[recorded].append(float(result["pairs_per_s"]))
            lost += result["events"]["lost"] if recorded else 0
    return {
        "preset": preset,
        "domain": domain,
        "recorded_pairs_per_s": median(found[True]),
        "unrecorded_pairs_per_s": median(found[False]),
        "lost": lost,
        "judged": preset == "kvm" or cores() > cpus,
        **ratio_of(found[True], found[False]),
    }


def event_ns(rounds: int, seconds: float) -> dict[str, Any]:
    """What an event takes of its CPU: one that only maps and unmaps, recorded and not in turn, two events a pair.

    Events that find their ring full count too; they take less.
    """
    options: list[tuple[str, str, Any]] = [
        ("machine", "cpus", 1),
        ("machine", "seconds", seconds),
        ("workload", "name", "map_benchmark"),
    ]
    took, lost, happened = [], 0, 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            recorded, plain = run(options, "identity", Path(folder)), run(options, "identity")
        took.append((1e9 / recorded["pairs_per_s"] - 1e9 / plain["pairs_per_s"]) / 2)
        lost += recorded["events"]["lost"]
        happened += recorded["maps"] + recorded["unmaps"]
    return {"event_ns": median(took), "middle_half": middle_half(took), "lost_share": lost / happened}


def flood(cpus: int, hold_ns: float, seconds: float) -> dict[str, Any]:
    """What happened, what was written and what was lost."""
    options: list[tuple[str, str, Any]] = [
        ("machine", "cpus", cpus),
        ("machine", "seconds", seconds),
        ("workload", "name", "map_benchmark"),
        ("workload", "hold_ns", hold_ns),
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, "identity", Path(folder))
        written = sum(len(events) for path in Path(folder).glob("events-*.bin") for events in event_chunks(path))
    happened, lost = result["maps"] + result["unmaps"], result["events"]["lost"]
    return {
        "cpus": cpus,
        "pace": "5 M/s" if hold_ns else "none",
        "events_per_s_per_cpu": happened / result["seconds"] / cpus,
        "happened": happened,
        "written": written,
        "lost": lost,
        "exact": happened == written + lost and written == result["events"]["recorded"],
    }


def main() -> int:
    """Print both tables; 1 when recording costs too much or an event is neither written nor counted."""
    parser = argparse.ArgumentParser(description="what recording every operation costs, and what it loses of a flood")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each run that is compared")
    parser.add_argument("--flood-seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    costs, floods = [], []

    def show(line: str) -> None:
        if not arguments.json:
            print(line, flush=True)

    try:
        show(f"{cores()} cores\n\n{'':<14}{'unrecorded':>12}{'recorded':>12}  pairs/s{'':>6}lost  ratio")
        for preset in PRESETS:
            for domain in DOMAINS:
                row = cost_of(preset, domain, arguments.cpus, arguments.rounds, arguments.seconds)
                costs.append(row)
                rates = f"{row['unrecorded_pairs_per_s']:>12.0f}{row['recorded_pairs_per_s']:>12.0f}"
                judged = "" if row["judged"] else "  not judged"
                show(f"{preset:<6}{domain:<8}{rates}{row['lost']:>19}  {ratio_text(row)}{judged}")
        event = event_ns(arguments.rounds, arguments.seconds)
        low, high = event["middle_half"]
        show(
            f"\nan event: {event['event_ns']:.1f} ns ({low:.1f} to {high:.1f}), {event['lost_share']:.0%} of them lost"
        )
        show(f"\n{'CPUs':<6}{'pace':<8}{'events/s of each':>18}{'happened':>14}{'written':>14}{'lost':>12}")
        for cpus in (1, 2):
            for hold_ns in (PACED_HOLD_NS, 0.0):
                row = flood(cpus, hold_ns, arguments.flood_seconds)
                floods.append(row)
                counts = f"{row['happened']:>14}{row['written']:>14}{row['lost']:>12}"
                exact = "" if row["exact"] else "  NOT ALL ACCOUNTED FOR"
                show(f"{cpus:<6}{row['pace']:<8}{row['events_per_s_per_cpu']:>18.0f}{counts}{exact}")
    except MachineError as error:
        print(f"bench_recording: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"cores": cores(), "cost": costs, "event": event, "flood": floods}))
    is_cheap = all(row["ratio"] >= 1 - MOST_COST for row in costs if row["judged"])
    return int(not (is_cheap and all(row["exact"] for row in floods)))


if __name__ == "__main__":
    sys.exit(main())
