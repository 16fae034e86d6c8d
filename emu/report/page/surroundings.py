"""What ran, where, and what a reader must not overlook: violations, warnings and what happened on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from emu.report.page.chart import Data, Section
from emu.report.page.series import Series, Subject
from emu.report.page.text import markup, plain
from emu.report.quantity import NOTHING, amount
from emu.report.reading import remarks

_MOST = 40
"""Sentences of one kind; more are only counted."""
_GIB = 1 << 30


def alarms(subjects: Sequence[Subject]) -> list[str]:
    """What stands above everything else: violations, deaths, runs that were cut short; markup."""
    found = [sentence for subject in subjects for sentence in _alarms(subject, several=len(subjects) > 1)]
    return _at_most(list(dict.fromkeys(found)))


def surroundings(subjects: Sequence[Subject]) -> Section:
    """The section of the environment and all warnings."""
    said = [sentence for subject in subjects for sentence in _warnings(subject, several=len(subjects) > 1)]
    parts: list[str | Data] = _at_most(list(dict.fromkeys(said))) or ["There are no warnings."]
    happened = [row for subject in subjects for row in _happened(subject)]
    if happened:
        parts.append(Data("What happened on the way", ("run", "at, s", "domain", "what"), happened))
    parts.append(_machines(subjects))
    processes = [row for subject in subjects for each in subject.series for row in _processes(each)]
    if processes:
        headers = ("scheme", "process", "CPU time, s", "switches", "forced switches", "exit")
        parts.append(Data("Processes of the emulated machines", headers, processes, is_folded=True))
    return Section("environment", "Environment and warnings", parts)


def _alarms(subject: Subject, *, several: bool) -> Iterator[str]:
    which = f"{subject.letter}: " if several else ""
    for run in subject.runs:
        if run["violations"]:
            yield from (markup(f"{which}{sentence}") for sentence in remarks([run]))
        if run.get("died"):
            yield markup(f"{which}{run['domain']}: {run['died']}; its numbers are partial.")
        yield from (markup(f"{which}{run['domain']}: {_death(death)}") for death in run.get("deaths") or ())
        if run.get("interrupted"):
            yield markup(f"{which}{run['domain']} was interrupted; its numbers are partial.")
    if any(entry["event"] == "interrupted" and not entry.get("domain") for entry in subject.entries):
        yield markup(f"{which}the run was interrupted; what had not been run is missing.")
    elif not subject.is_whole and not subject.log_problem:
        yield markup(f"{which}the log ends before the run did: it goes on still, or its end was lost.")
    for entry in subject.entries:
        if entry["event"] == "error":
            yield markup(f"{which}{entry.get('message')}.")


def _death(death: dict[str, Any]) -> str:
    return f"{death.get('role')} {death.get('cause')}; {death.get('then')}"


def _warnings(subject: Subject, *, several: bool) -> Iterator[str]:
    which = f"{subject.letter}: " if several else ""
    for sentence in _sentences(subject):
        yield markup(f"{which}{plain(sentence).rstrip('.')}.")


def _sentences(subject: Subject) -> Iterator[str]:
    yield from remarks(subject.runs)
    yield from subject.data.summary["environment"].get("warnings", ())
    for run in subject.runs:
        yield from (f"{run['domain']}: {warning}" for warning in run.get("warnings") or ())
        yield from run.get("notes") or ()
        events = run.get("events")
        if events and events["lost"]:
            yield f"{run['domain']}: {amount(events['lost'])} events of operations were lost."
    if subject.log_problem:
        yield f"its log: {subject.log_problem}"
    for entry in subject.entries:
        if entry["event"] == "log_truncated":
            yield f"{entry.get('domain')}: {entry.get('left_out')} events of the machine are not in its log."


def _happened(subject: Subject) -> Iterator[Sequence[str]]:
    """Writes to sysfs, faults, deaths and locks taken over."""
    for entry in subject.entries:
        tell = _TELL.get(entry["event"])
        if tell:
            at_ns = entry.get("at_ns")
            at_s = entry.get("at_s", at_ns / 1e9 if isinstance(at_ns, int) else None)
            at = f"{at_s:.6f}" if isinstance(at_s, int | float) else NOTHING
            yield subject.letter, at, markup(entry.get("domain") or NOTHING), markup(tell(entry))


def _written(entry: dict[str, Any]) -> str:
    what = f"type {entry.get('type')}" if entry.get("type") else f"driver {entry.get('driver')}"
    return f"{what} written to sysfs by the {entry.get('by')}{_refusal(entry)}"


def _refusal(entry: dict[str, Any]) -> str:
    return f", refused: {entry['errno']}, {entry.get('reason')}" if entry.get("errno") else ""


def _fault(entry: dict[str, Any]) -> str:
    return f"fault {entry.get('fault')}: {entry.get('done') or 'there was nobody to do it to'}"


_TELL: dict[str, Callable[[dict[str, Any]], str]] = {
    "sysfs_written": _written,
    "fault": _fault,
    "fault_over": lambda entry: f"fault {entry.get('fault')} is over",
    "process_died": lambda entry: f"{entry.get('role')} {entry.get('cause')}; {entry.get('then')}",
    "lock_taken_over": lambda entry: f"{entry.get('role')} took {entry.get('lock')} over from a dead owner",
    "overrun": lambda entry: f"overrun on CPU {entry.get('cpu')} lost {entry.get('lost_iovas')} IOVAs",
    "violation": lambda entry: f"{entry.get('kind')}, by {entry.get('by')}: {entry.get('what')}",
}


def _machines(subjects: Sequence[Subject]) -> Data:
    rows = []
    for title, read in _ROWS.items():
        cells = [read(subject) for subject in subjects]
        if any(cell is not None for cell in cells):
            rows.append((title, *(NOTHING if cell is None else markup(cell) for cell in cells)))
    headers = [subject.letter for subject in subjects] if len(subjects) > 1 else ["this run"]
    return Data("What ran where", ("", *headers), rows)


def _of_environment(name: str) -> Callable[[Subject], object]:
    return lambda subject: subject.data.summary["environment"].get(name)


def _of_runs(name: str) -> Callable[[Subject], object]:
    """What its domains have in common, or all that they have."""
    return lambda subject: ", ".join(dict.fromkeys(str(run[name]) for run in subject.runs if name in run)) or None


def _checked(subject: Subject) -> str | None:
    known = {bool(run["checked"]) for run in subject.runs if "checked" in run}
    return None if not known else "in some domains" if len(known) > 1 else "yes" if known.pop() else "no"


def _queue(subject: Subject) -> str | None:
    known = [(run["domain"], run["queue"]) for run in subject.runs if run.get("queue")]
    said = (
        f"{domain}: {queue['rings']} × {queue['size']} entries, {queue['timeout_ms']:g} ms" for domain, queue in known
    )
    return "; ".join(said) or None


def _on_purpose(name: str) -> Callable[[Subject], str | None]:
    return lambda subject: (
        ", ".join(dict.fromkeys(each for run in subject.runs for each in run.get(name) or ())) or None
    )


def _cores(subject: Subject) -> str | None:
    found = subject.data.summary["environment"]
    return f"{found['cores_usable']} of {found['cores']} usable" if "cores_usable" in found else None


def _memory(subject: Subject) -> str | None:
    found = subject.data.summary["environment"].get("memory_bytes")
    return f"{found / _GIB:.1f} GiB" if found else None


def _load(subject: Subject) -> str | None:
    found = subject.data.summary["environment"].get("load")
    return ", ".join(f"{average:.2f}" for average in found) if found else None


def _began(subject: Subject) -> object:
    time = next((entry.get("time") for entry in subject.entries if str(entry["event"]).endswith("_started")), None)
    return f"{str(time)[:19].replace('T', ' ')} UTC" if time else None


def _policy(subject: Subject) -> object:
    policies = {f"{policy['name']} ({policy['key']})" for run in subject.runs if (policy := run.get("policy"))}
    return ", ".join(sorted(policies)) or None


_ROWS: dict[str, Callable[[Subject], object]] = {
    "folder": lambda subject: subject.data.folder,
    "command": lambda subject: subject.data.summary.get("command"),
    "begun": _began,
    "engine": _of_runs("engine"),
    "preset": _of_runs("preset"),
    "workload": _of_runs("workload"),
    "emulated CPUs": _of_runs("cpus"),
    "device": _of_runs("device"),
    "queues": _queue,
    "every operation checked": _checked,
    "faults on purpose": _on_purpose("faults"),
    "bugs on purpose": _on_purpose("bugs"),
    "policy": _policy,
    "emu": _of_environment("emu"),
    "this machine's kernel": _of_environment("kernel"),
    "architecture": _of_environment("architecture"),
    "CPU": _of_environment("cpu"),
    "cores": _cores,
    "memory": _memory,
    "load before the run": _load,
    "governor": _of_environment("governor"),
    "Python": _of_environment("python"),
    "Numba": _of_environment("numba"),
    "NumPy": _of_environment("numpy"),
    "llvmlite": _of_environment("llvmlite"),
}


def _processes(series: Series) -> Iterator[Sequence[str]]:
    for process in series.run["processes"]:
        if process.get("pid"):
            yield (
                series.name,
                markup(process["role"]),
                amount(process.get("cpu_s")),
                amount(process.get("voluntary_switches")),
                amount(process.get("involuntary_switches")),
                markup(NOTHING if process.get("exit") is None else process["exit"]),
            )


def _at_most(sentences: list[str]) -> list[Any]:
    left_out = len(sentences) - _MOST
    return sentences if left_out <= 0 else [*sentences[:_MOST], f"… and {left_out} more of this kind."]
