"""The engine `sim` beside `processes` on this machine: do virtual clocks tell what real ones do?

    python tools/compare_engines.py [--costs costs.toml] [--repetitions 5] [--preset lpar] [--json]

Both engines run the load `nvme`, the same number of maps and unmaps on each CPU, over presets, schemes, and 1 and 2
CPUs; `sim` once, as it always says the same, and `processes` again and again, all rows in turns. Without --costs this
machine is calibrated first. Two things must agree: pairs a second within 20 %, and flushes per 1000 unmaps within 2 %,
or by no more than one flush.

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
MOST_SPREAD = 1.5
"""The fastest run's stretches over the slowest's: beyond, interruptions have not been told apart."""
_SECONDS = 0.4
_MOST_PAIRS = 600_000
_FEWEST_PAIRS = 2048


class Measured(NamedTuple):
    """One run.

    Attributes:
        pairs_per_s: of the whole.
        between_flushes: of uninterrupted stretches, or None where there are too few.
        flushes: of all causes.
        timeouts: those that the timer fired.
        unmaps: pairs of all CPUs.
        others: cores that other programs used meanwhile.
    """

    pairs_per_s: float
    between_flushes: float | None
    flushes: int
    timeouts: int
    unmaps: int
    others: float


@dataclass(slots=True)
class Row:
    """One machine on both engines.

    Attributes:
        preset: its name in PRESETS.
        domain, cpus: of the machine.
        pairs: of each CPU.
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
        config = _config(self.preset, self.domain, self.cpus, "processes", {})
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
            return "", every, False, f"disturbed: others used {median(run.others for run in self.real):.1f} cores"
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
            "runs": len(taken),
            "sim": sim,
            "ratio": sim / median(taken),
            "agrees": abs(sim / median(taken) - 1) <= MOST_APART if basis else None,
            **self._flushes(basis),
        }

    def _flushes(self, basis: str) -> dict[str, Any]:
        """How many there were, and whether that agrees."""
        runs = [run for run in self.real if basis != "whole" or run.others <= MOST_OTHERS]
        per_1000 = median(1000 * run.flushes / run.unmaps for run in runs)
        sim_per_1000 = 1000 * self.sim.flushes / self.sim.unmaps
        apart = abs(sim_per_1000 - per_1000)
        agree = apart <= MOST_FLUSHES_APART * per_1000 or apart * self.sim.unmaps <= 1000
        # Which flush frees whose ring is a matter of who runs when, and a timer fires as often as time passes.
        counts_time = any(run.timeouts > MOST_FLUSHES_APART * run.flushes for run in [*runs, self.sim])
        is_judged = basis == "whole" or (basis == "stretches" and self.cpus == 1 and not counts_time)
        return {
            "flushes_per_1000": per_1000,
            "sim_flushes_per_1000": sim_per_1000,
            "flush_ratio": sim_per_1000 / per_1000 if per_1000 else None,
            "flushes_agree": agree if is_judged else None,
        }


# --- running --------------------------------------------------------------------------------------------------------


def _config(preset: str, domain: DomainType, cpus: int, engine: str, costs: dict[str, float]) -> Config:
    name, options = PRESETS[preset]
    given = [("machine", "engine", engine), ("machine", "cpus", cpus), ("domain", "types", [domain]), *options]
    return load(preset=name, overrides=[*given, *(("costs", f"{step}_ns", ns) for step, ns in costs.items())])


def _busy_s() -> float:
    """Core seconds that this machine has spent on anybody, or not been given by its own host."""
    user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _run(preset: str, domain: DomainType, cpus: int, engine: str, costs: dict[str, float], pairs: int) -> Measured:
    config = _config(preset, domain, cpus, engine, costs)
    workload = marked_load(config, pairs)
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
        sum(run["flushes"].values()),
        run["flushes"]["timeout"],
        run["unmaps"],
        others_s / (time.perf_counter() - since),
    )


def _first_look(preset: str, domain: DomainType, cpus: int, costs: dict[str, float]) -> Row:
    """A row, as long as to take about _SECONDS, with what virtual clocks say."""
    short = _run(preset, domain, cpus, "sim", costs, _FEWEST_PAIRS)
    pairs = min(max(round(short.pairs_per_s / cpus * _SECONDS), _FEWEST_PAIRS), _MOST_PAIRS)
    return Row(preset, domain, cpus, pairs, _run(preset, domain, cpus, "sim", costs, pairs))


def compare(presets: list[str], repetitions: int, costs: dict[str, float]) -> Iterator[Row]:
    """Run all; rows come when they are complete."""
    rows = [
        _first_look(preset, domain, cpus, costs)
        for preset in presets
        for cpus in range(1, min(cores(), 2) + 1)
        for domain in DOMAINS
    ]
    for repetition in range(repetitions):
        for row in rows:
            row.real.append(_run(row.preset, row.domain, row.cpus, "processes", {}, row.pairs))
            if repetition == repetitions - 1:
                yield row


# --- the command ----------------------------------------------------------------------------------------------------

_HEAD = f"{'':12}{'CPUs':>4}  {'':10}{'processes':>11}  {'spread':<19}{'sim':>10}{'sim ÷':>7}  {'':13}"
_HEAD += f"{'flushes/1000':>13}{'sim':>9}{'sim ÷':>7}"


def _line(row: Row) -> str:
    found = row.verdict()
    spread = f"{found['spread'][0]:.0f}–{found['spread'][1]:.0f}"
    pairs = {True: "ok", False: "APART", None: ""}[found["agrees"]]
    flushes = {True: "ok", False: "APART", None: ""}[found["flushes_agree"]]
    flush_ratio = f"{found['flush_ratio']:.3f}" if found["flush_ratio"] else "–"
    return (
        f"{row.preset:12}{row.cpus:4}  {row.domain:10}{found['processes']:11.0f}  {spread:<19}{found['sim']:10.0f}"
        f"{found['ratio']:7.2f}  {found['basis'] or 'not judged':<10}{pairs:<6}"
        f"{found['flushes_per_1000']:10.3f}{found['sim_flushes_per_1000']:9.3f}{flush_ratio:>7} {flushes:<6}"
        f"{found['why_not']}"
    )


def _as_dict(row: Row) -> dict[str, Any]:
    real = [run._asdict() for run in row.real]
    place = {"preset": row.preset, "domain": row.domain, "cpus": row.cpus, "pairs_of_each_cpu": row.pairs}
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
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="only this one; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    place = environment()
    rows = []
    try:
        costs = _costs(options.costs)
        if not options.json:
            print(f"{place['cpu']}, {place['cores_usable']} cores, load average {place['load'][0]}\n\n{_HEAD}")
        for row in compare(options.preset or list(PRESETS), max(options.repetitions, 1), costs):
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
        f"{sum(found['agrees'] for found in judged)} of {len(judged)} judged, flushes per 1000 unmaps within "
        f"{MOST_FLUSHES_APART:.0%} in {sum(found['flushes_agree'] for found in counted)} of {len(counted)}"
    )


if __name__ == "__main__":
    sys.exit(main())
