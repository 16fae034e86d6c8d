"""`emu export`: a run in the formats of other people's tools."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from cyclopts import Parameter

from emu.cli.failure import FINE, Failure
from emu.cli.options import whole_number

if TYPE_CHECKING:
    from emu.analysis.run_data import DomainRun, RunData

_FORMATS = ("perfetto", "ftrace", "hgrm")
_OF = ("map", "unmap", "exposure", "wait")
_DEFAULT_MOST = 1_000_000


def export(
    run: Annotated[Path, Parameter(name="RUN", help="Folder of a run.")],
    /,
    *,
    format_: Annotated[
        str,
        Parameter(
            name="--format",
            help="perfetto: a trace for ui.perfetto.dev and chrome://tracing; ftrace: a trace as a kernel writes it, "
            "with its counters, for emu replay; hgrm: percentiles of a latency, for HdrHistogram's plotter.",
        ),
    ],
    domain: Annotated[
        str | None, Parameter(help="Domain of the run; needed by ftrace and hgrm where there are several; default all.")
    ] = None,
    of: Annotated[
        str, Parameter(help="Of hgrm: the latency of map or unmap, exposure, or wait for the hypervisor; default map.")
    ] = "map",
    most: Annotated[
        int,
        Parameter(
            converter=whole_number,
            help="Of perfetto: maps, unmaps and lock waits of a domain at most, the first ones; default 1000000.",
        ),
    ] = _DEFAULT_MOST,
    out: Annotated[
        Path | None,
        Parameter(
            metavar="FILE",
            allow_leading_hyphen=True,
            help="New file, compressed if it ends with .gz; - for stdout; default one in RUN, which is then named.",
        ),
    ] = None,
) -> int:
    """Write what a run left as a trace, or as a distribution, that other tools open.

    Maps, unmaps and requests are in it where the run was recorded (emu run --record); ftrace needs that.
    """
    if format_ not in _FORMATS:
        raise Failure(f"--format: must be perfetto, ftrace or hgrm, not {format_!r}")
    if of not in _OF:
        raise Failure(f"--of: must be map, unmap, exposure or wait, not {of!r}")
    if most < 1:
        raise Failure(f"--most: must be 1 or more, not {most}")

    from emu.analysis.run_data import RunDataError, load_run

    try:
        data = load_run(run)
        chosen = _chosen(data, domain)
        if format_ == "perfetto":
            return _perfetto(data, chosen, most, out or run / f"{domain or 'trace'}.perfetto.json.gz")
        if len(chosen) > 1:
            names = ", ".join(each.domain for each in chosen)
            raise Failure(f"{format_}: is of one domain, but {run} has {names}; name one with --domain")
        if format_ == "ftrace":
            return _ftrace(chosen[0], out or run / f"{chosen[0].domain}.trace.gz")
        return _hgrm(chosen[0], of, out or run / f"{chosen[0].domain}-{of}.hgrm")
    except RunDataError as error:
        raise Failure(str(error)) from None


def _chosen(data: RunData, domain: str | None) -> list[DomainRun]:
    if domain is None:
        return data.domains
    chosen = [each for each in data.domains if each.domain == domain]
    if not chosen:
        names = ", ".join(each.domain for each in data.domains)
        raise Failure(f"--domain: {data.folder} has no {domain!r}, but {names}")
    return chosen


def _perfetto(data: RunData, domains: list[DomainRun], most: int, out: Path) -> int:
    from emu.report.trace_events import TraceEvents

    trace = TraceEvents(data, domains, most)
    _write(out, trace.parts())
    _say(out, f"{out}: open it with https://ui.perfetto.dev or chrome://tracing", *trace.notes)
    return FINE


def _ftrace(domain: DomainRun, out: Path) -> int:
    from emu.capture.ftrace import capture_name
    from emu.report.ftrace_text import counters_of, ftrace_lines

    run = domain.run
    if run["domain"] == "identity":
        raise Failure("ftrace: the domain identity translates nothing, so a kernel's trace of it has no map")
    if not domain.is_recorded:
        raise Failure(f"ftrace: needs every map and unmap, which {domain.folder} has not; run it with --record")
    if any(not switch["errno"] for switch in run.get("switches", ())):
        raise Failure(f"ftrace: {run['domain']} was switched or unbound on the way, and a trace is of one domain only")
    if str(out) == "-":
        _write(out, ftrace_lines(domain))
        return FINE
    counters = out.parent / f"{capture_name(out)}.json"
    _must_be_new(counters)
    _write(out, ftrace_lines(domain))
    _write(counters, [json.dumps(counters_of(domain), indent=1), "\n"])
    preset = "" if run["preset"] == "kvm" else f" --preset {run['preset']}"
    notes = []
    if run["map_failures"]:
        notes.append(f"{run['map_failures']} maps failed and have no line, so a replay may count something else.")
    if run["events"]["lost"]:
        notes.append(f"{run['events']['lost']} events were lost while it was recorded, so a replay counts less.")
    _say(out, f"{out} and {counters.name}: emu replay {out}{preset} --verify", *notes)
    return FINE


def _hgrm(domain: DomainRun, of: str, out: Path) -> int:
    try:
        from emu.report.percentiles import percentile_text
    except ImportError:
        raise Failure("hgrm: needs hdrhistogram, which is not installed; pip install 'emu[traces]'") from None
    from emu.analysis.distributions import distribution

    counts = distribution(domain, of)
    if not counts:
        raise Failure(f"hgrm: no {of} was counted in the domain {domain.domain} of {domain.folder}")
    _write(out, [percentile_text(counts)])
    _say(out, f"{out}: values in ns; HdrHistogram's plotFiles.html draws it")
    return FINE


def _say(out: Path, *lines: str) -> None:
    # What goes to stdout must be the file alone.
    for line in lines:
        print(line, file=sys.stderr if str(out) == "-" else sys.stdout)


def _must_be_new(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise Failure(f"{out} is there already; name a new file with --out, results are never overwritten")


def _write(out: Path, parts: Iterable[str]) -> None:
    """Write a file under another name, then rename it."""
    if str(out) == "-":
        for part in parts:
            sys.stdout.write(part)
        sys.stdout.flush()
        return
    _must_be_new(out)
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        try:
            with _opened(temporary, is_compressed=out.name.endswith(".gz")) as file:
                for part in parts:
                    file.write(part)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror or error}; name another file with --out") from None


@contextmanager
def _opened(path: Path, *, is_compressed: bool) -> Iterator[IO[str]]:
    if is_compressed:
        with path.open("wb") as raw, gzip.open(raw, "wt", compresslevel=3, encoding="utf-8") as file:
            yield file
    else:
        with path.open("w", encoding="utf-8") as file:
            yield file
