"""Throughput by number of CPUs: the same load on machines of one CPU, two, four and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emu.config import Config, DomainType, cores, load
from emu.experiment import run_whole

_FEWEST_PAIRS, _PAIRS_OF_A_CPU = 100_000, 2000
"""Of a run: some rings of the single queue, and some of each CPU's, so that caches which are cold at first count for
little."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a machine did.

    Attributes:
        domain, engine, cpus: which machine.
        pairs_per_s: of all CPUs together.
    """

    domain: str
    engine: str
    cpus: int
    pairs_per_s: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """Machines to measure.

    Attributes:
        preset: their hypervisor. domains: what they run, in turn.
        cpus: how many each has, in turn.
        with_processes: also as real processes, those for which there are cores.
        overrides: (section, key, value) of each.
    """

    preset: str
    domains: Sequence[DomainType]
    cpus: Sequence[int]
    with_processes: bool = False
    overrides: Sequence[tuple[str, str, Any]] = ()

    def configs(self) -> Iterator[Config]:
        """The whole description of each, in order.

        Raises:
            ConfigError: something in it is wrong.
        """
        for domain in self.domains:
            for engine in ("sim", "processes") if self.with_processes else ("sim",):
                for cpus in self.cpus:
                    config = self._config(domain, engine, cpus)
                    if engine == "sim" or config.machine.cpus + config.servers <= cores():
                        yield config

    def _config(self, domain: DomainType, engine: str, cpus: int) -> Config:
        # The oracle would take a part of the throughput.
        chosen = [
            *(("machine", "engine", engine), ("machine", "cpus", cpus), ("machine", "check", False)),
            ("machine", "ops", max(_FEWEST_PAIRS, _PAIRS_OF_A_CPU * cpus)),
            *(("workload", "name", "map_benchmark"), ("domain", "types", [domain])),
        ]
        return load(preset=self.preset, overrides=[*chosen, *self.overrides])


def measured(
    plan: Plan, on_compile: Callable[[int, int], None], on_progress: Callable[[float], None]
) -> Iterator[Point]:
    """Run all machines of a plan; each point comes when it is known.

    Args:
        plan: what to run.
        on_compile: told (done, known) while code is compiled.
        on_progress: told what part of all has been done, 0 to 1.

    Raises:
        ConfigError: a description is wrong.
        MachineError: a machine cannot be made.
        DeathError: a process of a machine died.
        KeyboardInterrupt: the user stopped it.
    """
    configs = list(plan.configs())
    for done, config in enumerate(configs, start=1):
        (domain,) = config.domain.types
        outcome = run_whole(config, on_compile=on_compile)
        on_progress(done / len(configs))
        yield Point(domain, config.machine.engine, config.machine.cpus, float(outcome.run["pairs_per_s"]))
