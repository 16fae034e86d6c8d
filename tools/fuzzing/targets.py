"""All parsers that are fuzzed, by name."""

from __future__ import annotations

from numba.core import config

from fuzzing.captures import Captures
from fuzzing.control import Control
from fuzzing.counters import Counters
from fuzzing.descriptions import CostsFile, MachineFile, Options
from fuzzing.events import EventFiles, Rings
from fuzzing.memory import Checked, Guarded
from fuzzing.target import Target

PARSERS = ("captures", "counters", "config", "costs", "options", "events", "rings", "control")


def opened(name: str) -> Target:
    """The target of that name, its memory guarded when it is compiled and checked when it is interpreted."""
    if name == Captures.name:
        return Captures(Checked() if config.DISABLE_JIT else Guarded())
    if name == Rings.name:
        return Rings(Checked() if config.DISABLE_JIT else Guarded())
    others: tuple[type[Target], ...] = (Counters, MachineFile, CostsFile, Options, EventFiles, Control)
    return next(target for target in others if target.name == name)()
