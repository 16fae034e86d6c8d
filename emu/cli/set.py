"""`emu set`: write to the sysfs of a machine that is running."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emu.cli.failure import FINE, REFUSED, Failure
from emu.machine.control_socket import ControlError, check, is_answering, send
from emu.machine.run_folder import DEFAULT_PARENT
from emu.report.plain import one_line


def set_(
    name: Annotated[str, Parameter(name="KEY", help="type: of the domain; driver: of its device.")],
    value: Annotated[
        str,
        Parameter(
            name="VALUE",
            help="Of type: DMA-FQ or DMA-SQ, and others while no driver is bound; of driver: unbind or bind.",
        ),
    ],
    /,
    *,
    run: Annotated[
        Path | None, Parameter(help="Folder of the run; default the newest in emu-runs/ whose machine answers.")
    ] = None,
) -> int:
    """Change a running machine, as a write to sysfs does; what the emulated kernel refuses ends with exit code 1."""
    try:
        check(name, value)
        folder = run or _newest_running()
        errno, reason = send(folder, name, value)
    except ControlError as error:
        raise Failure(str(error)) from None
    if errno:
        print(one_line(f"emu set: {errno}: {reason}"), file=sys.stderr)
        return REFUSED
    print(one_line(f"{folder}: {name} {value}"))
    return FINE


def _newest_running() -> Path:
    # Folders are named after the time at which their run began.
    for folder in sorted(Path(DEFAULT_PARENT).glob("*/"), reverse=True):
        if is_answering(folder):
            return folder
    raise Failure(f"no machine is running in a folder of {DEFAULT_PARENT}/; name the run's folder with --run")
