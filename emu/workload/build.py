"""From the description of a run to the op programs of its CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from emu.config import Config, ConfigError, WorkloadConfig
from emu.workload.ism import ism_workload
from emu.workload.map_benchmark import map_benchmark_workload
from emu.workload.nic import nic_workload
from emu.workload.nvme import nvme_workload
from emu.workload.program import Workload
from emu.workload.side_by_side import side_by_side

MAX_UNDER_WAY = 1 << 23
"""Most mappings a workload may keep at a time, over all CPUs. Each takes three to five operations of 32 bytes, so this
is about 1 GiB."""

_MOST_PAIRS, _FEWEST_PAIRS = 4096, 512
_PAIRS_OF_ALL = 1 << 21
"""Pairs in the loop of each CPU: enough to mix sizes well, few enough that 4096 CPUs need 140 MB."""


class _Kind(NamedTuple):
    build: Callable[[Config, int], Workload]
    under_way: Callable[[WorkloadConfig], int]


_KINDS = {
    "map_benchmark": _Kind(map_benchmark_workload, lambda _load: 1),
    "nvme": _Kind(nvme_workload, lambda load: load.queue_depth),
    "nic": _Kind(nic_workload, lambda load: load.ring + min(load.batch, load.ring)),
    "ism": _Kind(ism_workload, lambda load: load.dmbs),
}


def build_workload(config: Config) -> Workload:
    """Build the op programs that `config.workload` names, one for each CPU of `config.machine`, or those of functions.

    The same configuration gives the same arrays: every CPU draws from its own child of the seed.

    Raises:
        ConfigError: so many mappings under way that the programs would need more than about 1 GiB, or more than the
            device can have.
    """
    if config.functions > 1:
        return side_by_side([_build(config.of_function(number)) for number in range(config.functions)])
    return _build(config.of_function(0) if config.function else config)


def _build(config: Config) -> Workload:
    name, cpus = config.workload.name, config.machine.cpus
    if cpus == 0:
        return Workload("idle", [], 0)
    kind = _KINDS[name]
    under_way = cpus * kind.under_way(config.workload)
    if under_way > MAX_UNDER_WAY:
        raise ConfigError(
            f"workload.name: {name} would keep {under_way} mappings under way on {cpus} CPUs, above {MAX_UNDER_WAY};"
            " take fewer CPUs, or a smaller queue_depth or ring"
        )
    return kind.build(config, min(_MOST_PAIRS, max(_FEWEST_PAIRS, _PAIRS_OF_ALL // cpus)))
