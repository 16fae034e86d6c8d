"""Running a claim's machines, round after round, and judging what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from emu.analysis.claims import (
    CANNOT_BE_SHOWN,
    DOES_NOT_HOLD,
    HOLDS,
    Finding,
    Interval,
    best_fit,
    growth_exponent,
    judged,
    paired_ratio,
    range_text,
)
from emu.claims.claim import Claim, Curve, Growth, Machine, Ratio, Sections
from emu.config import Config, cores
from emu.experiment import run_whole


class Bench:
    """Runs machines on one engine.

    Args:
        engine: "sim" or "processes".
        rounds: instead of what the claims say, or None.
        changes: values said for every machine, over those of files and presets.
        on_compile: told (done, known) while code is compiled.
        on_progress: told what part of all has been done, 0 to 1.
    """

    def __init__(
        self,
        engine: str,
        rounds: int | None,
        changes: Sections,
        on_compile: Callable[[int, int], None],
        on_progress: Callable[[float], None],
    ) -> None:
        self.engine = engine
        self._rounds = rounds
        self._changes = changes
        self._on_compile = on_compile
        self._on_progress = on_progress
        self._done = 0
        self._planned = 0
        # Several claims look at the same machine. On virtual clocks it does the same each time.
        self._known: dict[str, float] = {}

    def findings(self, claims: Iterable[Claim]) -> Iterator[Finding]:
        """Measure claims in turn; each finding comes when it is known.

        Raises:
            ConfigError: a description is wrong.
            MachineError: a machine cannot be made.
            DeathError: a process of a machine died.
            KeyboardInterrupt: the user stopped it.
        """
        claims = list(claims)
        self._planned = sum(self._runs_of(claim) for claim in claims)
        for claim in claims:
            obstacle = self._obstacle(claim)
            if obstacle:
                names = [part.name for parts in (claim.ratio, claim.curve, claim.growth) for part in parts]
                yield from (Finding(claim.id, name, "", None, "", CANNOT_BE_SHOWN, obstacle) for name in names)
                continue
            yield from self._ratios(claim)
            if claim.curve:
                yield from self._curves(claim)
            yield from (self._growth(claim, growth) for growth in claim.growth)

    def _obstacle(self, claim: Claim) -> str | None:
        """Why a claim cannot be measured on this machine."""
        if self.engine not in claim.engines:
            return f"needs --engine {' or '.join(claim.engines)}"
        if self.engine == "sim":
            return None
        configs = [self._config(claim, machine, 1) for ratio in claim.ratio for machine in (ratio.of, ratio.to)]
        needed = max((config.machine.cpus + config.servers for config in configs), default=1)
        return f"needs {needed} cores, here are {cores()}; try --engine sim" if needed > cores() else None

    def _runs_of(self, claim: Claim) -> int:
        if self._obstacle(claim):
            return 0
        rounds = self._rounds_of(claim)
        points = len(claim.combinations) * sum(len(curve.cpus) for curve in claim.curve)
        return 2 * rounds * len(claim.ratio) + points + rounds * sum(len(growth.cpus) for growth in claim.growth)

    def _rounds_of(self, claim: Claim) -> int:
        return self._rounds or claim.rounds

    def _config(self, claim: Claim, machine: Machine, seed: int, *more: Sections) -> Config:
        # The oracle watches every other run; here it would take time, and on real clocks a part of the throughput.
        chosen: Sections = {"machine": {"engine": self.engine, "seed": seed, "check": False}}
        return claim.config_of(machine, chosen, *more, self._changes)

    def _ratios(self, claim: Claim) -> Iterator[Finding]:
        rounds = self._rounds_of(claim)
        rates: list[list[tuple[float, float]]] = [[] for _ in claim.ratio]
        for seed in range(1, rounds + 1):
            if self.engine != "sim":
                self._known.clear()
            for ratio, found in zip(claim.ratio, rates, strict=True):
                found.append((self._rate(claim, ratio.of, seed), self._rate(claim, ratio.to, seed)))
        for ratio, found in zip(claim.ratio, rates, strict=True):
            yield _judge_ratio(claim, ratio, found)

    def _rate(self, claim: Claim, machine: Machine, seed: int, *more: Sections) -> float:
        config = self._config(claim, machine, seed, *more)
        key = config.to_toml()
        if key not in self._known:
            self._known[key] = float(run_whole(config, on_compile=self._on_compile).run["pairs_per_s"])
        self._advance()
        return self._known[key]

    def _advance(self) -> None:
        self._done += 1
        self._on_progress(self._done / self._planned)

    def _curves(self, claim: Claim) -> Iterator[Finding]:
        """All curves with the constants that come closest to the points of all of them."""
        combinations = claim.combinations
        per_cpu = [[self._points(claim, curve, chosen) for curve in claim.curve] for chosen in combinations]
        published = [point for curve in claim.curve for point in curve.published.values()]
        best = best_fit(np.array([np.concatenate(curves) for curves in per_cpu]), np.array(published))
        fitted = {
            f"{section}.{key}": value for section, keys in combinations[best].items() for key, value in keys.items()
        }
        for curve, measured in zip(claim.curve, per_cpu[best], strict=True):
            yield _judge_curve(claim, curve, measured, fitted)

    def _points(self, claim: Claim, curve: Curve, chosen: Sections) -> list[float]:
        """Thousand pairs per CPU and second, by number of CPUs."""
        return [
            self._rate(claim, curve.machine, 1, {"machine": {"cpus": cpus}}, chosen) / (1000 * cpus)
            for cpus in curve.cpus
        ]

    def _growth(self, claim: Claim, growth: Growth) -> Finding:
        sizes, times_ns = [], []
        for seed in range(1, self._rounds_of(claim) + 1):
            for cpus in growth.cpus:
                config = self._config(claim, growth.machine, seed, {"machine": {"cpus": cpus}})
                run = run_whole(config, on_compile=self._on_compile).run
                self._advance()
                if run["flushes"]["timeout"]:
                    sizes.append(float(cpus))
                    times_ns.append(float(run["flush_timeout_ns"]["mean"]))
        exponent = growth_exponent(sizes, times_ns)
        verdict, why = judged(exponent, growth.at_least, None)
        medians = {size: float(np.median([t for s, t in zip(sizes, times_ns, strict=True) if s == size]))
                   for size in dict.fromkeys(sizes)}  # fmt: skip
        if verdict != HOLDS and growth.beyond_model:
            verdict, why = CANNOT_BE_SHOWN, growth.beyond_model
        said = ", ".join(f"{ns / 1000:.0f} µs on {size:.0f}" for size, ns in medians.items())
        return Finding(
            claim.id,
            growth.name,
            f"exponent {range_text(growth.at_least, None)}",
            exponent,
            "",
            verdict,
            f"{why}: {said} CPUs",
            {"median_ns": {f"{size:.0f}": ns for size, ns in medians.items()}},
        )


def _judge_ratio(claim: Claim, ratio: Ratio, found: list[tuple[float, float]]) -> Finding:
    of, to = zip(*found, strict=True)
    measured = paired_ratio(of, to)
    verdict, why = judged(measured, ratio.at_least, ratio.at_most)
    expected = range_text(ratio.at_least, ratio.at_most, " ×")
    details = {"of_pairs_per_s": list(of), "to_pairs_per_s": list(to)}
    return Finding(claim.id, ratio.name, expected, measured, " ×", verdict, why, details)


def _judge_curve(claim: Claim, curve: Curve, measured: list[float], fitted: dict[str, float]) -> Finding:
    ratios = np.array(measured) / np.array(list(curve.published.values()))
    is_close = bool((np.abs(ratios - 1) <= curve.tolerance).all())
    said = f"{' and '.join(f'{key} = {value:g}' for key, value in fitted.items())} fitted"
    verdict = HOLDS if is_close else CANNOT_BE_SHOWN if curve.beyond_model else DOES_NOT_HOLD
    worst = Interval(float(ratios[np.abs(ratios - 1).argmax()]), float(ratios.min()), float(ratios.max()))
    points = [
        {"cpus": cpus, "published": published, "measured": round(found, 2)}
        for cpus, published, found in zip(curve.cpus, curve.published.values(), measured, strict=True)
    ]
    return Finding(
        claim.id,
        curve.name,
        f"each within ±{100 * curve.tolerance:g} %",
        worst,
        " ×",
        verdict,
        said if is_close or not curve.beyond_model else f"{curve.beyond_model} ({said})",
        {"points": points, "fitted": fitted},
    )
