"""`emu run`: the chosen domains in turn, under the same load, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emu.cli.options import MachineOptions, OutputOptions, check_timeline, configured, overrides_of, whole_number

_MACHINE = MachineOptions()
_OUTPUT = OutputOptions()


def run(
    machine_file: Annotated[
        Path | None, Parameter(name="MACHINE.toml", help="Description of the machine; options override it.")
    ] = None,
    /,
    *,
    machine: MachineOptions = _MACHINE,
    workload: Annotated[str | None, Parameter(help="Load: map_benchmark, nvme, nic or ism; default nvme.")] = None,
    seconds: Annotated[float | None, Parameter(help="Run time of each domain, in s; default 1.5.")] = None,
    ops: Annotated[
        int | None, Parameter(converter=whole_number, help="Map+unmap pairs over all CPUs, instead of --seconds.")
    ] = None,
    seed: Annotated[int | None, Parameter(converter=whole_number, help="Seed of everything random; default 1.")] = None,
    output: OutputOptions = _OUTPUT,
) -> int:
    """Run an emulated machine and show what each flush scheme costs and exposes.

    With no arguments: DMA, DMA-FQ, DMA-SQ, s390-lazy and identity under the preset kvm, in about ten seconds.
    """
    typed = overrides_of(machine, workload=workload, seconds=seconds, ops=ops, seed=seed)
    config = configured(machine_file, typed, costs_file=machine.costs)
    check_timeline(config)

    from emu.cli.session import Session
    from emu.workload.build import build_workload

    label = config.domain.types[0] if len(config.domain.types) == 1 else "run"
    with Session("run", config, output, label) as session:
        session.run_domains(lambda: build_workload(config))
        session.print_results()
    return session.exit_code
