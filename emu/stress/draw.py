"""Random descriptions of machines, for hypothesis to draw and to make smaller: the first choice is always the plainest.

A description is a list of (section, key, value), as the command line's options are. What contradicts itself is drawn
too, and left out by the caller: the description's own checks know best.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from emu.config import DomainType
from emu.fault import LOCKS

Overrides = list[tuple[str, str, Any]]

_DOMAINS: tuple[DomainType, ...] = ("DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict", "identity")
_LONGEST_S = {"processes": 0.2, "threads": 0.2, "sim": 0.02}


def _times(most_s: float) -> st.SearchStrategy[str]:
    return st.integers(0, round(most_s * 900)).map(lambda ms: f"{ms}ms")


def _sim_faults(most_s: float) -> st.SearchStrategy[str]:
    """Faults that every engine can have, none of which leaves a CPU waiting for ever."""
    return st.one_of(
        st.just("fq-alloc"),
        st.integers(2, 10).map(lambda factor: f"slow:hypervisor×{factor}"),
        st.integers(1, 100).map(lambda us: f"jitter:hypervisor:{us}us"),
        st.integers(1, 30).map(lambda ms: f"late:timer:{ms}ms"),
        st.integers(1, 30).map(lambda ms: f"early:timer:{ms}ms"),
        st.sampled_from([1, 3, 50]).map(lambda of: f"reorder:completion:1/{of}"),
        st.tuples(_times(most_s / 2), _times(most_s / 4)).map(lambda t: f"dead:hypervisor@{t[0]}+{t[1]}"),
    )


def _process_faults(most_s: float) -> st.SearchStrategy[str]:
    roles = st.sampled_from(["cpu*", "timer", "hypervisor", "any"])
    return st.one_of(
        roles.map(lambda role: f"kill:{role}@random"),
        st.tuples(roles, _times(most_s)).map(lambda t: f"kill:{t[0]}@{t[1]}"),
        st.sampled_from(LOCKS).map(lambda lock: f"kill:cpu*@holding:{lock}"),
        st.tuples(roles, _times(most_s / 2), _times(most_s / 2)).map(lambda t: f"stop:{t[0]}@{t[1]}+{t[2]}"),
        st.tuples(st.sampled_from(LOCKS), _times(most_s / 4)).map(lambda t: f"stop:cpu*@holding:{t[0]}+{t[1]}"),
    )


def _actions(most_s: float) -> st.SearchStrategy[list[dict[str, Any]]]:
    at_s = st.integers(0, round(most_s * 900)).map(lambda ms: ms / 1000)
    switch = st.builds(lambda at, to: {"at_s": at, "type": to}, at_s, st.sampled_from(["DMA-FQ", "DMA-SQ", "DMA"]))
    driver = st.builds(lambda at, what: {"at_s": at, "driver": what}, at_s, st.sampled_from(["unbind", "bind"]))
    return st.lists(st.one_of(switch, driver), max_size=4)


@st.composite
def descriptions(draw: st.DrawFn) -> Overrides:
    """Options of one machine with one domain, its load short."""
    chosen: Overrides = []

    def choose(section: str, key: str, strategy: st.SearchStrategy[Any]) -> Any:
        value = draw(strategy)
        if value is not None:
            chosen.append((section, key, value))
        return value

    engine = choose("machine", "engine", st.sampled_from(["sim", "processes", "threads"]))
    most_s = _LONGEST_S[engine]
    domain = draw(st.sampled_from(_DOMAINS))
    chosen.append(("domain", "types", [domain]))
    choose("machine", "cpus", st.integers(1, 8 if engine == "sim" else 4))
    choose("machine", "seed", st.integers(0, 1 << 20))
    chosen.append(("machine", "seconds", most_s))
    choose("hypervisor", "preset", st.sampled_from(["kvm", "zvm", "lpar", "bare-metal", "smmuv3"]))
    choose("hypervisor", "service", st.sampled_from([None, "process", "inline", "cmdq"]))
    choose("hypervisor", "servers", st.sampled_from([None, 1, 2, 3]))
    choose("hypervisor", "queue_limit", st.sampled_from([None, 1, 4]))
    if ("hypervisor", "service", "cmdq") in chosen:
        choose("hypervisor", "cmdq_entries", st.sampled_from([None, 4, 32]))
        choose("hypervisor", "cmdq_patched", st.sampled_from([None, True]))
    choose("hypervisor", "mapping_limit", st.sampled_from([None, 300, 5000]))
    if domain in ("DMA", "DMA-FQ", "DMA-SQ"):
        choose("machine", "timeline", _actions(most_s) if domain == "DMA" else st.none())
    if domain in ("DMA-FQ", "DMA-SQ"):
        choose("domain", "fq_size", st.sampled_from([None, 2, 8, 64, 1024]))
        choose("domain", "fq_timeout_ms", st.sampled_from([None, 1.0, 5.0]))
        choose("domain", "on_overrun", st.sampled_from([None, "wait"]))
    choose("domain", "aperture_mb", st.sampled_from([256, 64, 16]))
    choose("domain", "depot_magazines", st.sampled_from([None, 1, 32]))
    choose("domain", "iova_ranges", st.sampled_from([1 << 16, 1 << 12]))
    load = choose("workload", "name", st.sampled_from(["map_benchmark", "nvme", "nic", "ism"]))
    if load == "nvme":
        choose("workload", "queue_depth", st.sampled_from([1, 8, 32]))
        choose("workload", "completion", st.sampled_from([None, "other"]))
    if load == "map_benchmark":
        choose("workload", "granule", st.integers(1, 64))
    faults = st.lists(_sim_faults(most_s), max_size=2)
    if engine == "processes":
        faults = st.lists(st.one_of(_sim_faults(most_s), _process_faults(most_s)), max_size=3)
        choose("machine", "on_death", st.sampled_from([None, "continue"]))
        choose("machine", "restart", st.sampled_from([None, ["hypervisor", "timer"]]))
    choose("machine", "faults", faults)
    return chosen
