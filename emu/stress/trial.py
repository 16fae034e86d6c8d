"""One machine of a stress run: run it, and say what is wrong with how it came out."""

from __future__ import annotations

import time
from dataclasses import dataclass

from emu.config import Config, ConfigError, load
from emu.experiment import MachineError, compile_machine, policy_of, run_machine
from emu.stress.draw import Overrides
from emu.workload.build import build_workload

_LONGEST_HANG_S = 2.0
_CROWD_S = 3.0
"""More for starting and ending on a machine that has other things to do."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a machine came out.

    Attributes:
        complaint: what is wrong, as one line; None when all is well.
        interrupted: the user has stopped it.
        deaths: how many of its processes died.
        ops: map+unmap pairs done.
    """

    complaint: str | None = None
    interrupted: bool = False
    deaths: int = 0
    ops: int = 0


def resolve(overrides: Overrides, policy: str | None = None) -> Config | None:
    """The description, or None when it contradicts itself, or has no queue that would ask the policy."""
    preset = next(value for section, key, value in overrides if (section, key) == ("hypervisor", "preset"))
    try:
        config = load(None, preset, [item for item in overrides if item[:2] != ("hypervisor", "preset")])
        if policy is None:
            return config
        return load(config, overrides=[("domain", "policy", policy)]) if config.lazy_types else None
    except ConfigError:
        return None


def attempt(config: Config) -> Trial:
    """Run one machine and look at it with all checks there are."""
    (domain,) = config.domain.types
    # Compiling is no part of how long it ran.
    try:
        compile_machine(config.machine, policy=policy_of(config))
    except ConfigError as error:
        return Trial(f"it did not start: {error}")
    began = time.monotonic()
    try:
        outcome = run_machine(config, domain, build_workload(config))
    except (MachineError, ConfigError) as error:
        return Trial(f"it did not start: {error}")
    took_s = time.monotonic() - began
    run = outcome.run
    complaint = _complaint(config, run)
    # Virtual time passes as fast as it may.
    if not complaint and config.machine.engine != "sim":
        late_s = took_s - config.machine.seconds
        complaint = f"it ended {late_s:.1f} s late" if late_s > _LONGEST_HANG_S + _CROWD_S else None
    return Trial(complaint, outcome.interrupted, len(run["deaths"]), run["ops"])


def _complaint(config: Config, run: dict[str, object]) -> str | None:
    kinds = {fault.kind for fault in config.machine.parsed_faults}
    if run["violations"]:
        return f"violations: {run['violations_by_kind']}"
    if run["died"] and "kill" not in kinds:
        return f"died: {run['died']}"
    books = run["conservation"]
    if isinstance(books, dict) and not books["holds"]:
        return f"the books do not balance: {books}"
    if books is None and not run["died"]:
        return "there are no books, and nobody has died"
    return None
