"""The engine `sim` beside `processes` on this machine: do virtual clocks tell what real ones do?

    python tools/compare_engines.py [--costs costs.toml] [--repetitions 5] [--seconds 1] [--preset lpar] [--json]

Both engines run the load `nvme` for as long, over presets, schemes, and 1 and 2 CPUs; `sim` once, as it always says the
same, and `processes` again and again, all rows in turns. Without --costs this machine is calibrated first. Two things
must agree: pairs a second within 20 % of the median, and flushes within 2 % of it, or inside what runs of `processes`
differ by themselves (then the row says "spread"). Flushes are counted per 1000 unmaps, or, where the timer fires more
than 2 % of them, per second. Where a run has fewer than 50, their number is shown and not judged ("few").

All CPUs stop at the same moment. With queues for each CPU this matters: one CPU's flush empties the other's ring too,
so a CPU that is left alone flushes up to twice as often for each unmap.

How a row's pairs a second are compared, the first that can be:

whole     the whole run; of those runs that other programs left alone (they used at most a tenth of a core), median.
stretches where other programs interfere: those of 256 pairs that were not interrupted, while the other CPUs' were not
          either, of both engines. With 2 CPUs, those with a flush in them are left out, so this says what the CPUs do
          between two flushes. Only where the CPUs serve themselves, as a hypervisor's process leaves no mark.

Flushes are judged on whole runs, or for one CPU whose timer does not matter: with more, which flush frees whose ring
depends on who runs when.

A row is not judged where there are more CPUs and hypervisors than cores: processes then take turns, each waits for
another's time slice, and `sim`, whose CPUs never share a core, is not about that. `kvm, inline` is the preset kvm with
service = inline, where the trapping CPU serves itself: so it can be compared on as many cores as CPUs.

Exit code 0: whatever was judged agrees; 1: something does not; 2: a machine could not be run.
"""

# ruff: noqa: E402 - this checkout's emu must be found first

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from emu.analysis.environment import environment
from emu.analysis.run_result import run_result
from emu.config import Config, ConfigError, DomainType, cores, load
from emu.machine.calibration import CalibrationError, calibrate
from emu.machine.stretches import marked_load, uninterrupted_pairs_per_s
from emu.machine.supervisor import MachineError, run_machine

DOMAINS: tuple[DomainType, ...] = ("DMA", "DMA-FQ", "DMA-SQ", "s390-lazy")
PRESETS: dict[str, tuple[str, list[tuple[str, str, Any]]]] = {
    "kvm": ("kvm", []),
    "kvm, inline": ("kvm", [("hypervisor", "service", "inline")]),
    "lpar": ("lpar", []),
}
MOST_APART = 0.20
MOST_FLUSHES_APART = 0.02
MOST_OTHERS = 0.1
"""Cores that other programs may use while a run counts as whole, and how many such runs make a verdict."""
LEAST_RUNS = 3
LEAST_FLUSHES = 50
"""Of fewer in a run, 2 % cannot be told."""
MOST_SPREAD = 1.5
"""The fastest run's stretches over the slowest's: beyond, interruptions have not been told apart."""
_MARKED_S = 0.4
_MOST_PAIRS = 600_000
_FEWEST_PAIRS = 2048


class Measured(NamedTuple):
    """One run.

    Attributes:
        pairs_per_s: of the whole.
        between_flushes: of uninterrupted stretches, or None where there are too few.
        seconds: how long the load ran.
        flushes: of all causes.
        timeouts: those that the timer fired.
        unmaps: pairs of all CPUs.
        others: cores that other programs used meanwhile.
    """

    pairs_per_s: float
    between_flushes: float | None
    seconds: float
    flushes: int
    timeouts: int
    unmaps: int
    others: float

    @property
    def flushes_per_s(self) -> float:
        """Of all causes."""
        return self.flushes / self.seconds

    @property
    def flushes_per_1000(self) -> float:
        """Of all causes, in 1000 unmaps."""
        return 1000 * self.flushes / self.unmaps


@dataclass(slots=True)
class Row:
    """One machine on both engines.

    Attributes:
        preset: its name in PRESETS.
        domain, cpus: of the machine.
        pairs: of each CPU, in the part that has marks.
        sim: what virtual clocks say.
        real: what real ones say, once for each repetition.
    """

    preset: str
    domain: DomainType
    cpus: int
    pairs: int
    sim: Measured
    real: list[Measured] = field(default_factory=list)

    @property
    def shares_cores(self) -> bool:
        """Whether there are more CPUs and hypervisors than cores."""
        config = _config(self.preset, self.domain, self.cpus, "processes", Plan(1.0, {}))
        return self.cpus + (config.hypervisor.service == "process") > cores()

    def _basis(self) -> tuple[str, list[float], bool, str]:
        """What pairs a second are judged on; those shown; whether of stretches; and why there is no verdict."""
        every = [run.pairs_per_s for run in self.real]
        if self.shares_cores:
            return "", every, False, "CPUs and hypervisor share cores"
        whole = [run.pairs_per_s for run in self.real if run.others <= MOST_OTHERS]
        if len(whole) >= LEAST_RUNS:
            return "whole", whole, False, ""
        stretches = [run.between_flushes for run in self.real if run.between_flushes]
        if len(stretches) < LEAST_RUNS or not self.sim.between_flushes:
            quiet = f"{len(whole)} of {len(self.real)} runs were left alone, not {LEAST_RUNS}"
            return "", every, False, f"disturbed: {quiet}"
        if max(stretches) > MOST_SPREAD * min(stretches):
            return "", stretches, True, "disturbed: its stretches differ too much"
        return "stretches", stretches, True, ""

    def verdict(self) -> dict[str, Any]:
        """What is compared, and whether it agrees (None: not judged)."""
        basis, taken, on_stretches, why = self._basis()
        sim = float(self.sim.between_flushes or 0) if on_stretches else self.sim.pairs_per_s
        return {
            "basis": basis,
            "why_not": why,
            "processes": median(taken),
            "spread": [min(taken), max(taken)],
            "judged_runs": len(taken),
            "sim": sim,
            "ratio": sim / median(taken),
            "agrees": abs(sim / median(taken) - 1) <= MOST_APART if basis else None,
            **self._flushes(basis),
        }

    def _flushes(self, basis: str) -> dict[str, Any]:
        """How many there were, and whether that agrees."""
        runs = [run for run in self.real if basis != "whole" or run.others <= MOST_OTHERS]
        # A timer fires as often as time passes, a ring is full after so many unmaps: what most flushes follow counts.
        is_timed = any(run.timeouts > MOST_FLUSHES_APART * run.flushes for run in [*runs, self.sim])
        found = [run.flushes_per_s if is_timed else run.flushes_per_1000 for run in runs]
        sim = self.sim.flushes_per_s if is_timed else self.sim.flushes_per_1000
        is_near = abs(sim - median(found)) <= MOST_FLUSHES_APART * median(found)
        is_inside = min(found) <= sim <= max(found)
        are_few = 0 < max(run.flushes for run in [*runs, self.sim]) < LEAST_FLUSHES
        # Which flush frees whose ring is a matter of who runs when.
        is_judged = not are_few and (basis == "whole" or (basis == "stretches" and self.cpus == 1 and not is_timed))
        return {
            "flushes_for_each": "second" if is_timed else "1000 unmaps",
            "flushes": median(found),
            "flushes_spread": [min(found), max(found)],
            "sim_flushes": sim,
            "flush_ratio": sim / median(found) if median(found) else None,
            "flushes_agree": (is_near or is_inside) if is_judged else None,
            "flushes_agree_by": "median" if is_near else "spread",
            "flushes_are_few": are_few,
        }


# --- running --------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How all rows are run.

    Attributes:
        seconds: how long.
        costs: of the steps on virtual clocks, in ns.
    """

    seconds: float
    costs: dict[str, float]


def _config(preset: str, domain: DomainType, cpus: int, engine: str, plan: Plan) -> Config:
    name, options = PRESETS[preset]
    machine = {"engine": engine, "cpus": cpus, "seconds": plan.seconds}
    given = [*(("machine", key, value) for key, value in machine.items()), ("domain", "types", [domain]), *options]
    return load(preset=name, overrides=[*given, *(("costs", f"{step}_ns", ns) for step, ns in plan.costs.items())])


def _busy_s() -> float:
    """Core seconds that this machine has spent on anybody, or not been given by its own host."""
    user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _run(preset: str, domain: DomainType, cpus: int, engine: str, plan: Plan, pairs: int) -> Measured:
    config = _config(preset, domain, cpus, engine, plan)
    workload = marked_load(config, pairs, goes_on=True)
    since, busy_s, own_s = time.perf_counter(), _busy_s(), _own_s()
    machine = run_machine(config, domain, workload)
    others_s = (_busy_s() - busy_s) - (_own_s() - own_s)
    if machine.interrupted:
        raise KeyboardInterrupt
    if machine.died:
        raise MachineError(machine.died)
    run = run_result(config, domain, workload, machine.recording)
    return Measured(
        run["pairs_per_s"],
        None if config.hypervisor.service == "process" else uninterrupted_pairs_per_s(machine.recording),
        run["seconds"],
        sum(run["flushes"].values()),
        run["flushes"]["timeout"],
        run["unmaps"],
        others_s / (time.perf_counter() - since),
    )


def _first_look(preset: str, domain: DomainType, cpus: int, plan: Plan) -> Row:
    """A row whose marks last for about _MARKED_S, with what virtual clocks say."""
    short = _run(preset, domain, cpus, "sim", plan._replace(seconds=_MARKED_S), _FEWEST_PAIRS)
    pairs = min(max(round(short.pairs_per_s / cpus * _MARKED_S), _FEWEST_PAIRS), _MOST_PAIRS)
    return Row(preset, domain, cpus, pairs, _run(preset, domain, cpus, "sim", plan, pairs))


def compare(presets: list[str], repetitions: int, plan: Plan) -> Iterator[Row]:
    """Run all; rows come when they are complete."""
    rows = [
        _first_look(preset, domain, cpus, plan)
        for preset in presets
        for cpus in range(1, min(cores(), 2) + 1)
        for domain in DOMAINS
    ]
    for repetition in range(repetitions):
        for row in rows:
            row.real.append(_run(row.preset, row.domain, row.cpus, "processes", plan._replace(costs={}), row.pairs))
            if repetition == repetitions - 1:
                yield row


# --- the command ----------------------------------------------------------------------------------------------------

_HEAD = f"{'':12}{'CPUs':>4}  {'':10}{'processes':>11}  {'spread':<19}{'sim':>10}{'sim ÷':>7}  {'':13}"
_HEAD += f"{'flushes':>8} {'':6}{'spread':<15}{'sim':>7}{'sim ÷':>7}"


def _line(row: Row) -> str:
    found = row.verdict()
    spread = f"{found['spread'][0]:.0f}–{found['spread'][1]:.0f}"
    pairs = {True: "ok", False: "APART", None: ""}[found["agrees"]]
    by = {"median": "ok", "spread": "spread"}[found["flushes_agree_by"]]
    flushes = {True: by, False: "APART", None: "few" if found["flushes_are_few"] else ""}[found["flushes_agree"]]
    flushes_spread = "–".join(f"{bound:.4g}" for bound in found["flushes_spread"])
    flush_ratio = f"{found['flush_ratio']:.3f}" if found["flush_ratio"] else "–"
    unit = "/s" if found["flushes_for_each"] == "second" else "/1000"
    return (
        f"{row.preset:12}{row.cpus:4}  {row.domain:10}{found['processes']:11.0f}  {spread:<19}{found['sim']:10.0f}"
        f"{found['ratio']:7.2f}  {found['basis'] or 'not judged':<10}{pairs:<6}"
        f"{found['flushes']:8.4g} {unit:<6}{flushes_spread:<15}{found['sim_flushes']:7.4g}{flush_ratio:>7} {flushes:<7}"
        f"{found['why_not']}"
    )


def _as_dict(row: Row) -> dict[str, Any]:
    real = [run._asdict() for run in row.real]
    place = {"preset": row.preset, "domain": row.domain, "cpus": row.cpus, "marked_pairs_of_each_cpu": row.pairs}
    return {**place, "runs": real, **row.verdict()}


def _costs(file: Path | None) -> dict[str, float]:
    if file is None:
        return calibrate().costs_ns
    found = load(costs_file=file).costs.model_dump(exclude_unset=True)
    return {name.removesuffix("_ns"): value for name, value in found.items() if name != "slack_ns"}


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description="Compare the engines sim and processes on this machine.")
    parser.add_argument("--costs", type=Path, help="file of emu doctor --calibrate; measured now if not given")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of processes for each row, default 5")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each run lasts, default 1")
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="only this one; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    place = environment()
    rows = []
    try:
        costs = _costs(options.costs)
        if not options.json:
            print(f"{place['cpu']}, {place['cores_usable']} cores, load average {place['load'][0]}\n\n{_HEAD}")
        for row in compare(options.preset or list(PRESETS), max(options.repetitions, 1), Plan(options.seconds, costs)):
            rows.append(row)
            if not options.json:
                print(_line(row), flush=True)
    except (CalibrationError, ConfigError, MachineError) as problem:
        print(f"compare_engines: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare_engines: interrupted", file=sys.stderr)
        return 130
    verdicts = [row.verdict() for row in rows]
    if options.json:
        print(json.dumps({"environment": place, "costs_ns": costs, "rows": [_as_dict(row) for row in rows]}, indent=1))
    else:
        print(f"\n{_summary(verdicts)}; load average now {os.getloadavg()[0]:.1f}.")
    return int(any(found["agrees"] is False or found["flushes_agree"] is False for found in verdicts))


def _summary(verdicts: list[dict[str, Any]]) -> str:
    judged = [found for found in verdicts if found["agrees"] is not None]
    counted = [found for found in verdicts if found["flushes_agree"] is not None]
    return (
        f"Of {len(verdicts)} rows: pairs a second agree within {MOST_APART:.0%} in "
        f"{sum(found['agrees'] for found in judged)} of {len(judged)} judged, flushes within "
        f"{MOST_FLUSHES_APART:.0%} in {sum(found['flushes_agree'] for found in counted)} of {len(counted)}"
    )


if __name__ == "__main__":
    sys.exit(main())
