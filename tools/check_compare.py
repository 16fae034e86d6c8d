"""Whether `emu compare` errs as rarely as it says: equals that it calls different, differences that it does not see.

On the engine sim, whose loads are drawn from a seed. So that equals do not measure the same, the candidates of a trial
draw from seeds of their own: their numbers jitter independently, as those of two runs on a computer do.

    equal    one machine beside itself
    planted  one machine beside one whose every cost, and so every run, takes 5 % longer

`--processes` puts machines of real processes beside themselves, on this computer and with whatever else it does.

`--rules` asks the statistics alone, on drawn numbers of several distributions, with thousands of trials, and puts the
interval of a bootstrap beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import emu
from emu.analysis.paired import LEVEL, difference, plan_of

EQUAL_AT_LEAST = 95
PLANTED_AT_LEAST = 90
_SLOWER = 1.05
_APART = 1_000_000
"""Seeds of one candidate and the next; rounds add small numbers."""
_SMALL = {"domain.aperture_mb": 64, "domain.iova_ranges": 4096}
_MACHINES: dict[str, dict[str, Any]] = {
    "DMA": {"domain": "DMA", "ops": 60, "set": _SMALL},
    # No timer: its ticks do not take longer on a slower machine.
    "DMA-FQ": {"domain": "DMA-FQ", "ops": 200, "fq_size": 16, "fq_timeout": 1000.0, "set": _SMALL},
}
"""Runs so short that the sizes drawn, and how many flushes fit in, make them differ by percents."""


def slower(config: emu.Config, factor: float) -> emu.Config:
    """The same machine with everything that its steps and its flushes cost longer."""
    times = {
        f"{section}.{name}": value * factor
        for section, values in (("costs", config.costs), ("hypervisor", config.hypervisor))
        for name, value in values
        # Not how exactly virtual clocks are kept.
        if name.endswith("_ns") and name != "slack_ns"
    }
    return emu.load_config(config, set=times)


def trial(machine: dict[str, Any], number: int, factor: float) -> dict[str, Any]:
    """Compare one machine with itself, or with a slower one; what is said of the second."""
    config = emu.load_config(engine="sim", cpus=2, seed=number * 2 * _APART, **machine)
    other = emu.load_config(slower(config, factor), seed=(number * 2 + 1) * _APART)
    return _second(config, other)


def _second(*machines: emu.Config) -> dict[str, Any]:
    """What is said of the second of two machines."""
    found = emu.compare(*machines)
    if found.exit_code:
        raise SystemExit(f"check_compare: {'; '.join(found.messages)}")
    return found.candidates[1]


def measured(trials: int) -> bool:
    """Put machines of processes beside themselves, whose times this computer makes differ; whether few seem to."""
    begun = time.monotonic()
    settings: dict[str, Any] = {"cpus": 1, "seconds": 0.05, "domain": "DMA-FQ", "set": _SMALL}
    config = emu.load_config(engine="processes", **settings)
    # On a busy computer a machine may not end in time, which is told and ends that comparison.
    compared = [emu.compare(config, config) for _ in range(trials)]
    found = [one.candidates[1] for one in compared if not one.exit_code]
    if not found:
        raise SystemExit(f"check_compare: no comparison came to its end; {'; '.join(compared[0].messages)}")
    right = sum(not one["differs"] for one in found)
    jitter = np.median([one["spread"] for one in found])
    took_s = time.monotonic() - begun
    print(f"processes equal no difference in {right} of {len(found)}; jitter {jitter:.1%}; {took_s:.0f} s")
    return right * 100 >= EQUAL_AT_LEAST * len(found)


def simulated(trials: int) -> bool:
    """Run the trials of machines; whether there were as few errors as there may be."""
    good = True
    for name, machine in _MACHINES.items():
        for what, factor, fewest in (("equal", 1.0, EQUAL_AT_LEAST), ("planted", _SLOWER, PLANTED_AT_LEAST)):
            begun = time.monotonic()
            found = [trial(machine, number, factor) for number in range(trials)]
            right = sum(bool(one["differs"]) == (factor > 1) for one in found)
            inside = sum(one["low"] <= 1 / factor <= one["high"] for one in found)
            jitter = np.median([one["spread"] for one in found])
            ratio = np.median([one["ratio"] for one in found])
            said = "no difference" if factor == 1 else "difference"
            print(
                f"{name:7} {what:8} {said} in {right} of {trials}; ratio {ratio:.4f} (true {1 / factor:.4f}, in the "
                f"interval {inside} times); jitter {jitter:.1%}; {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            good &= right * 100 >= fewest * trials
    return good


def _distributions(draw: np.random.Generator) -> Iterator[tuple[str, Callable[[int], np.ndarray]]]:
    yield "normal", lambda n: np.exp(0.02 * draw.standard_normal(n))
    yield "outliers", lambda n: np.exp(0.02 * draw.standard_t(2, n))
    yield "two-humped", lambda n: np.where(draw.random(n) < 0.5, 1.0, 0.95) * np.exp(0.005 * draw.standard_normal(n))
    yield "quantised", lambda n: np.round(30 * np.exp(0.05 * draw.standard_normal(n))) / 30
    yield "one-sided", lambda n: 1 / (1 + 0.02 * draw.exponential(size=n))


def _percentile_bootstrap(logs: np.ndarray, draw: np.random.Generator) -> bool:
    means = logs[draw.integers(0, len(logs), (1000, len(logs)))].mean(axis=1)
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return not low <= 0 <= high


def _stopped(sample: Callable[[int], np.ndarray], factor: float, until: float) -> bool:
    plan = plan_of(96, LEVEL, looks_on_the_way=True)
    one, other = sample(96), sample(96) * factor
    for look in plan.looks:
        found = difference(one[:look], other[:look], plan.level)
        if found.half_width <= until:
            break
    return found.is_found


def rules(trials: int) -> None:
    """Put the rule beside others, on drawn numbers: how often equals are called different, in percent."""
    draw = np.random.default_rng(1)
    print(f"equals called different, % of {trials} trials of 12 rounds, meant to be {LEVEL:.0%} at most; 5 % seen")
    print(f"{'':11} {'emu compare':>12} {'--until 2%':>11} {'bootstrap':>10} {'5 % seen':>9} {'until, seen':>12}")
    for name, sample in _distributions(draw):
        wrong, stopped, bootstrap, seen, seen_stopped = 0, 0, 0, 0, 0
        for _ in range(trials):
            one, other = sample(12), sample(12)
            wrong += difference(one, other, LEVEL).is_found
            bootstrap += _percentile_bootstrap(np.log(one / other), draw)
            stopped += _stopped(sample, 1.0, 0.02)
            seen += difference(one, other * 1.05, LEVEL).is_found
            seen_stopped += _stopped(sample, 1.05, 0.02)
        parts = [100 * count / trials for count in (wrong, stopped, bootstrap, seen, seen_stopped)]
        print("{:11} {:12.2f} {:11.2f} {:10.2f} {:9.1f} {:12.1f}".format(name, *parts), flush=True)


def main() -> int:
    """Run the trials; 1 where there were too many errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=None, help="of each kind; default 100, of --rules 4000")
    parser.add_argument("--rules", action="store_true", help="the statistics alone")
    parser.add_argument("--processes", action="store_true", help="equals that are real processes, on this computer")
    arguments = parser.parse_args()
    if arguments.rules:
        rules(arguments.trials or 4000)
        return 0
    kind = measured if arguments.processes else simulated
    return 0 if kind(arguments.trials or 100) else 1


if __name__ == "__main__":
    sys.exit(main())
