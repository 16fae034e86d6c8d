"""`emu replay`: the load of a real kernel, from its trace, and its counters beside the emulator's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from emu.cli.failure import Failure
from emu.cli.options import MachineOptions, OutputOptions, configured, overrides_of

if TYPE_CHECKING:
    from rich.console import Console

    from emu.analysis.kernel_comparison import Comparison
    from emu.capture.counters import KernelCounters
    from emu.capture.ftrace import Capture
    from emu.cli.session import Session
    from emu.config import Config
    from emu.workload.program import Workload

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
        _prepare_verification(typed)
    if speed not in ("asap", "real"):
        raise Failure(f"--speed: must be asap or real, not {speed!r}")

    from emu.capture.counters import read_counters
    from emu.capture.events import CaptureError
    from emu.capture.ftrace import ENTRIES, read_capture
    from emu.capture.shipped import find_capture
    from emu.native.compile import compile_entries
    from emu.report.progress import ProgressBars

    try:
        capture_file = find_capture(capture_file)
        kernel = read_counters(capture_file)
        # Wrong options are told before a long trace is read.
        _configured(typed, kernel, capture_file, machine.costs)
        with ProgressBars(quiet=output.quiet) as bars:
            compile_entries(ENTRIES, bars.compiled)
            kept_pages = kernel.kept_pages if kernel else None
            capture = read_capture(capture_file, bars.read, kept_pages, physical=verify)
        typed.setdefault(("machine", "cpus"), ("the capture", capture.cpus))
        config = _configured(typed, kernel, capture_file, machine.costs)
        if verify:
            return _verify(capture, kernel, config, output)
        return _replay(capture, kernel, config, output, speed)
    except CaptureError as error:
        raise Failure(str(error)) from None


def _replay(capture: Capture, kernel: KernelCounters | None, config: Config, output: OutputOptions, speed: str) -> int:
    from emu.cli.session import Session

    with Session("replay", config, output, "replay") as session:
        session.more["speed"] = speed
        session.more["capture"] = _described(capture)
        session.run_domains(lambda: _workload(capture, config), real_time=speed == "real")
        comparisons = _compare(session, capture, kernel, config)
        session.print_results(lambda console: _print(console, capture, kernel, comparisons, speed))
    return session.exit_code


def _prepare_verification(typed: dict[tuple[str, str], tuple[str, Any]]) -> None:
    """Refuse what contradicts it, and set what it needs unless told otherwise."""
    engine, domains = typed.get(("machine", "engine")), typed.get(("domain", "types"))
    if engine and engine[1] != "sim":
        raise Failure(f"--verify: runs on virtual clocks, not on {engine[1]}; leave {engine[0]} out")
    if domains and len(domains[1]) > 1:
        raise Failure("--verify: compares one domain with the kernel's; give one --domain or none")
    typed.setdefault(("machine", "engine"), ("--verify", "sim"))
    typed.setdefault(("domain", "aperture_mb"), ("--verify", _AMPLE_MB))


def _verify(capture: Capture, kernel: KernelCounters | None, config: Config, output: OutputOptions) -> int:
    from functools import partial

    from rich.console import Console

    from emu.cli.session import Session
    from emu.report.verification import print_verification
    from emu.verify import verify_capture

    found = None
    with Session("replay", config, output, "verify") as session:
        session.more["capture"] = _described(capture)
        with session.working():
            found, _ = verify_capture(
                capture,
                kernel,
                config,
                partial(session.run_domain, real_time=True),
                on_addresses=partial(session.advance, "addresses"),
                run_again=partial(session.run_quietly, "attempts"),
            )
        if found and session.is_whole:
            session.more["verification"] = found.as_dict()
            session.disagrees = not found.agrees
            session.write_summary()
            if output.json:
                session.print_object(found.as_dict())
            else:
                console = Console(highlight=False)
                print_verification(console, found)
                session.print_folder(console)
    return session.exit_code


def _configured(
    typed: dict[tuple[str, str], tuple[str, Any]],
    kernel: KernelCounters | None,
    capture_file: Path,
    costs_file: Path | None,
) -> Config:
    types = ("", _default_domains(kernel))
    preset = "bare-metal" if _is_on(kernel, _X86) and not _is_caching_mode(capture_file) else None
    return configured(None, {("domain", "types"): types, **typed}, default_preset=preset, costs_file=costs_file)


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


def _compare(session: Session, capture: Capture, kernel: KernelCounters | None, config: Config) -> list[Comparison]:
    """Put the kernel's counters into the summary; a difference that must not be makes the command fail."""
    from emu.analysis.kernel_comparison import compare

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


def _print(
    console: Console, capture: Capture, kernel: KernelCounters | None, comparisons: list[Comparison], speed: str
) -> None:
    """What the capture held, and the counters."""
    from emu.report.kernel_counters import print_capture, print_comparisons

    print_capture(console, capture)
    print_comparisons(console, comparisons, kernel, speed)
