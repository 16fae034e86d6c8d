"""The options that commands share, and how they become a `Config`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import Parameter, Token

from emu.cli.failure import Failure
from emu.config import Config, ConfigError, DomainType, load
from emu.fault import SYNTAX
from emu.policy import PolicyError, find_policy, read_policy

Override = tuple[str, str, Any]
"""(section, key, value) of one value given on the command line."""

_PRESET = ("hypervisor", "preset")


def whole_number(_type: type, tokens: Sequence[Token]) -> int:
    """Convert what was typed; the library would cut 1.5 down to 1."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f'"{tokens[0].value}" is not a whole number') from None


_SWITCH = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>ms|s):(?P<what>.+)", re.ASCII)
_SECONDS = {"s": 1.0, "ms": 1e-3}
_DRIVER = ("unbind", "bind")

_FLAGS = {
    "preset": _PRESET,
    "cpus": ("machine", "cpus"),
    "domain": ("domain", "types"),
    "engine": ("machine", "engine"),
    "fq_size": ("domain", "fq_size"),
    "fq_timeout": ("domain", "fq_timeout_ms"),
    "on_overrun": ("domain", "on_overrun"),
    "policy": ("domain", "policy"),
    "workload": ("workload", "name"),
    "seconds": ("machine", "seconds"),
    "ops": ("machine", "ops"),
    "seed": ("machine", "seed"),
    "switch": ("machine", "timeline"),
    "bug": ("domain", "bugs"),
    "fault": ("machine", "faults"),
    "check": ("machine", "check"),
    "record": ("machine", "record"),
    "breakdown": ("machine", "breakdown"),
    "devices": ("machine", "devices"),
    "on_death": ("machine", "on_death"),
    "restart": ("machine", "restart"),
}
"""The option that sets each key, by its name in Python."""


SetOption = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative=(),
        metavar="SECTION.KEY=VALUE",
        help="Set any value of the description, as in --set hypervisor.walk_ns=2.5; repeatable.",
    ),
]
JsonOption = Annotated[bool, Parameter(negative=(), help="Print one JSON object instead of the table.")]
QuietOption = Annotated[bool, Parameter(negative=(), help="Show no progress; default shown on a terminal only.")]


@Parameter(name="*")
@dataclass(frozen=True)
class MachineOptions:
    """What the machine is."""

    preset: Annotated[
        str | None,
        Parameter(
            help="Hypervisor preset: kvm, zvm, lpar, bare-metal, smmuv3, virtio-iommu or vtd-caching; "
            "default kvm, bare-metal to replay x86."
        ),
    ] = None
    cpus: Annotated[
        int | None,
        Parameter(
            converter=whole_number,
            help="Emulated CPUs, 1 to 4096; default 2 to 4, as cores allow, or as many as were recorded.",
        ),
    ] = None
    domain: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="Domain type to run: DMA, DMA-FQ, DMA-SQ, s390-lazy, s390-strict or identity; repeat it to run "
            "several in turn under the same load; default all but s390-strict, or what the recorded kernel had.",
        ),
    ] = None
    engine: Annotated[
        str | None,
        Parameter(
            help="What an emulated CPU is: processes or threads; or sim, virtual clocks, for 1 to 4096 CPUs on any "
            "machine; default processes."
        ),
    ] = None
    costs: Annotated[
        Path | None,
        Parameter(
            metavar="FILE",
            help="What the steps of a CPU cost on virtual clocks (--engine sim), as emu doctor --calibrate writes it.",
        ),
    ] = None
    fq_size: Annotated[
        int | None,
        Parameter(
            converter=whole_number,
            help="Entries of a flush queue, a power of two; default 256 for DMA-FQ, 32768 for DMA-SQ.",
        ),
    ] = None
    fq_timeout: Annotated[
        float | None,
        Parameter(metavar="MS", help="Timeout of a flush queue, in ms; default 10 for DMA-FQ, 1000 for DMA-SQ."),
    ] = None
    on_overrun: Annotated[
        str | None,
        Parameter(
            help="An append to a full ring: kernel loses the ring's IOVAs as Linux does, wait looks again; "
            "default kernel."
        ),
    ] = None
    policy: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="What decides about flush queues instead of Linux: a policy's Python file, or the name of one that "
            "comes with emu: adaptive_timeout, batching, free_too_early, kernel or per_node_queues; see "
            "docs/policies.md.",
        ),
    ] = None
    switch: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            metavar="TIME:TYPE",
            help="Switch the domain's type while the load runs, as in --switch 0.5s:DMA-FQ; with unbind or bind for "
            "TYPE, take the driver from the device or give it back; repeatable; --domain is then DMA by default.",
        ),
    ] = None
    bug: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            metavar="NAME",
            help="Have a bug on purpose, which the run's checks find: init-fq-before-type, queue-before-type or "
            "reuse-unflushed; repeatable; default none.",
        ),
    ] = None
    fault: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            metavar="FAULT",
            help="Have something fail on purpose, as in --fault kill:cpu1@0.3s; repeatable; default none. One of: "
            f"{'; '.join(SYNTAX)}. ROLE is cpuN, cpu*, timer, hypervisor or any; TIME is as 0.3s or 20ms. See "
            "docs/faults.md.",
        ),
    ] = None
    on_death: Annotated[
        str | None,
        Parameter(
            help="When the process of a CPU dies: stop the machine, or continue with the others, which take over its "
            "locks, and the timer what it had cached; default stop."
        ),
    ] = None
    restart: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            metavar="ROLE",
            help="Start the process anew when it dies, hypervisor or timer; repeatable; default neither.",
        ),
    ] = None
    check: Annotated[
        bool | None,
        Parameter(help="Watch every operation for violations, at some percent of the throughput; default yes."),
    ] = None
    devices: Annotated[
        int | None,
        Parameter(
            converter=whole_number,
            help="Devices that do DMA while the load runs, also to what was unmapped; what gets through is counted; "
            "default 0.",
        ),
    ] = None
    record: Annotated[
        bool | None,
        Parameter(help="Record every operation to the run's folder, for emu logs; default no."),
    ] = None
    breakdown: Annotated[
        bool | None,
        Parameter(help="Measure where the time of maps and unmaps goes, which costs some of it; default no."),
    ] = None
    set_: SetOption = None


@Parameter(name="*")
@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    out: Annotated[
        Path | None, Parameter(help="New or empty folder for the results; default a new one in emu-runs/.")
    ] = None
    json: JsonOption = False
    quiet: QuietOption = False


def parse_setting(text: str) -> Override:
    """Take `section.key=value` apart; the value is read as TOML, and bare words are strings.

    Raises:
        Failure: it has another form.
    """
    place, equals, written = text.partition("=")
    section, dot, key = place.strip().partition(".")
    if not (equals and dot and section and key):
        raise Failure(f"--set {text}: needs the form section.key=value, as in --set machine.cpus=4")
    written = written.strip()
    try:
        table = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        if not written or written[0] in "[{\"'" or "\n" in written:
            raise Failure(f"--set {text}: {written or 'nothing'} is not a TOML value; quote it or close it") from None
        return section, key, written
    except (ValueError, RecursionError):  # also integers of thousands of digits, and arrays as deep
        raise Failure(f"--set {text:.80}: no value is that large") from None
    if len(table) != 1:
        raise Failure(f"--set {section}.{key}: takes one value; repeat --set for another")
    return section, key, table["value"]


def parse_switch(text: str) -> dict[str, Any]:
    """Take `TIME:TYPE` apart into an action of `machine.timeline`.

    Raises:
        Failure: it has another form, or there is no such type.
    """
    found = _SWITCH.fullmatch(text)
    if not found:
        raise Failure(f"--switch {text}: needs the form TIME:TYPE with a time in s or ms, as in --switch 0.5s:DMA-FQ")
    what, at_s = found["what"], float(found["number"]) * _SECONDS[found["unit"]]
    if what in _DRIVER:
        return {"at_s": at_s, "driver": what}
    types = get_args(DomainType)
    if what not in types:
        raise Failure(f"--switch {text}: must be {', '.join(types)}, {' or '.join(_DRIVER)}, not {what!r}")
    return {"at_s": at_s, "type": what}


def key_of(option: str) -> tuple[str, str] | None:
    """The section and key that an option sets, by its name in Python; None where there is no such option."""
    return _FLAGS.get(option)


def overrides_of(options: MachineOptions, **others: Any) -> dict[tuple[str, str], tuple[str, Any]]:
    """Every value given on the command line.

    Args:
        options: those that commands share.
        others: a command's own, by the names of `_FLAGS`; None was not given.

    Returns:
        (section, key) → (the option as typed, value).

    Raises:
        Failure: two options set the same value, or contradict each other.
    """
    typed: dict[tuple[str, str], tuple[str, Any]] = {}
    for name, (section, key) in _FLAGS.items():
        value = others.get(name, getattr(options, name, None))
        if name == "switch" and value is not None:
            value = [parse_switch(text) for text in value]
        if value is not None:
            typed[section, key] = (f"--{name.replace('_', '-')}", value)
    for text in options.set_ or ():
        section, key, value = parse_setting(text)
        if (section, key) in typed:
            raise Failure(f"{typed[section, key][0]} and --set {section}.{key} both set {section}.{key}; give one")
        typed[section, key] = (f"--set {section}.{key}", value)
    if ("machine", "ops") in typed and ("machine", "seconds") in typed:
        ops, seconds = typed["machine", "ops"][0], typed["machine", "seconds"][0]
        raise Failure(f"{ops} and {seconds} contradict each other; give one")
    return typed


def configured(
    machine_file: Path | Config | None,
    typed: dict[tuple[str, str], tuple[str, Any]],
    *,
    default_preset: str | None = None,
    costs_file: Path | None = None,
) -> Config:
    """The description of a run from preset, files and options.

    Args:
        machine_file: the user's TOML, or a description that is complete but for what was typed, or None.
        typed: what `overrides_of` found.
        default_preset: the preset where neither file nor options name one; None for the usual one.
        costs_file: what --costs names, or None.

    Raises:
        Failure: something in it is wrong; the line names the option or the file to blame.
    """
    config = _resolved(machine_file, typed, default_preset, costs_file)
    if costs_file and config.machine.engine != "sim":
        raise Failure(
            f"--costs: {config.machine.engine} run on real clocks, where steps take the time they take; "
            "add --engine sim"
        )
    return config


def checked_policy(named: str) -> str:
    """What --policy names, wherever we are, read and found sound.

    Raises:
        Failure: it is not.
    """
    found = find_policy(named, Path.cwd())
    try:
        read_policy(found)
    except PolicyError as error:
        raise Failure(f"--policy: {error}") from None
    return found


def refuse_functions(config: Config, why: str) -> None:
    """See that the machine has one function.

    Args:
        config: the description.
        why: there can be no more, in a sentence without its end.

    Raises:
        Failure: there are several.
    """
    if config.functions > 1:
        raise Failure(f"machine.functions = {config.functions}: {why}; leave it out")


def check_timeline(config: Config) -> None:
    """See that the load goes on for as long as something is to be done to the machine.

    Raises:
        Failure: it ends before.
    """
    last = max((action.at_s for action in config.machine.timeline), default=0.0)
    if last >= config.machine.seconds and config.machine.ops is None:
        raise Failure(
            f"the timeline goes on to {last:g} s, but the load ends after {config.machine.seconds:g} s; "
            "give more --seconds"
        )


def _resolved(
    machine_file: Path | Config | None,
    typed: dict[tuple[str, str], tuple[str, Any]],
    default_preset: str | None,
    costs_file: Path | None,
) -> Config:
    overrides = [(*place, value) for place, (_, value) in typed.items() if place != _PRESET]
    preset = str(typed[_PRESET][1]) if _PRESET in typed else default_preset
    try:
        return load(machine_file, preset, overrides, costs_file)
    except ConfigError as error:
        message = str(error)
    if machine_file and overrides and message.startswith(f"{machine_file}: ") and _loads(machine_file, preset):
        message = f"command line: {message.removeprefix(f'{machine_file}: ')}"
    for (section, key), (option, _) in typed.items():
        for prefix in (f"command line: {section}.{key}: ", f"command line: {section}: {key} "):
            if message.startswith(prefix):
                message = f"{option}: {message.removeprefix(prefix)}"
    raise Failure(message)


def _loads(machine_file: Path | Config, preset: str | None) -> bool:
    """Whether the file is fine without any option."""
    try:
        load(machine_file, preset)
    except ConfigError:
        return False
    return True
