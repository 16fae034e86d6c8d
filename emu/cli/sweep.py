"""`emu sweep`: many machines from one file, which may be stopped at any moment and goes on where it was."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from emu.cli.failure import DEATH, FINE, INTERRUPTED, VIOLATION, Failure
from emu.cli.options import QuietOption, whole_number
from emu.config import ConfigError, cores
from emu.report.plain import one_line

if TYPE_CHECKING:
    from emu.report.sweep_progress import SweepProgress
    from emu.sweep.executor import Executor
    from emu.sweep.folder import SweepFolder

_PARENT = Path("emu-sweeps")
_EXTRAS = {"duckdb": "sweep", "optuna": "sweep", "distributed": "cluster"}


def sweep(
    source: Annotated[
        Path,
        Parameter(
            name="EXPERIMENT.toml|FOLDER", help="A machine file with [sweep], or the folder of a sweep to go on with."
        ),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="Folder for the results, new or of the same experiment; default emu-sweeps/EXPERIMENT."),
    ] = None,
    cluster: Annotated[
        str | None,
        Parameter(metavar="ADDRESS", help="Run the cells on the workers of this dask.distributed scheduler."),
    ] = None,
    jobs: Annotated[
        int | None,
        Parameter(
            converter=whole_number,
            help="Cells at a time on this machine, of the engine sim; default one for each core.",
        ),
    ] = None,
    retry: Annotated[
        bool, Parameter(negative=(), help="Run the cells again that ended with an error; default they stay.")
    ] = False,
    recommend: Annotated[
        bool, Parameter(negative=(), help="Run nothing; show which configurations in FOLDER are worth choosing.")
    ] = False,
    export: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="Run nothing; write all cells in FOLDER to a new .csv or .parquet file."),
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object instead.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Run a machine for every combination of values that a file gives, or for values drawn or searched for.

    Killed at any moment and started again, it goes on with what is not done. Cells that measure run one at a time.
    """
    _check_options(recommend=recommend, export=export, out=out, cluster=cluster, jobs=jobs, retry=retry)
    try:
        from emu.sweep.executor import SweepError

        try:
            if recommend:
                return _recommend(source, json=json)
            if export:
                return _export(source, export, json=json)
            return _sweep(source, out, cluster, jobs, retry=retry, json=json, quiet=quiet)
        except (SweepError, ConfigError) as error:
            raise Failure(str(error)) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise Failure(f"needs {error.name}, which is not installed; pip install 'emu[{extra}]'") from None


def _check_options(*, recommend: bool, export: Path | None, jobs: int | None, **others: object) -> None:
    given = [f"--{name}" for name, value in {**others, "jobs": jobs}.items() if value]
    chosen = "--recommend" if recommend else "--export"
    if recommend and export:
        raise Failure("--recommend and --export contradict each other; give one")
    if (recommend or export) and given:
        raise Failure(f"{given[0]} is about running cells, and {chosen} runs none; leave it out")
    if others.get("cluster") and jobs is not None:
        raise Failure("--jobs is about this machine, and --cluster about others; give one")
    if jobs is not None and jobs < 1:
        raise Failure(f"--jobs: must be at least 1, not {jobs}")


def _sweep(
    source: Path, out: Path | None, cluster: str | None, jobs: int | None, *, retry: bool, json: bool, quiet: bool
) -> int:
    from emu.report.sweep_progress import SweepProgress
    from emu.sweep.conduct import conduct, plan_of
    from emu.sweep.experiment_file import read_experiment
    from emu.sweep.folder import SweepFolder
    from emu.sweep.versions import versions

    if source.is_dir():
        if out is not None:
            raise Failure(f"--out: {source} is the folder already; leave it out")
        folder_path, experiment_file = source, None
    else:
        folder_path, experiment_file = out or _PARENT / source.stem, source
        # What is wrong is said before a folder is made.
        plan_of(read_experiment(source))
    with SweepFolder(folder_path, experiment_file) as folder:
        plan = plan_of(folder.experiment)
        if folder.experiment.sweep.search:
            import emu.sweep.search  # noqa: F401 - what is missing is said now
        if retry:
            folder.forget_failed()
        already = len(folder.done)
        folder.log("sweep_started", done=already, cells=plan.most, cluster=cluster, versions=versions())
        interrupted = False
        with SweepProgress(quiet=quiet) as progress:
            executor = _executor(cluster, jobs, progress)
            try:
                conduct(plan, folder, executor, progress.advanced)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                executor.close()
        folder.log("sweep_interrupted" if interrupted else "sweep_finished", done=len(folder.done))
        return _report(folder, already, plan.most, interrupted=interrupted, json=json)


def _executor(cluster: str | None, jobs: int | None, progress: SweepProgress) -> Executor:
    if cluster is None:
        from emu.sweep.local import LocalExecutor

        return LocalExecutor(jobs or cores(), progress.compiled)
    from emu.sweep.cluster import ClusterExecutor

    return ClusterExecutor(cluster)


def _report(folder: SweepFolder, already: int, most: int, *, interrupted: bool, json: bool) -> int:
    done = len(folder.done)
    errors, violations = folder.counts()
    if json:
        said = {
            "folder": str(folder.path),
            "cells": most,
            "done": done,
            "done_before": already,
            "errors": errors,
            "violations": violations,
            "interrupted": interrupted,
        }
        print(json_text.dumps(said, indent=1))
    else:
        before = f", {already} of them before" if already else ""
        print(f"{done} of {most} cells{before}: {one_line(str(folder.path))}")
    if errors:
        _say(f"{errors} cells ended with an error, which their column error has; --retry runs them again")
    if violations:
        _say(f"{violations} cells have violations, which must never be")
    if interrupted:
        _say(f"interrupted; what is done is kept; go on with emu sweep {folder.path}")
        return INTERRUPTED
    return DEATH if errors else VIOLATION if violations else FINE


def _recommend(source: Path, *, json: bool) -> int:
    from dataclasses import asdict

    from emu.report.recommendation import print_recommendation
    from emu.sweep.results import recommend

    found = recommend(source)
    if json:
        print(json_text.dumps(asdict(found), indent=1))
        return FINE
    console = Console(highlight=False)
    left_out = (
        f"; {found.left_out} left out, with an error, a violation, or an exposure that is not known"
        if found.left_out
        else ""
    )
    if found.knee is not None:
        print_recommendation(console, found.swept, found.front, found.knee)
    console.print(
        f"{len(found.front)} of {found.configurations} configurations are beaten by no other in throughput, unmap p99, "
        f"exposure and memory; {found.cells} cells{left_out}.",
        soft_wrap=True,
    )
    return FINE


def _export(source: Path, target: Path, *, json: bool) -> int:
    from emu.sweep.results import export

    count = export(source, target)
    print(json_text.dumps({"file": str(target), "cells": count}) if json else f"{count} cells: {one_line(str(target))}")
    return FINE


def _say(message: str) -> None:
    print(f"emu sweep: {one_line(message)}", file=sys.stderr)
