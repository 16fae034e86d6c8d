"""`emu report`: one page of HTML with pictures of one or several runs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emu.cli.failure import FINE, Failure

_NAME = "report.html"


def report(
    *runs: Annotated[Path, Parameter(name="RUN", help="Folder of a run; several are put side by side.")],
    out: Annotated[
        Path | None, Parameter(metavar="FILE", help=f"The page to write; default {_NAME} in the first RUN.")
    ] = None,
) -> int:
    """Write one page of HTML that shows what runs did.

    It needs no network and no other file: throughput, latency, flushes, queues, locks, the hypervisor, exposure and
    fairness in pictures, with the numbers behind each. An older report is replaced, any other file is not.
    """
    if not runs:
        raise Failure("RUN: name the folder of a run, such as emu-runs/…; see emu report --help")
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise Failure("plotly, which draws, is not installed: pip install 'emu[report]'") from None

    from emu.analysis.run_data import RunDataError, load_run
    from emu.analysis.run_schema import check_runs
    from emu.report.page.document import report_page
    from emu.report.page.series import subjects_of

    target = out or runs[0] / _NAME
    _check_free(target)
    try:
        loaded = [load_run(run) for run in runs]
        for data in loaded:
            check_runs(data)
    except RunDataError as error:
        raise Failure(str(error)) from None
    _write(target, report_page(subjects_of(loaded), get_plotlyjs()))
    print(f"Report: {target}")
    return FINE


def _check_free(target: Path) -> None:
    """Refuse to take the place of what is no report."""
    from emu.report.page.document import BEGINNING

    try:
        with target.open(encoding="utf-8", errors="replace") as file:
            is_report = file.read(len(BEGINNING)) == BEGINNING
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failure(f"{target} cannot be used: {error.strerror}; name a file with --out") from None
    if not is_report:
        raise Failure(f"{target} is there and no report of emu; name another file with --out")


def _write(target: Path, page: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise Failure(f"{target} cannot be written: {error.strerror}; name a file elsewhere with --out") from None
