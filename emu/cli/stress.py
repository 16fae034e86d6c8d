"""`emu stress`: random machines, loads, switches and faults until one comes out wrong, or the time is over."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from emu.cli.failure import FINE, INTERRUPTED, VIOLATION, Failure
from emu.cli.options import QuietOption, checked_policy, whole_number

if TYPE_CHECKING:
    from emu.stress.hunt import Hunt

_LONGEST_MINUTES = 100_000.0


def stress(
    *,
    minutes: Annotated[float, Parameter(help="How long; default 1.")] = 1.0,
    seed: Annotated[
        int | None, Parameter(converter=whole_number, help="Of everything random; default another one each time.")
    ] = None,
    policy: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="Only machines with a flush queue, and this policy decides about it: a Python file, or a name, as in "
            "emu run.",
        ),
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder for what fails, new or empty; default a new one in emu-runs/.")
    ] = None,
    quiet: QuietOption = False,
) -> int:
    """Run random machines with random loads, switches and faults, all checks on, and say what came out wrong.

    What fails is made as small as can be, and written down as a description that emu run repeats.
    """
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise Failure(f"--minutes: must be more than 0 and at most {_LONGEST_MINUTES:g}, not {minutes:g}")
    if seed is not None and seed < 0:
        raise Failure(f"--seed: must be at least 0, not {seed}")
    named = None if policy is None else checked_policy(policy)
    try:
        from emu.stress.hunt import hunt
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise Failure("needs hypothesis, which is not installed; pip install 'emu[stress]'") from None

    from emu.report.progress import ProgressBars

    chosen = secrets.randbelow(1 << 31) if seed is None else seed
    print(f"seed {chosen}; emu stress --minutes {minutes:g} --seed {chosen} draws the same machines", flush=True)
    with ProgressBars(quiet=quiet) as bars:
        found = hunt(
            chosen,
            minutes * 60,
            lambda state, part: bars.ran(f"{state.machines.total()} machines", min(part, 1.0)),
            named,
        )
    _report(found)
    if found.failing is not None:
        return _complain(found, out)
    return INTERRUPTED if found.interrupted else FINE


def _report(found: Hunt) -> None:
    engines = sorted({engine for engine, _ in found.machines})
    by_engine = {engine: sum(n for (e, _), n in found.machines.items() if e == engine) for engine in engines}
    kinds = ", ".join(f"{count} on {engine}" for engine, count in by_engine.items())
    print(f"{found.machines.total()} machines ({kinds}), {found.ops} map+unmap pairs, {found.deaths} processes died")


def _complain(found: Hunt, out: Path | None) -> int:
    from emu.machine.run_folder import RunFolderError, open_run_folder

    if found.failing is None:
        return FINE
    try:
        folder = open_run_folder(out, "stress")
    except RunFolderError as error:
        raise Failure(f"--out {error}") from None
    text = found.failing.to_toml()
    folder.write("failure.toml", text)
    folder.close()
    print(f"emu stress: {found.complaint}", file=sys.stderr)
    if folder.path is None or folder.problem:
        print(text)
        return VIOLATION
    print(f"Repeat it, more than once if need be, with: emu run {folder.path / 'failure.toml'}")
    return VIOLATION
