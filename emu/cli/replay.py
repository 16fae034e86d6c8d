"""`emu replay`: the load of a real kernel, from its trace, and its counters beside the emulator's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from emu.cli.failure import Failure
from emu.cli.options import MachineOptions, OutputOptions, configured, overrides_of, refuse_functions

if TYPE_CHECKING:
    from rich.console import Console

    from emu.analysis.kernel_comparison import Comparison
    from emu.analysis.verification import Verification
    from emu.capture.counters import KernelCounters
    from emu.capture.ftrace import Capture
    from emu.cli.session import Session
    from emu.config import Config
    from emu.workload.program import Workload

SPEEDS = ("asap", "real")
_MACHINE = MachineOptions()
_OUTPUT = OutputOptions()
_AMPLE_MB = 16_384
"""An address space in which nothing fails that did not fail when it was recorded."""
_S390, _X86 = ("s390x",), ("amd64", "x86_64")
_CACHING_MODE = "batching disallowed due to virtualization"
"""What VT-d's driver says when the hypervisor must be told of maps too."""


def replay(
    capture_file: Annotated[
        Path,
        Parameter(
            name="CAPTURE",
            help="Trace of iommu:map and iommu:unmap as text: tracefs' trace, trace-cmd report or perf script, plain "
            "or .gz (/dev/stdin for a pipe); or the name of a capture of the package, s390x-lazy-nvme or "
            "s390x-strict-nvme.",
        ),
    ],
    /,
    *,
    machine: MachineOptions = _MACHINE,
    speed: Annotated[str, Parameter(help="asap: as fast as possible; real: as recorded; default asap.")] = "asap",
    verify: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Replay at the recorded times on virtual clocks, and put counters by phase, flush times and addresses "
            "beside the kernel's; exit code 1 when they do not agree.",
        ),
    ] = False,
    output: OutputOptions = _OUTPUT,
) -> int:
    """Replay what a real kernel mapped and unmapped, on as many CPUs as it had.

    With its description NAME.json beside it, the kernel's counters are shown too, and say which domain and preset are
    the default; without, DMA and DMA-SQ are run under the preset kvm.
    """
    typed = overrides_of(machine)
    if verify:
        prepare_verification(typed)
    if speed not in SPEEDS:
        raise Failure(f"--speed: must be asap or real, not {speed!r}")

    from emu.capture.events import CaptureError
    from emu.cli.session import Session

    try:
        recorded = read_recorded(capture_file, typed, machine.costs, physical=verify, quiet=output.quiet)
        with Session("replay", recorded.config, output, "verify" if verify else "replay") as session:
            if verify:
                _verify(session, recorded, as_json=output.json)
            else:
                comparisons = replay_recorded(session, recorded, speed)
                session.print_results(lambda console: _print(console, recorded, comparisons, speed))
    except CaptureError as error:
        raise Failure(str(error)) from None
    return session.exit_code


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a real kernel did, and the machine that is to do it again."""

    capture: Capture
    kernel: KernelCounters | None
    config: Config


def read_recorded(
    capture_file: Path,
    typed: dict[tuple[str, str], tuple[str, Any]],
    costs_file: Path | None,
    *,
    physical: bool,
    quiet: bool,
) -> Recorded:
    """Read a capture and what lies beside it.

    Args:
        capture_file: the capture, or the name of one of the package.
        typed: what was said of the machine, as `overrides_of` has it.
        costs_file: as in `configured`.
        physical: read physical addresses too, which a verification needs.
        quiet: show no progress.

    Raises:
        CaptureError: it cannot be read.
        Failure: the machine cannot be.
    """
    from emu.capture.counters import read_counters
    from emu.capture.ftrace import ENTRIES, read_capture
    from emu.capture.shipped import find_capture
    from emu.native.compile import compile_entries
    from emu.report.progress import ProgressBars

    capture_file = find_capture(capture_file)
    kernel = read_counters(capture_file)
    # Wrong options are told before a long trace is read.
    _configured(typed, kernel, capture_file, costs_file)
    with ProgressBars(quiet=quiet) as bars:
        compile_entries(ENTRIES, bars.compiled)
        kept_pages = kernel.kept_pages if kernel else None
        capture = read_capture(capture_file, bars.read, kept_pages, physical=physical)
    with_cpus = {("machine", "cpus"): ("the capture", capture.cpus), **typed}
    return Recorded(capture, kernel, _configured(with_cpus, kernel, capture_file, costs_file))


def replay_recorded(session: Session, recorded: Recorded, speed: str) -> list[Comparison]:
    """Run every domain of the description under the recorded load; `speed`: one of SPEEDS."""
    session.more["speed"] = speed
    session.more["capture"] = _described(recorded.capture)
    session.run_domains(lambda: _workload(recorded.capture, recorded.config), real_time=speed == "real")
    return _compare(session, recorded)


def prepare_verification(typed: dict[tuple[str, str], tuple[str, Any]]) -> None:
    """Refuse what contradicts it, and set what it needs unless told otherwise."""
    engine, domains = typed.get(("machine", "engine")), typed.get(("domain", "types"))
    if engine and engine[1] != "sim":
        raise Failure(f"--verify: runs on virtual clocks, not on {engine[1]}; leave {engine[0]} out")
    if domains and len(domains[1]) > 1:
        raise Failure("--verify: compares one domain with the kernel's; give one --domain or none")
    typed.setdefault(("machine", "engine"), ("--verify", "sim"))
    typed.setdefault(("domain", "aperture_mb"), ("--verify", _AMPLE_MB))


def verify_recorded(session: Session, recorded: Recorded) -> Verification | None:
    """Compare a replay at the recorded times with the kernel; None where it did not come to its end."""
    from functools import partial

    from emu.verify import verify_capture

    found = None
    session.more["capture"] = _described(recorded.capture)
    with session.working():
        found, _ = verify_capture(
            recorded.capture,
            recorded.kernel,
            recorded.config,
            partial(session.run_domain, real_time=True),
            on_addresses=partial(session.advance, "addresses"),
            run_again=partial(session.run_quietly, "attempts"),
        )
    if found is None or not session.is_whole:
        return None
    session.more["verification"] = found.as_dict()
    session.disagrees = not found.agrees
    session.write_summary()
    return found


def _verify(session: Session, recorded: Recorded, *, as_json: bool) -> None:
    from rich.console import Console

    from emu.report.verification import print_verification

    found = verify_recorded(session, recorded)
    if found is None:
        return
    if as_json:
        session.print_object(found.as_dict())
    else:
        console = Console(highlight=False)
        print_verification(console, found)
        session.print_folder(console)


def _configured(
    typed: dict[tuple[str, str], tuple[str, Any]],
    kernel: KernelCounters | None,
    capture_file: Path,
    costs_file: Path | None,
) -> Config:
    types = ("", _default_domains(kernel))
    preset = "bare-metal" if _is_on(kernel, _X86) and not _is_caching_mode(capture_file) else None
    config = configured(None, {("domain", "types"): types, **typed}, default_preset=preset, costs_file=costs_file)
    refuse_functions(config, "a capture is replayed on one function")
    return config


def _default_domains(kernel: KernelCounters | None) -> list[str]:
    """The domain that the kernel had, where that is known."""
    if kernel is None or kernel.is_lazy is None:
        return ["DMA", "DMA-SQ"]
    if kernel.domain_type.startswith("s390-"):
        return [kernel.domain_type]
    if not kernel.is_lazy:
        return ["DMA"]
    return ["DMA-SQ"] if _is_on(kernel, _S390) else ["DMA-FQ"]


def _is_on(kernel: KernelCounters | None, architectures: tuple[str, ...]) -> bool:
    return kernel is not None and (kernel.machine in architectures or kernel.kernel.endswith(architectures))


def _is_caching_mode(capture_file: Path) -> bool:
    from emu.capture.ftrace import capture_name

    try:
        return _CACHING_MODE in (capture_file.parent / f"{capture_name(capture_file)}.json").read_text(errors="replace")
    except OSError:
        return False


def _workload(capture: Capture, config: Config) -> Workload:
    from emu.workload.from_capture import capture_workload

    return capture_workload(capture, config.machine.cpus)


def _described(capture: Capture) -> dict[str, Any]:
    times = capture.events["time_ns"]
    return {
        "name": capture.name,
        "path": str(capture.path),
        "cpus": capture.cpus,
        "seconds": float(times.max() - times.min()) / 1e9,
        "mappings": len(capture.mappings),
        "report": asdict(capture.report),
        "sentences": capture.report.sentences(),
    }


def _compare(session: Session, recorded: Recorded) -> list[Comparison]:
    """Put the kernel's counters into the summary; a difference that must not be makes the command fail."""
    from emu.analysis.kernel_comparison import compare

    capture, kernel, config = recorded.capture, recorded.kernel, recorded.config
    if kernel is None:
        return []
    types_seen = [name for _, name in capture.domain_types]
    found = [compare(run, kernel, shadows=config.hypervisor.shadows, types_seen=types_seen) for run in session.runs]
    comparisons = [comparison for comparison in found if comparison]
    session.more["kernel"] = {
        "release": kernel.kernel,
        "domain_type": kernel.domain_type,
        "restarted": kernel.restarted,
        "compared_phases": kernel.comparable_phases,
        "comparisons": [comparison.as_dict() for comparison in comparisons],
    }
    is_flawless = not capture.report.flaws()
    session.disagrees = session.is_whole and is_flawless and not all(each.agrees for each in comparisons)
    session.write_summary()
    return comparisons


def _print(console: Console, recorded: Recorded, comparisons: list[Comparison], speed: str) -> None:
    """What the capture held, and the counters."""
    from emu.report.kernel_counters import print_capture, print_comparisons

    print_capture(console, recorded.capture)
    print_comparisons(console, comparisons, recorded.kernel, speed)
