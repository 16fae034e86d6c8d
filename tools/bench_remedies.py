"""What each remedy for the overrun of a flush queue costs, beside the kernel's code (docs/findings/ring-overrun.md).

    python tools/bench_remedies.py [--remedy wait]... [--rounds 9] [--seconds 0.3] [--json]

Four processes as CPUs, queues for each of them, and two hypervisors: one whose flushes take 58 µs, the median of the
kernel on which the overruns were recorded, and a quick one. In every round the kernel's code and each remedy take
turns, in another order each time, and a remedy's throughput is divided by the kernel's of the same round; the median
of the ratios is shown with the range of the middle half. Runs are short, so that the kernel's code never runs out of
addresses by what it loses. Remedies that are patches of the source (EMU_MUTANT) are compiled first, half a minute each.

Exit code 0: nothing was lost with any remedy that claims so; 1: something was; 2: a machine could not be run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from paired import ratio_of, ratio_text
from patched import call

KERNEL = "kernel"


@dataclass(frozen=True)
class Way:
    """One way to treat a full ring. `mutant`: the patch it is, if no option; `loses`: it does not claim otherwise."""

    options: tuple[str, ...] = ()
    mutant: str | None = None
    loses: bool = False


WAYS = {
    KERNEL: Way(loses=True),
    "wait": Way(("--on-overrun", "wait")),
    "flush-while-full": Way(mutant="flush-while-full"),
    "free-what-own-flush-covers": Way(mutant="free-what-own-flush-covers"),
    "larger-ring": Way(("--fq-size", "4096"), loses=True),
}
HEAD = (
    "   pairs/s  beside the kernel's      overruns      lost  flushes  unmap p99  reach p99\n"
    + " " * 93
    + "µs         ms"
)
FLUSHES = {"58 µs": ("--set", "hypervisor.intercept_ns=58000"), "quick": ()}


@dataclass(slots=True)
class Row:
    """What was measured of one way, round by round."""

    pairs_per_s: list[float] = field(default_factory=list)
    overruns: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    full_flushes: list[int] = field(default_factory=list)
    unmap_p99_ns: list[float] = field(default_factory=list)
    reach_p99_ns: list[float] = field(default_factory=list)

    def add(self, run: dict[str, Any]) -> None:
        """Take over a run's result."""
        self.pairs_per_s.append(run["pairs_per_s"])
        self.overruns.append(run["overruns"])
        self.lost.append(run["overrun_iovas"])
        self.full_flushes.append(run["flushes"]["full"])
        self.unmap_p99_ns.append(run["latency_ns"]["unmap"]["p99"])
        self.reach_p99_ns.append(run["exposure"]["p99_ns"])


def run_once(way: Way, flushes: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """One run's result.

    Raises:
        RuntimeError: it came to no result.
    """
    with tempfile.TemporaryDirectory() as folder:
        load = ["--domain", "DMA-FQ", "--cpus", "4", "--preset", "bare-metal", "--workload", "map_benchmark"]
        arguments = ["run", *load, *flushes, *way.options, "--seconds", str(seconds)]
        _, summary, error = call(way.mutant, [*arguments, "--out", f"{folder}/out", "--quiet"])
    if summary is None:
        raise RuntimeError(error)
    (run,) = summary["runs"]
    if run["map_failures"]:
        raise RuntimeError(f"{run['map_failures']} maps failed for want of addresses: choose shorter runs")
    return dict(run)


def summary_of(row: Row, kernel: Row) -> dict[str, Any]:
    """Medians over the rounds, and sums of what was lost."""
    return {
        "pairs_per_s": median(row.pairs_per_s),
        **ratio_of(row.pairs_per_s, kernel.pairs_per_s),
        "overruns": sum(row.overruns),
        "lost": sum(row.lost),
        "full_flushes": median(row.full_flushes),
        "unmap_p99_ns": median(row.unmap_p99_ns),
        "reach_p99_ns": median(row.reach_p99_ns),
    }


def line_of(name: str, figures: dict[str, Any]) -> str:
    """A row of the table."""
    lost = f"{figures['overruns']:>9}{figures['lost']:>10}{figures['full_flushes']:>9.0f}"
    late = f"{figures['unmap_p99_ns'] / 1e3:>11.1f}{figures['reach_p99_ns'] / 1e6:>11.2f}"
    return f"{name:<28}{figures['pairs_per_s']:>10.0f}  {ratio_text(figures):<24}{lost}{late}"


def main() -> int:
    """Print a table for each hypervisor; 1 when a remedy has lost something."""
    parser = argparse.ArgumentParser(description="what remedies for the overrun cost, beside the kernel's code")
    parser.add_argument("--remedy", action="append", choices=[name for name in WAYS if name != KERNEL])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = [KERNEL, *(arguments.remedy or [name for name in WAYS if name != KERNEL])]
    tables: dict[str, dict[str, Any]] = {}
    try:
        for name in names:
            # The first run compiles.
            run_once(WAYS[name], (), 0.05)
        for label, flushes in FLUSHES.items():
            rows = {name: Row() for name in names}
            for i in range(arguments.rounds):
                for name in names[i % len(names) :] + names[: i % len(names)]:
                    rows[name].add(run_once(WAYS[name], flushes, arguments.seconds))
            tables[label] = {name: summary_of(row, rows[KERNEL]) for name, row in rows.items()}
            if not arguments.json:
                print(f"flushes: {label}".ljust(28) + HEAD)
                print("\n".join(line_of(name, figures) for name, figures in tables[label].items()), flush=True)
    except RuntimeError as error:
        print(f"bench_remedies: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(tables))
    return int(
        any(figures["lost"] for rows in tables.values() for name, figures in rows.items() if not WAYS[name].loses)
    )


if __name__ == "__main__":
    sys.exit(main())
