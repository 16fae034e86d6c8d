"""Running domains in turn: results are kept and shown whatever happens on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from emu.analysis.environment import environment, scheduling_warnings
from emu.analysis.log_schema import SCHEMA
from emu.analysis.summary import as_json, summary
from emu.cli.failure import DEATH, FINE, INTERRUPTED, VIOLATION, WRONG_CALL, Failure
from emu.cli.options import OutputOptions
from emu.config import Config, ConfigError, DomainType
from emu.experiment import EventCollector, MachineError, Outcome, run_machine
from emu.machine.run_folder import RunFolder, RunFolderError, open_run_folder
from emu.policy import read_policy
from emu.report.functions import print_functions
from emu.report.plain import one_line, plain
from emu.report.progress import ProgressBars
from emu.report.reading import gain_and_exposure, most_waited_for_locks, remarks
from emu.report.table import print_table
from emu.workload.program import Workload

_KEY_FIGURES = ("ops", "seconds", "pairs_per_s", "counters", "flushes", "overruns", "violations")


class Session:
    """One command that runs domains.

    Args:
        command: "run" or "replay".
        config: the resolved description.
        output: where results go.
        label: what it is about, for the folder's name.
        say: told, a line each, why the results are not what was asked for; by default on stderr.

    Attributes:
        runs: results so far, elements of `runs` in summary.json.
        more: further keys of summary.json.
        disagrees: results differ from what they must be.

    Raises:
        Failure: the folder that the user named cannot be used.
    """

    def __init__(
        self,
        command: str,
        config: Config,
        output: OutputOptions,
        label: str,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.runs: list[dict[str, Any]] = []
        self.more: dict[str, Any] = {}
        self.disagrees = False
        self._command = command
        self._config = config
        self._output = output
        self._is_virtual = config.machine.engine == "sim"
        self._environment = environment()
        self._warnings = self._warnings_beforehand()
        self._died: str | None = None
        self._interrupted = False
        self._error: MachineError | ConfigError | None = None
        self._say_line = say or self._print_line
        self._bars = ProgressBars(quiet=output.quiet)
        self._folder = _folder(output, label)

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        if self._interrupted:
            return INTERRUPTED
        if self._error:
            return WRONG_CALL
        if self._died or any(death["fault"] is None for run in self.runs for death in run.get("deaths", ())):
            return DEATH
        if self.disagrees or any(_is_violated(run) for run in self.runs):
            return VIOLATION
        if self._output.out and self._folder.problem:
            return WRONG_CALL
        return FINE

    @property
    def error(self) -> MachineError | ConfigError | None:
        """Why there is no result, or not of every domain, where the machine could not be made."""
        return self._error

    @property
    def is_interrupted(self) -> bool:
        """Whether the user stopped it."""
        return self._interrupted

    @property
    def is_whole(self) -> bool:
        """Whether every domain ran to its end."""
        return not (self._interrupted or self._error or self._died)

    def __enter__(self) -> Self:
        self._write_config()
        self._folder.log(
            f"{self._command}_started",
            schema=SCHEMA,
            config=self._config.model_dump(mode="json"),
            environment=self._environment,
        )
        for warning in self._warnings:
            self._folder.log("warning", message=warning)
        for bug in self._config.domain.bugs:
            message = f"BUG ON PURPOSE: {bug} is on, so this is not how a sound kernel behaves"
            self._folder.log("warning", message=message)
            self._say(message)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.log(f"{self._command}_finished", exit_code=self.exit_code, error=repr(error) if error else None)
        self._folder.close()
        self._complain()

    def _write_config(self) -> None:
        """The description and, beside it, the policy that it names, so that it runs wherever the folder is."""
        config = self._config
        if config.domain.policy is not None:
            source = read_policy(config.domain.policy)
            kept = f"{source.name}.py"
            self._folder.write(kept, source.text)
            config = config.model_copy(update={"domain": config.domain.model_copy(update={"policy": kept})})
        self._folder.write("config.toml", config.to_toml())

    def run_domains(self, workload_of: Callable[[], Workload], *, real_time: bool = False) -> None:
        """Run every domain of the description under one load, until one fails.

        Args:
            workload_of: builds the load, the same for all.
            real_time: honour recorded times.
        """
        with self.working():
            workload = workload_of()
            for domain in self._config.domain.types:
                self.run_domain(self._config, domain, workload, real_time=real_time)
                if not self.is_whole:
                    break

    @contextmanager
    def working(self) -> Iterator[None]:
        """Show progress, note what goes wrong, and bring the summary up to date at the end."""
        try:
            with self._bars:
                yield
        except KeyboardInterrupt:
            self._interrupted = True
            self._folder.log("interrupted")
        except (MachineError, ConfigError) as error:
            self._error = error
            self._folder.log("error", message=str(error))
        self.write_summary()

    def run_quietly(self, label: str, *arguments: Any, **options: Any) -> Outcome:
        """Run a machine whose result is only a part of another's; arguments as emu.experiment.run_machine."""
        outcome = run_machine(
            *arguments,
            **options,
            real_time=True,
            on_compile=self._bars.compiled,
            on_progress=lambda fraction: self._bars.ran(label, fraction),
        )
        self._interrupted = self._interrupted or outcome.interrupted
        return outcome

    def advance(self, label: str, fraction: float) -> None:
        """Show how far something is, 0 to 1, that is no run."""
        self._bars.ran(label, fraction)

    def write_summary(self) -> None:
        """Bring summary.json up to date."""
        self._folder.write("summary.json", as_json(self._summary()))

    def print_object(self, found: Mapping[str, Any]) -> None:
        """Print one JSON object on stdout and nothing else."""
        sys.stdout.write(as_json(found))
        sys.stdout.flush()

    def print_folder(self, console: Console) -> None:
        """Say where the results lie."""
        if self._folder.path and not self._folder.problem:
            console.print(f"Results: {plain(str(self._folder.path))}", soft_wrap=True)

    def print_results(self, print_more: Callable[[Console], None] | None = None) -> None:
        """Print what was found out: one JSON object, or the table and what to make of it.

        Args:
            print_more: prints what else there is, between the table and the notes.
        """
        if self._output.json:
            self.print_object(self._summary())
            return
        console = Console(highlight=False)
        print_table(console, self.runs)
        console.print()
        if any(run.get("functions") for run in self.runs):
            print_functions(console, self.runs)
            console.print()
        for line in (*gain_and_exposure(self.runs), *most_waited_for_locks(self.runs)):
            console.print(plain(line))
        if print_more:
            print_more(console)
        for line in dict.fromkeys([*remarks(self.runs), *self._all_warnings()]):
            console.print(f"[yellow]Note[/yellow]: {plain(line)}")
        self.print_folder(console)

    def run_domain(
        self,
        config: Config,
        domain: DomainType,
        workload: Workload,
        *,
        real_time: bool,
        collect_in: EventCollector | None = None,
    ) -> Outcome:
        """Run one domain and keep its result; arguments as emu.experiment.run_machine."""
        self._folder.log("domain_started", domain=domain, workload=workload.name, cpus=len(workload.programs))
        outcome = run_machine(
            config,
            domain,
            workload,
            real_time=real_time,
            record_to=self._recording_folder(domain),
            collect_in=collect_in,
            control_in=self._folder.path,
            on_compile=self._bars.compiled,
            on_progress=lambda fraction: self._bars.ran(domain, fraction),
            on_event=lambda event, values: self._note(event, domain=domain, **values),
        )
        self._take(outcome)
        self.write_summary()
        return outcome

    def _note(self, event: str, **values: Any) -> None:
        self._folder.log(event, **values)
        if event == "fault" and str(values["fault"]).startswith("disk-full"):
            self._folder.fill_disk()

    def _recording_folder(self, domain: DomainType) -> Path | None:
        """Where events are recorded to: with several domains, each has a folder of its own."""
        if self._folder.path is None or len(self._config.domain.types) == 1:
            return self._folder.path
        return self._folder.path / domain

    def _take(self, outcome: Outcome) -> None:
        run = outcome.run
        domain = run["domain"]
        self.runs.append(run)
        for warning in outcome.warnings:
            self._folder.log("warning", domain=domain, message=warning)
        for process in run["processes"]:
            self._folder.log("process_ended", domain=domain, **process)
        if outcome.died:
            self._died = f"{domain}: {outcome.died}"
            self._folder.log("death", domain=domain, message=outcome.died)
        if outcome.interrupted:
            self._interrupted = True
            self._folder.log("interrupted", domain=domain)
        self._folder.log("domain_finished", domain=domain, **{name: run[name] for name in _KEY_FIGURES})

    def _warnings_beforehand(self) -> list[str]:
        # Virtual clocks do not know how busy this machine is.
        if self._is_virtual:
            return []
        return scheduling_warnings(self._environment, self._config.machine.cpus, self._config.servers)

    def _summary(self) -> dict[str, Any]:
        # On virtual clocks the same description gives the same summary to the byte, wherever and whenever it runs.
        known = {"emu": self._environment["emu"]} if self._is_virtual else self._environment
        whole = {**known, "warnings": self._warnings}
        folder = str(self._folder.path) if self._folder.path and not self._is_virtual else None
        return summary(whole, self.runs, command=self._command, folder=folder, **self.more)

    def _all_warnings(self) -> list[str]:
        of_runs = [f"{run['domain']}: {text}" for run in self.runs for text in run["warnings"]]
        notes = [text for run in self.runs for text in run.get("notes", ())]
        return [*self._warnings, *of_runs, *notes]

    def _complain(self) -> None:
        """Say on stderr, a line each, why the results are not what was asked for."""
        for run in self.runs:
            for death in run.get("deaths", ()):
                if death["recovered"]:
                    why = f" by fault {death['fault']}" if death["fault"] else ""
                    self._say(
                        f"{run['domain']}: {death['role']} (pid {death['pid']}) {death['cause']}{why}; {death['then']}"
                    )
        for problem in (self._died, "interrupted; what was measured is kept" if self._interrupted else None):
            if problem:
                self._say(f"{problem}; results are partial" if problem is self._died else problem)
        for reason in (self._error, self._folder.problem):
            if reason:
                self._say(str(reason))

    def _say(self, message: str) -> None:
        self._say_line(one_line(" ".join(message.split())))

    def _print_line(self, line: str) -> None:
        print(f"emu {self._command}: {line}", file=sys.stderr)


def _folder(output: OutputOptions, label: str) -> RunFolder:
    try:
        return open_run_folder(output.out, label)
    except RunFolderError as error:
        raise Failure(f"--out {error}") from None


def _is_violated(run: dict[str, Any]) -> bool:
    return bool(run["violations"])
