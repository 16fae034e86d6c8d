"""The event log, `events.jsonl`: which events there are, and what each says.

A line is one JSON object. What every line has, `Entry` says; each event's own fields are those of the model of its
name, and no others. Between versions of the same SCHEMA, events and fields may be added; nothing changes its meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

SCHEMA = 1

Cause = Literal["full", "timeout", "no_resources", "wrap", "early"]


class Entry(BaseModel):
    """What every entry has.

    Attributes:
        time: when, UTC, ISO 8601 to the µs.
        time_ns: when, CLOCK_MONOTONIC.
        role: whose process saw it: "supervisor", "cpu 0", "timer", "hypervisor", "device".
        pid: of that process; 0 of a fiber on virtual clocks.
        domain: the domain that ran, or null.
        at_ns: of what happened while a load ran, ns since its start on the machine's clock, which may be a virtual one;
            `time` and `time_ns` are then when it was written.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    time: str
    time_ns: int
    role: str
    pid: int
    domain: str | None = None
    at_ns: int | None = None


class Started(Entry):
    """A command has begun."""

    event: Literal["run_started", "replay_started"]
    schema_: int = Field(alias="schema")
    config: dict[str, Any]
    environment: dict[str, Any]


class Finished(Entry):
    """A command has ended."""

    event: Literal["run_finished", "replay_finished"]
    exit_code: int
    error: str | None


class Message(Entry):
    """Something that a user should know."""

    event: Literal["warning", "error", "death"]
    message: str


class Interrupted(Entry):
    """The user has stopped it."""

    event: Literal["interrupted"]


class DomainStarted(Entry):
    """A domain's machine is being made."""

    event: Literal["domain_started"]
    workload: str
    cpus: int


class LoadStarted(Entry):
    """All processes have been told to go."""

    event: Literal["load_started"]


class DomainFinished(Entry):
    """A domain's run is over; its key figures, as in summary.json."""

    event: Literal["domain_finished"]
    ops: int
    seconds: float
    pairs_per_s: float
    counters: dict[str, int]
    flushes: dict[str, int]
    overruns: int
    violations: int


class Sample(Entry):
    """A look at the running machine; sums over its processes, which may be a little off.

    Attributes:
        pairs: maps and unmaps done.
        mapped_pages: that are mapped now.
        queued: IOVAs that wait for a flush.
        requests: that the hypervisor has served.
        busy_ns: how long it has been busy with them in all.
        waiting: requests in its queue now.
    """

    event: Literal["sample"]
    pairs: int
    mapped_pages: int
    queued: int
    requests: int
    busy_ns: int
    waiting: int


class FlushStarted(Entry):
    """A flush of everything begins; `entries`: IOVAs that wait for it, as far as its process sees."""

    event: Literal["flush_started"]
    cpu: int
    cause: Cause
    entries: int


class FlushFinished(Entry):
    """It has ended.

    Attributes:
        took_ns: from its beginning.
        walked: entries of the guest's table that were inspected.
        changed: those that were brought up to date in the shadow table.
        wait_ns: until a server of the hypervisor was free.
        service_ns: from then on until it had done.
    """

    event: Literal["flush_finished"]
    cpu: int
    cause: Cause
    entries: int
    took_ns: int
    walked: int
    changed: int
    wait_ns: int
    service_ns: int


class Timer(Entry):
    """The flush timer was armed, or fires; `due_at_ns` since the start of the load."""

    event: Literal["timer_armed", "timer_fired"]
    cpu: int
    due_at_ns: int


class Overrun(Entry):
    """An append wrapped onto the head of its full ring."""

    event: Literal["overrun"]
    cpu: int
    lost_iovas: int


class LockTakenOver(Entry):
    """A lock was taken from a dead owner, `waited_ns` after the death was noticed; `number`: which of that name."""

    event: Literal["lock_taken_over"]
    cpu: int
    lock: str
    number: int
    waited_ns: int


class SysfsWritten(Entry):
    """A type was written, or a driver unbound or bound; `errno` where that was refused; `function`: whose, if named."""

    event: Literal["sysfs_written"]
    at_s: float
    type: str | None
    driver: str | None
    function: int | None
    errno: str | None
    reason: str | None
    by: str


class Fault(Entry):
    """A fault happens on purpose, or is over; `done`: to whom, or null where there was nobody."""

    event: Literal["fault", "fault_over"]
    fault: str
    at_s: float
    done: str | None


class ProcessDied(Entry):
    """A process died before its time; as in `deaths` of summary.json."""

    event: Literal["process_died"]
    cause: str
    at_s: float | None
    fault: str | None
    held: list[str]
    flush_under_way: bool
    noticed_after_ns: int | None
    handovers: list[dict[str, Any]]
    recovered: bool
    then: str


class ProcessEnded(Entry):
    """A process has ended; as in `processes` of summary.json."""

    event: Literal["process_ended"]
    exit: int | None
    cpu_s: float
    voluntary_switches: int
    involuntary_switches: int
    private_bytes: int | None


class Violation(Entry):
    """One of the first violations of its kind; as in `first_violations` of summary.json."""

    event: Literal["violation"]
    kind: str
    at_s: float
    by: str
    iova: str
    what: str


class LogTruncated(Entry):
    """So many events of the machine are not here, but in events-machine.bin, or in events-*.bin."""

    event: Literal["log_truncated"]
    left_out: int


AnyEntry = Annotated[
    Started
    | Finished
    | Message
    | Interrupted
    | DomainStarted
    | LoadStarted
    | DomainFinished
    | Sample
    | FlushStarted
    | FlushFinished
    | Timer
    | Overrun
    | LockTakenOver
    | SysfsWritten
    | Fault
    | ProcessDied
    | ProcessEnded
    | Violation
    | LogTruncated,
    Field(discriminator="event"),
]
entry_adapter: TypeAdapter[Any] = TypeAdapter(AnyEntry)
"""Validates one entry of a log: `entry_adapter.validate_python(json.loads(line))`."""
