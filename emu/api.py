"""What the commands do, from Python: run, replay, and look at what came of it (docs/api.md).

`import emu` hands these names on without importing anything that is heavy.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

from emu.analysis.log_database import ExportError, LogDatabase, QueryError
from emu.analysis.log_summary import log_summary
from emu.analysis.questions import QUESTIONS
from emu.analysis.run_data import RunData, RunDataError, load_run
from emu.analysis.run_tables import frame, named
from emu.cli.failure import Failure
from emu.cli.options import OutputOptions, configured, key_of, parse_switch
from emu.cli.session import Session
from emu.config import Config, ConfigError, DomainType
from emu.experiment import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from emu.cli.replay import Recorded
    from emu.comparison import Compared

__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "ExportError",
    "MachineError",
    "QueryError",
    "Result",
    "RunDataError",
    "compare",
    "load",
    "load_config",
    "questions",
    "replay",
    "run",
    "sql",
]

_Typed = dict[tuple[str, str], tuple[str, Any]]
_MANY = ("domain", "bug", "fault", "restart")
"""Settings that may be one text or several."""


class Settings(TypedDict, total=False):
    """What can be said of a machine; the names, values and defaults of the options of `emu run`.

    Attributes:
        domain, switch, bug, fault, restart: one text, or several.
        policy: a policy's file, or the name of one that comes with emu.
        set: any value of the description, as in `{"hypervisor.walk_ns": 2.5}`.
        costs: a file of `emu doctor --calibrate`, with the engine sim.
    """

    preset: str
    cpus: int
    domain: DomainType | Sequence[DomainType]
    engine: Literal["processes", "threads", "sim"]
    fq_size: int
    fq_timeout: float
    on_overrun: Literal["kernel", "wait"]
    policy: str | Path
    switch: str | Sequence[str]
    bug: str | Sequence[str]
    fault: str | Sequence[str]
    on_death: Literal["stop", "continue"]
    restart: str | Sequence[str]
    check: bool
    devices: int
    record: bool
    breakdown: bool
    workload: str
    seconds: float
    ops: int
    seed: int
    costs: str | Path
    set: Mapping[str, Any]


class Result:
    """What came of a run, or of a replay.

    A folder of its own, where none was asked for, is removed with this object; whoever wants it gone earlier uses the
    object as a context manager.

    Attributes:
        folder: where it lies, see docs/summary.md.
        summary: summary.json.
        exit_code: what the command would have ended with; None of a result that was loaded.
        messages: what the command would have said on stderr, a line each.
    """

    def __init__(
        self,
        data: RunData,
        *,
        exit_code: int | None = None,
        messages: Iterable[str] = (),
        keeper: _Keeper | None = None,
    ) -> None:
        self.folder = data.folder
        self.summary = data.summary
        self.exit_code = exit_code
        self.messages = list(messages)
        self._data = data
        self._keeper = keeper

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._keeper:
            self._keeper.clean_up()

    def __repr__(self) -> str:
        """One line: what ran, and how fast."""
        from emu.report.plain import one_line  # noqa: PLC0415 - only where it is shown
        from emu.report.quantity import amount  # noqa: PLC0415 - the same

        said = ", ".join(f"{run['domain']} {amount(run['pairs_per_s'])} pairs/s" for run in self.runs)
        return f"<emu.Result: {one_line(said) or 'no domain ran'}>"

    def _repr_html_(self) -> str:
        """The table of `emu run`, in a notebook."""
        from emu.report.html_table import html_table  # noqa: PLC0415 - only where it is shown

        return html_table(self.runs)

    @property
    def data(self) -> RunData:
        """The folder as emu.analysis reads it: one DomainRun for each domain, with its events as NumPy arrays."""
        return self._data

    @property
    def runs(self) -> list[dict[str, Any]]:
        """One for each domain, in order: `runs` in summary.json."""
        return [domain.run for domain in self._data.domains]

    @property
    def config(self) -> Config:
        """The description that the run resolved to.

        Raises:
            ConfigError: config.toml cannot be read.
        """
        return load_config(self.folder / "config.toml")

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each domain, a column for each number of summary.json, such as `latency_ns_map_p99`."""
        return self._frame("runs")

    def events(self) -> pd.DataFrame:
        """The event log, an entry a row; `fields` is JSON text. Columns of all tables: docs/logs.md."""
        return self._frame("events")

    def flushes(self) -> pd.DataFrame:
        """Every flush of everything."""
        return self._frame("flushes")

    def ops(self) -> pd.DataFrame:
        """Every map and unmap; none where the run did not record them."""
        return self._frame("ops")

    def requests(self) -> pd.DataFrame:
        """Requests to the hypervisor: those for everything, and all where the run recorded them."""
        return self._frame("requests")

    def lock_waits(self) -> pd.DataFrame:
        """Every wait for a lock; none where the run did not record them."""
        return self._frame("lock_waits")

    def samples(self) -> pd.DataFrame:
        """How far the machine was, and what waited where, about a hundred times a domain."""
        return self._frame("samples")

    def locks(self) -> pd.DataFrame:
        """What was waited for: the locks by name, and the hypervisor's queue."""
        return self._frame("locks")

    def breakdown(self) -> pd.DataFrame:
        """Where the time of maps and unmaps went; nothing where the run did not measure it."""
        return self._frame("breakdown")

    def processes(self) -> pd.DataFrame:
        """The processes of the machine."""
        return self._frame("processes")

    def sql(self, query: str) -> pd.DataFrame:
        """Ask in DuckDB's SQL over these tables, as `emu logs --sql` does; raises as `emu.sql`."""
        return sql(query, self)

    def ask(self, question: str) -> pd.DataFrame:
        """Ask one of `emu.questions()`, as `emu logs --ask` does.

        Raises:
            QueryError: there is no such question.
        """
        if question not in QUESTIONS:
            raise QueryError(f"{question}: no such question; there are {', '.join(QUESTIONS)}")
        return sql(QUESTIONS[question].sql, self)

    def log_summary(self) -> dict[str, Any]:
        """What `emu logs RUN --json` says: counts, rates, the longest gap, warnings."""
        ((name, data),) = named([self._data])
        return log_summary(name, data)

    def export(self, folder: str | Path, format: str = "parquet") -> list[Path]:  # noqa: A002 - the option's name
        """Write every table to a file of a new or empty folder: parquet, csv or json; returns the files.

        Raises:
            ExportError: that cannot be done.
        """
        with _with_extra(), LogDatabase([self._data]) as database:
            return database.export(Path(folder), format)

    def report(self, path: str | Path) -> Path:
        """Write one HTML file about it, as `emu report` does, over any file of that name; returns the file.

        Raises:
            OSError: it cannot be written.
            RunDataError: the run is damaged.
        """
        from emu.analysis.run_schema import check_runs  # noqa: PLC0415 - as heavy as the pictures
        from emu.report.page.document import report_page  # noqa: PLC0415
        from emu.report.page.series import subjects_of  # noqa: PLC0415

        target = Path(path)
        with _with_extra():
            from plotly.offline import get_plotlyjs  # noqa: PLC0415

            check_runs(self._data)
            page = report_page(subjects_of([self._data]), get_plotlyjs())
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        return temporary.replace(target)

    def _frame(self, table: str) -> pd.DataFrame:
        with _with_extra():
            return frame(table, named([self._data]))


class Comparison:
    """How machines differ that took turns, and how sure that is.

    Attributes:
        summary: comparison.json, see docs/compare.md; its `candidates` have ratios, intervals and a sentence each.
        exit_code: what the command would have ended with.
        messages: what the command would have said on stderr, a line each.
    """

    def __init__(self, found: Compared, exit_code: int, messages: Iterable[str]) -> None:
        self.summary: dict[str, Any] = found.summary or {}
        self.exit_code = exit_code
        self.messages = list(messages)
        self._rows = found.rows

    def __repr__(self) -> str:
        """What is said of each candidate."""
        said = "; ".join(one["says"] for one in self.candidates if one["says"])
        return f"<emu.Comparison: {said or 'no round is complete'}>"

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """One for each candidate, in order: `candidates` in comparison.json."""
        return list(self.summary.get("candidates", ()))

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each candidate: `name`, `median`, `spread`, `ratio`, `low`, `high`, `differs`, `says`."""
        return self._frame(self.candidates)

    def rounds(self) -> pd.DataFrame:
        """A row for each run of a complete round: `round`, `place`, `candidate`, `seed`, and every metric."""
        return self._frame(self._rows)

    @staticmethod
    def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
        with _with_extra():
            import pandas as pd  # noqa: PLC0415 - an extra

            return pd.DataFrame(rows)


def load_config(machine: str | Path | Config | None = None, /, **settings: Unpack[Settings]) -> Config:
    """The description of a run: that of a machine file, or another description, changed by settings.

    Args:
        machine: a TOML file as for `emu run`, a Config, or None for the defaults.
        settings: as the options of `emu run`.

    Raises:
        ConfigError: something in it is wrong; one line: what, where, what to do.
    """
    base = Path(machine) if isinstance(machine, str) else machine
    with _as_config_error():
        return configured(base, _typed(settings), costs_file=_costs(settings))


def run(
    machine: str | Path | Config | None = None,
    /,
    *,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> Result:
    """Run the domains of a description in turn, under the same load; from the main thread, as signals are needed.

    Args:
        machine: a TOML file, a Config, or None for the defaults; settings change it.
        out: new or empty folder for the results; by default nothing is kept beyond the Result.
        progress: show bars, on a terminal.
        settings: as the options of `emu run`.

    Raises:
        ConfigError: the description is wrong, or `out` cannot be used.
        MachineError: the machine cannot be made.
        RunDataError: the results could not be written.
        KeyboardInterrupt: the user stopped it; in `out` is what was measured until then.
    """
    from emu.workload.build import build_workload  # noqa: PLC0415 - heavy

    config = load_config(machine, **settings)
    keeper = _Keeper("run", out, progress=progress)
    with _as_config_error(), keeper.session(config) as session:
        session.run_domains(lambda: build_workload(config))
    return keeper.result(session)


def replay(
    capture: str | Path,
    /,
    *,
    speed: Literal["asap", "real"] = "asap",
    verify: bool = False,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> Result:
    """Replay what a real kernel mapped and unmapped.

    Args:
        capture: its trace, or the name of one of the package, as for `emu replay`.
        speed: "asap", as fast as possible, or "real", as recorded.
        verify: replay at the recorded times on virtual clocks, and put everything beside the kernel's:
            `summary["verification"]`.
        out: as for `run`.
        progress: show bars, on a terminal.
        settings: as the options of `emu replay`.

    Raises:
        ConfigError: a setting or the capture is wrong, or `out` cannot be used.
        MachineError: the machine cannot be made.
        RunDataError: the results could not be written.
        KeyboardInterrupt: the user stopped it; in `out` is what was measured until then.
    """
    from emu.cli.replay import SPEEDS, replay_recorded, verify_recorded  # noqa: PLC0415 - heavy

    if speed not in SPEEDS:
        raise ConfigError(f"speed: must be {' or '.join(SPEEDS)}, not {speed!r}")
    recorded = _recorded(Path(capture), settings, verify=verify, progress=progress)
    keeper = _Keeper("replay", out, progress=progress)
    with _as_config_error(), keeper.session(recorded.config) as session:
        if verify:
            verify_recorded(session, recorded)
        else:
            replay_recorded(session, recorded, speed)
    return keeper.result(session)


def compare(
    *machines: str | Path | Config,
    baseline: str | None = None,
    repeat: int | None = None,
    until: float | None = None,
    metric: str = "pairs",
    vary: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> Comparison:
    """Run schemes or machines in turn, many times, and judge the ratios of the same rounds (docs/compare.md).

    Args:
        machines: TOML files or descriptions; with each domain of theirs a candidate. None for the defaults.
        baseline: name of the candidate that the others are compared with; the first by default.
        repeat: rounds, 12 by default; with `until` rounds at most, 96 by default.
        until: percent to which every ratio is to be known.
        metric: what is compared, as for `emu compare`.
        vary: values of the description, by key, as in `{"domain.fq_size": [256, 1024]}`: every combination is one.
        out: new or empty folder for every run and what they say.
        progress: show bars, on a terminal.
        settings: as the options of `emu compare`.

    Raises:
        ConfigError: a setting or a description is wrong, there are not two candidates, or `out` cannot be used.
        MachineError: a machine cannot be made.
        KeyboardInterrupt: the user stopped it; in `out` are the rounds until then.
    """
    from emu.cli.candidates import candidates_of  # noqa: PLC0415 - heavy
    from emu.cli.compare import answered, complaints, exit_code, make_empty, question_of  # noqa: PLC0415 - the same

    bases = [Path(machine) if isinstance(machine, str) else machine for machine in machines]
    varied = {key: list(values) for key, values in (vary or {}).items()}
    folder = None if out is None else Path(out)
    with _as_config_error():
        typed = _typed(settings)
        places = {_place("vary", key): values for key, values in varied.items()}
        candidates = candidates_of(bases or (None,), typed, places, _costs(settings))
        asked = question_of(candidates, baseline, repeat, until, metric)
        make_empty(folder)
    found = answered(asked, folder, quiet=not progress)
    if found.error:
        raise found.error
    if found.is_interrupted:
        raise KeyboardInterrupt
    return Comparison(found, exit_code(found, is_kept=out is not None), complaints(found))


def load(folder: str | Path) -> Result:
    """What an earlier run has left.

    Raises:
        RunDataError: there is none in that folder, or of another version.
    """
    return Result(load_run(Path(folder)))


def sql(query: str, *results: Result) -> pd.DataFrame:
    """Ask several results together; each row says whose it is (`run`, `domain`).

    Args:
        query: in DuckDB's SQL, over the tables of docs/logs.md; it can read no file and write none.
        results: at least one.

    Raises:
        QueryError: the query is wrong.
        RunDataError: the events of a run cannot be read.
    """
    with _with_extra(), LogDatabase([result.data for result in results]) as database:
        return database.as_frame(query)


def questions() -> dict[str, str]:
    """What `Result.ask` and `emu logs --ask` can be asked: names, and what each finds out."""
    return {name: question.about for name, question in QUESTIONS.items()}


class _Keeper:
    """Keeps what a session leaves: in the folder that was asked for, or in one that goes with the result."""

    _numbers = itertools.count(1)

    def __init__(self, command: str, out: str | Path | None, *, progress: bool) -> None:
        self._command = command
        self._is_temporary = out is None
        self._out = _new_folder(self, f"{command}-{next(self._numbers)}") if out is None else Path(out)
        self._output = OutputOptions(out=self._out, quiet=not progress)
        self._messages: list[str] = []

    def session(self, config: Config) -> Session:
        return Session(self._command, config, self._output, self._command, self._messages.append)

    def clean_up(self) -> None:
        """Remove what nobody asked to keep."""
        if self._is_temporary:
            shutil.rmtree(self._out.parent, ignore_errors=True)

    def result(self, session: Session) -> Result:
        if session.error:
            raise session.error
        if session.is_interrupted:
            raise KeyboardInterrupt
        data = load_run(self._out)
        if self._is_temporary:
            data.summary["folder"] = None
        return Result(data, exit_code=session.exit_code, messages=self._messages, keeper=self)


def _new_folder(owner: object, name: str) -> Path:
    """A folder that is removed when its owner is, or at the end of this process."""
    parent = Path(tempfile.mkdtemp(prefix="emu-"))
    weakref.finalize(owner, _remove, parent, os.getpid())
    return parent / name


def _remove(folder: Path, pid: int) -> None:
    # What this process forks has a copy of the owner, but not the right to remove.
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _recorded(capture: Path, settings: Settings, *, verify: bool, progress: bool) -> Recorded:
    from emu.capture.events import CaptureError  # noqa: PLC0415 - heavy
    from emu.cli.replay import prepare_verification, read_recorded  # noqa: PLC0415 - the same

    with _as_config_error():
        typed = _typed(settings)
        if verify:
            prepare_verification(typed)
        try:
            return read_recorded(capture, typed, _costs(settings), physical=verify, quiet=not progress)
        except CaptureError as error:
            raise ConfigError(str(error)) from None


def _typed(settings: Settings) -> _Typed:
    """The settings as the command line's options have them; a complaint names the setting."""
    typed: _Typed = {}
    for name, value in settings.items():
        place = key_of(name)
        if name in ("costs", "set") or value is None:
            continue
        if place is None:
            raise ConfigError(f"{name}: no such setting; there are {', '.join(sorted(Settings.__annotations__))}")
        typed[place] = (name, _value(name, value))
    others = settings.get("set")
    if not isinstance(others, Mapping | None):
        raise ConfigError('set: needs values by their keys, as in {"hypervisor.walk_ns": 2.5}')
    for written, value in (others or {}).items():
        section, key = _place("set", written)
        if (section, key) in typed:
            raise ConfigError(f"{typed[section, key][0]} and set both give {section}.{key}; give one")
        typed[section, key] = (f"set: {written}", value)
    if ("machine", "ops") in typed and ("machine", "seconds") in typed:
        raise ConfigError("ops and seconds contradict each other; give one")
    return typed


def _place(setting: str, written: str) -> tuple[str, str]:
    section, dot, key = str(written).partition(".")
    if not (dot and key):
        raise ConfigError(f"{setting}: {written}: needs the form section.key, as in hypervisor.walk_ns")
    return section, key


def _value(name: str, value: Any) -> Any:
    if name == "switch":
        return [parse_switch(text) for text in _several(value)]
    if name == "policy":
        return str(value)
    return _several(value) if name in _MANY else value


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _costs(settings: Settings) -> Path | None:
    costs = settings.get("costs")
    return None if costs is None else Path(costs)


@contextmanager
def _as_config_error() -> Iterator[None]:
    """A command's complaint, in the words of a caller who gives settings, not options."""
    try:
        yield
    except Failure as failure:
        raise ConfigError(re.sub(r"(?<!\S)--(?=[a-z])", "", str(failure))) from None


@contextmanager
def _with_extra() -> Iterator[None]:
    """Data frames need libraries that the machine does not."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = {"duckdb": "logs", "pandas": "logs", "plotly": "report"}.get(error.name or "")
        if extra is None:
            raise
        error.msg = f"needs {error.name}, which is not installed; pip install 'emu[{extra}]'"
        raise
