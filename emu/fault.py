"""Faults on purpose: how one is written, what it may say, and on which machines it can happen.

    KIND[:TARGET[:VALUE]][@WHEN[+FOR]]

as in `kill:cpu1@0.3s`, `slow:hypervisor×10`, `stop:timer@0.2s+0.5s`. What carries them out is emu/machine/saboteur.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

LOCKS = (
    "iova_rbtree_lock",
    "iova_magazine_lock",
    "iova_cpu_rcache.lock",
    "iova_rcache.lock",
    "iova_fq.lock",
    "iommu_bitmap_lock",
    "hypervisor.lock",
)
"""Locks that a process can be killed or stopped in, by the names that results have, written without spaces."""

TO_PROCESSES = ("kill", "stop")
"""What is done to a process by a signal."""
TO_COMPLETIONS = ("drop", "duplicate", "reorder")
"""What befalls the answer to a request."""

SYNTAX = (
    "fq-alloc",
    "kill:ROLE@TIME",
    "kill:ROLE@random",
    "kill:ROLE@holding:LOCK",
    "stop:ROLE@TIME[+FOR]",
    "stop:ROLE@random[+FOR]",
    "stop:ROLE@holding:LOCK[+FOR]",
    "slow:hypervisor×N[@TIME[+FOR]]",
    "jitter:hypervisor:TIME",
    "dead:hypervisor@TIME[+FOR]",
    "drop:completion, duplicate:completion or reorder:completion, with :1/N or @TIME",
    "late:timer:TIME",
    "early:timer:TIME",
    "disk-full:log[@TIME]",
    "small-event-ring[:N]",
)
"""Every form there is, as help and documentation show it."""

_TARGETS = {
    "fq-alloc": (),
    "kill": ("cpu", "timer", "hypervisor", "any"),
    "stop": ("cpu", "timer", "hypervisor", "any"),
    "slow": ("hypervisor",),
    "jitter": ("hypervisor",),
    "dead": ("hypervisor",),
    "drop": ("completion",),
    "duplicate": ("completion",),
    "reorder": ("completion",),
    "late": ("timer",),
    "early": ("timer",),
    "disk-full": ("log",),
    "small-event-ring": (),
}
_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_TIME = re.compile(r"\+?(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>s|ms|us|µs|ns)", re.ASCII)
_TARGET = re.compile(r"(?P<role>[a-z]+)(?P<number>\d+|\*)?", re.ASCII)
_LONGEST_S = 3600.0
_MOST_RING_SLOTS = 1 << 16
DEFAULT_RING_SLOTS = 16


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        text: as it was written.
        kind: a word of `_TARGETS`.
        role: "cpu", "timer", "hypervisor" or "any" where it is done to a process, else the target or "".
        number: of the CPU or server; None for any of them.
        factor: how many times as slow; one request in so many; slots of a ring.
        time_s: how long, or by how much.
        at_s: when, in s since the start of the load; None for all the time, or at another moment.
        at_random: at a moment drawn from the run's seed.
        holding: the lock, as in LOCKS, that the process must hold then.
        for_s: until it is over; None for ever.
    """

    text: str
    kind: str
    role: str = ""
    number: int | None = None
    factor: int = 0
    time_s: float = 0.0
    at_s: float | None = None
    at_random: bool = False
    holding: str | None = None
    for_s: float | None = None

    @property
    def is_to_process(self) -> bool:
        """Whether a signal is what does it."""
        return self.kind in TO_PROCESSES


class FaultError(ValueError):
    """What was written is no fault; the message is one line."""


def parse_fault(text: str) -> Fault:
    """Understand one fault.

    Raises:
        FaultError: it has none of the forms of SYNTAX; the message says which it should have.
    """
    what, at, when = text.partition("@")
    kind, _, rest = what.replace("×", ":x").partition(":")
    if kind not in _TARGETS:
        raise FaultError(f"{text}: there is no fault {kind!r}; there are {', '.join(_TARGETS)}")
    target, _, value = rest.partition(":") if _TARGETS[kind] else ("", "", rest)
    role, number = _target(text, kind, target)
    fields: dict[str, Any] = {
        "role": role,
        "number": number,
        **_value(text, kind, value),
        **_moment(text, kind, at, when),
    }
    return Fault(text, kind, **fields)


def _wrong(text: str, kind: str) -> FaultError:
    forms = [form for form in SYNTAX if form.startswith(kind) or (kind in form and kind in TO_COMPLETIONS)]
    return FaultError(f"{text}: must be {' or '.join(forms)}")


def _target(text: str, kind: str, target: str) -> tuple[str, int | None]:
    if not _TARGETS[kind]:
        return "", None
    found = _TARGET.fullmatch(target)
    if not found or found["role"] not in _TARGETS[kind]:
        raise FaultError(f"{text}: {kind} is done to {' or '.join(_TARGETS[kind])}, not to {target or 'nothing'!r}")
    role, number = found["role"], found["number"]
    if number is not None and (kind not in TO_PROCESSES or role not in ("cpu", "hypervisor")):
        raise FaultError(f"{text}: there is one {role}; give no number")
    if role == "cpu" and number is None:
        raise FaultError(f"{text}: say which CPU, as in cpu1, or cpu* for any")
    return role, None if number in (None, "*") else int(number)


def _value(text: str, kind: str, value: str) -> dict[str, Any]:
    if kind in ("late", "jitter", "early"):
        return {"time_s": _seconds(text, kind, value)}
    if kind == "slow":
        number = value.removeprefix("x")
        if not number.isdecimal() or not 2 <= int(number) <= 1_000_000:
            raise FaultError(f"{text}: must be slow:hypervisor×N, with N from 2 to 1000000")
        return {"factor": int(number)}
    if kind in TO_COMPLETIONS and value:
        one, _, of = value.partition("/")
        if one != "1" or not of.isdecimal() or not 1 <= int(of) <= 10**9:
            raise FaultError(f"{text}: must be {kind}:completion:1/N, one in N on average")
        return {"factor": int(of)}
    if kind == "small-event-ring":
        slots = int(value) if value.isdecimal() else 0 if value else DEFAULT_RING_SLOTS
        if slots < 1 or slots > _MOST_RING_SLOTS or slots & (slots - 1):
            raise FaultError(f"{text}: a ring has a power of two of slots, at most {_MOST_RING_SLOTS}")
        return {"factor": slots}
    if value:
        raise _wrong(text, kind)
    return {}


def _moment(text: str, kind: str, at: str, when: str) -> dict[str, Any]:
    may_have, must_have = _moments_of(kind, text)
    if not at:
        if must_have:
            raise FaultError(f"{text}: say when, as in {text}@0.3s")
        return {}
    if not may_have:
        raise _wrong(text, kind)
    start, plus, length = when.partition("+")
    fields: dict[str, Any] = {}
    if plus:
        if kind not in ("stop", "slow", "dead"):
            raise _wrong(text, kind)
        fields["for_s"] = _seconds(text, kind, length)
    if start == "random" and kind in TO_PROCESSES:
        return {"at_random": True, **fields}
    if start.startswith("holding:") and kind in TO_PROCESSES:
        lock = start.removeprefix("holding:")
        if lock not in LOCKS:
            raise FaultError(f"{text}: there is no lock {lock!r}; there are {', '.join(LOCKS)}")
        return {"holding": lock, **fields}
    return {"at_s": _seconds(text, kind, start), **fields}


def _moments_of(kind: str, text: str) -> tuple[bool, bool]:
    """Whether a fault may say when it happens, and whether it must."""
    if kind in (*TO_PROCESSES, "dead"):
        return True, True
    if kind in TO_COMPLETIONS:
        is_frequent = "1/" in text
        return not is_frequent, not is_frequent
    return kind in ("slow", "disk-full"), False


def _seconds(text: str, kind: str, written: str) -> float:
    found = _TIME.fullmatch(written)
    if not found:
        raise _wrong(text, kind)
    seconds = float(found["number"]) * _UNITS_S[found["unit"]]
    if seconds > _LONGEST_S:
        raise FaultError(f"{text}: {seconds:g} s is too long; give at most {_LONGEST_S:g} s")
    return seconds
