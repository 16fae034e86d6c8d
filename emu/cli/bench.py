"""`emu bench`: the kernel's dma_map_benchmark, with its options, refusals and output, on an emulated machine.

It follows `tools/dma/dma_map_benchmark.c` (once in `tools/testing/selftests/dma`) and, where that leaves it to the
kernel, `kernel/dma/map_benchmark.c`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token

from emu.cli.failure import DEATH, FINE, INTERRUPTED, VIOLATION, Failure
from emu.cli.options import MachineOptions, QuietOption, SetOption, configured, overrides_of, refuse_functions

if TYPE_CHECKING:
    from emu.config import Config
    from emu.experiment import Outcome

REFUSED = 1
"""What the tool ends with when a value is out of its limits, or the kernel refuses."""
_MAX_THREADS = 1024
_MAX_SECONDS = 300
_MAX_DELAY_NS = 10_000_000
_MAX_NODES = 1024
"""MAX_NUMNODES where NODES_SHIFT is 10, the most of any architecture."""
_NUMBER = re.compile(r"\s*([-+]?\d+)", re.ASCII)
_INT_MAX = (1 << 31) - 1
_NO_NODE = -1


def _atoi(_type: type, tokens: Sequence[Token]) -> int:
    """As C's atoi() has it: digits up to something else, and 0 without any."""
    found = _NUMBER.match(tokens[0].value[:32])
    return max(min(int(found[1]), _INT_MAX), -_INT_MAX - 1) if found else 0


def _option(letter: str, about: str) -> Parameter:
    return Parameter(name=f"-{letter}", converter=_atoi, allow_leading_hyphen=True, metavar="N", help=about)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the tool's options say."""

    threads: int
    seconds: int
    node: int
    bits: int
    direction: int
    delay_ns: int
    granule: int
    mode: int


def bench(
    *,
    threads: Annotated[int, _option("t", "Threads, 1 to 1024; default 1.")] = 1,
    seconds: Annotated[int, _option("s", "Seconds, 1 to 300; default 20.")] = 20,
    node: Annotated[
        int, _option("n", "NUMA node, -1 for any: the emulated machine has none, so no effect.")
    ] = _NO_NODE,
    bits: Annotated[int, _option("b", "Address bits that the device can drive, 20 to 64; default 32.")] = 32,
    direction: Annotated[
        int, _option("d", "Direction, 0 both, 1 to the device, 2 from it: caches are not emulated, so no effect.")
    ] = 0,
    delay_ns: Annotated[int, _option("x", "How long a mapping is held, 0 to 10000000 ns; default 0.")] = 0,
    granule: Annotated[int, _option("g", "Pages of each mapping, 1 to 1024; default 1.")] = 1,
    mode: Annotated[int, _option("m", "0: one buffer; 1: a scatter-gather list of single pages; default 0.")] = 0,
    domain: Annotated[
        str, Parameter(help="Domain type: DMA, DMA-FQ, DMA-SQ, s390-lazy, s390-strict or identity; default DMA.")
    ] = "DMA",
    preset: Annotated[
        str | None,
        Parameter(
            help="Hypervisor preset: kvm, zvm, lpar, bare-metal, smmuv3, virtio-iommu or vtd-caching; default kvm."
        ),
    ] = None,
    engine: Annotated[
        str | None, Parameter(help="What an emulated CPU is: processes, threads or sim; default processes.")
    ] = None,
    set_: SetOption = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object instead of the three lines.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Do what the kernel's dma_map_benchmark does, on an emulated machine: its options, limits and output."""
    asked = _Asked(threads, seconds, node, bits, direction, delay_ns, granule, mode)
    refusal = _refusal(asked)
    if refusal:
        return _refuse(refusal)
    options = MachineOptions(preset=preset, cpus=threads, domain=[domain], engine=engine, set_=set_)
    config = _config(asked, options)
    outcome = _measured(config, is_scattered=mode == 1, quiet=quiet)
    return _print(asked, config, outcome, json=json)


def _refusal(asked: _Asked) -> str | None:
    """What the tool says about the first value that is out of its limits, or what the kernel's refusal makes it say."""
    checks = (
        (0 <= asked.mode <= 1, "invalid map mode, SINGLE_MODE:0, SG_MODE: 1"),
        (1 <= asked.threads <= _MAX_THREADS, f"invalid number of threads, must be in 1-{_MAX_THREADS}"),
        (1 <= asked.seconds <= _MAX_SECONDS, f"invalid number of seconds, must be in 1-{_MAX_SECONDS}"),
        (0 <= asked.delay_ns <= _MAX_DELAY_NS, f"invalid transmit delay, must be in 0-{_MAX_DELAY_NS}"),
        (20 <= asked.bits <= 64, "invalid dma mask bit, must be in 20-64"),
        (0 <= asked.direction <= 2, "invalid dma direction"),
        (1 <= asked.granule <= 1024, "invalid granule size"),
        (_NO_NODE <= asked.node < _MAX_NODES, "ioctl: Invalid argument"),
    )
    return next((message for is_fine, message in checks if not is_fine), None)


def _refuse(message: str) -> int:
    # As it is: scripts know the tool's words.
    print(message, file=sys.stderr)
    return REFUSED


def _config(asked: _Asked, options: MachineOptions) -> Config:
    typed = overrides_of(options, workload="map_benchmark", seconds=float(asked.seconds))
    mine = {
        ("domain", "dma_bits"): ("-b", asked.bits),
        ("workload", "granule"): ("-g", asked.granule),
        ("workload", "hold_ns"): ("-x", float(asked.delay_ns)),
    }
    for (section, key), (option, _) in mine.items():
        if (section, key) in typed:
            raise Failure(f"{option} and {typed[section, key][0]} both set {section}.{key}; give one")
    start = typed.get(("domain", "aperture_start"))
    if start is None and asked.bits <= _default_start_bits():
        # The default is where s390 has its addresses, above what such a device reaches.
        mine["domain", "aperture_start"] = ("-b", 0)
    config = configured(None, {**typed, **mine})
    refuse_functions(config, "the kernel's dma_map_benchmark works on one device")
    return config


def _default_start_bits() -> int:
    from emu.config import DomainConfig

    return int(DomainConfig.model_fields["aperture_start"].default).bit_length() - 1


def _measured(config: Config, *, is_scattered: bool, quiet: bool) -> Outcome:
    from emu.config import ConfigError
    from emu.experiment import MachineError, run_machine
    from emu.report.progress import ProgressBars
    from emu.workload.build import build_workload
    from emu.workload.map_benchmark import in_single_pages

    (domain,) = config.domain.types
    try:
        workload = build_workload(config)
        with ProgressBars(quiet=quiet) as bars:
            return run_machine(
                config,
                domain,
                in_single_pages(workload) if is_scattered else workload,
                on_compile=bars.compiled,
                on_progress=lambda part: bars.ran(domain, part),
            )
    except (MachineError, ConfigError) as error:
        raise Failure(str(error)) from None


def _print(asked: _Asked, config: Config, outcome: Outcome, *, json: bool) -> int:
    from emu.analysis.call_latency import call_latency
    from emu.report.map_benchmark import benchmark_lines

    run = outcome.run
    if outcome.died:
        raise Failure(outcome.died, DEATH)
    if run["map_failures"]:
        # The kernel's thread gives up at the first, and the tool with it.
        return _refuse("ioctl: Cannot allocate memory")
    tick_ns = run["clock"]["tick_ns"]
    mapped, unmapped = (call_latency(run["histograms"][call], tick_ns) for call in ("map", "unmap"))
    if json:
        from emu.analysis.summary import as_json

        calls = {"map": mapped, "unmap": unmapped}
        sys.stdout.write(as_json(_object(asked, config, outcome, calls)))
    else:
        for line in benchmark_lines(
            asked.mode, asked.threads, asked.seconds, asked.node, asked.direction, asked.granule, (mapped, unmapped)
        ):
            print(line)
    for note in _notes(asked, outcome):
        print(f"emu bench: {note}", file=sys.stderr)
    if outcome.interrupted:
        return INTERRUPTED
    return VIOLATION if run["violations"] else FINE


def _object(asked: _Asked, config: Config, outcome: Outcome, calls: dict[str, Any]) -> dict[str, Any]:
    run = outcome.run
    return {
        "schema": 1,
        "threads": asked.threads,
        "seconds": asked.seconds,
        "node": asked.node,
        "dma_bits": asked.bits,
        "dma_dir": asked.direction,
        "dma_trans_ns": asked.delay_ns,
        "granule": asked.granule,
        "map_mode": asked.mode,
        **{
            name: value
            for call, found in calls.items()
            for name, value in ((f"avg_{call}_100ns", found.average_100ns), (f"{call}_stddev", found.deviation_100ns))
        },
        "latency_ns": {
            call: {"calls": found.calls, "average": found.average_ns, "deviation": found.deviation_ns}
            for call, found in calls.items()
        },
        "domain": run["domain"],
        "preset": config.hypervisor.preset,
        "engine": config.machine.engine,
        "pairs_per_s": run["pairs_per_s"],
        "violations": run["violations"],
        "notes": _notes(asked, outcome),
    }


def _notes(asked: _Asked, outcome: Outcome) -> list[str]:
    """What the tool has no words for."""
    said = []
    if asked.node != _NO_NODE:
        said.append(f"-n {asked.node} has no effect: the emulated machine has no NUMA nodes")
    if asked.direction:
        said.append(f"-d {asked.direction} has no effect: the emulated machine has no caches to clean")
    if outcome.interrupted:
        said.append("interrupted; what was measured until then is shown")
    if outcome.run["violations"]:
        said.append(f"{outcome.run['violations']} violations were found; emu run tells which")
    return said
