"""Runs as tables: what `emu logs` asks in SQL, and what the Python API hands out as data frames.

Every row says whose it is: `run`, the name of the folder, and `domain`. Times that end in `at_ns` or `started_ns` and
the like are ns since the start of the domain's load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emu.analysis.contention import contention
from emu.analysis.flushes import CAUSES
from emu.analysis.machine_log import Clock
from emu.analysis.run_data import DomainRun, RunData, RunDataError
from emu.iommu.tracepoints import EVENT_MAP, EVENT_RPCIT, EVENT_RPCIT_DONE, EVENT_UNMAP, PAGES_BITS
from emu.machine.lock_names import LOCK_NAMES, lock_kind, lock_number
from emu.native.events import event_t
from emu.native.lock import EVENT_LOCK_WAIT

if TYPE_CHECKING:
    import pandas as pd

_WHOSE = {"run": "VARCHAR", "domain": "VARCHAR"}
_PAST = {"at_ns": "BIGINT"}
_WHO = {"role": "VARCHAR", "cpu": "BIGINT"}

COLUMNS: dict[str, dict[str, str]] = {
    "events": {
        **_WHOSE,
        "time": "VARCHAR",
        "time_ns": "BIGINT",
        **_PAST,
        "role": "VARCHAR",
        "pid": "BIGINT",
        "cpu": "BIGINT",
        "event": "VARCHAR",
        "fields": "JSON",
    },
    "flushes": {
        **_WHOSE,
        **dict.fromkeys(("started_ns", "finished_ns", "took_ns"), "BIGINT"),
        **_WHO,
        "cause": "VARCHAR",
        **dict.fromkeys(("entries", "walked", "changed", "wait_ns", "service_ns"), "BIGINT"),
    },
    "locks": {
        **_WHOSE,
        "lock": "VARCHAR",
        **dict.fromkeys(("count", "acquisitions", "contended", "total_wait_ns"), "BIGINT"),
        **dict.fromkeys(("max_wait_ns", "avg_wait_ns", "taken_over"), "BIGINT"),
        "type": "VARCHAR",
        "caller": "VARCHAR",
    },
    "ops": {
        **_WHOSE,
        "cpu": "BIGINT",
        "op": "VARCHAR",
        **_PAST,
        **dict.fromkeys(("iova_pfn", "pages", "took_ns"), "BIGINT"),
    },
    "lock_waits": {**_WHOSE, **_WHO, "lock": "VARCHAR", "number": "BIGINT", **_PAST, "waited_ns": "BIGINT"},
    "requests": {
        **_WHOSE,
        **_WHO,
        "posted_ns": "BIGINT",
        "took_ns": "BIGINT",
        "everything": "BOOLEAN",
        **dict.fromkeys(("first_pfn", "pages", "walked", "changed", "wait_ns", "service_ns"), "BIGINT"),
    },
    "samples": {
        **_WHOSE,
        **_PAST,
        **dict.fromkeys(("pairs", "mapped_pages", "queued", "requests", "busy_ns", "waiting"), "BIGINT"),
    },
    "breakdown": {
        **_WHOSE,
        "op": "VARCHAR",
        "stage": "VARCHAR",
        **dict.fromkeys(("stage_ns", "calls", "total_ns", "measured_ns"), "BIGINT"),
    },
    "processes": {
        **_WHOSE,
        "role": "VARCHAR",
        "pid": "BIGINT",
        "exit": "BIGINT",
        "cpu_s": "DOUBLE",
        **dict.fromkeys(("voluntary_switches", "involuntary_switches", "private_bytes"), "BIGINT"),
    },
    "runs": {**_WHOSE, "command": "VARCHAR", "folder": "VARCHAR"},
}
"""The tables: their columns, and the SQL type of each. `runs` has more, one for each number of summary.json."""

_OF_ENTRY = ("time", "time_ns", "at_ns", "role", "pid", "cpu", "event")
_OF_STAGES = ("calls", "total_ns", "measured_ns")
_OWN_TABLES = ("locks", "processes", "breakdown", "clock")
_OPS = {EVENT_MAP: "map", EVENT_UNMAP: "unmap"}
_CHUNK = 1 << 18
"""Rows of a data frame of what may be larger than memory, at least, where there are as many."""
_MOST = 2**63

Columns = dict[str, Any]


def named(runs: Sequence[RunData]) -> list[tuple[str, RunData]]:
    """Runs and their names: the name of the folder, or its path where others have that name too."""
    names = [run.folder.resolve().name for run in runs]
    return [
        (harmless(name if names.count(name) == 1 else str(run.folder)), run)
        for name, run in zip(names, runs, strict=True)
    ]


def frame(table: str, runs: Sequence[tuple[str, RunData]]) -> pd.DataFrame:
    """A table of COLUMNS as one data frame.

    Args:
        table: its name.
        runs: as `named` gives them.

    Raises:
        RunDataError: what it is made of cannot be read, or is not as this version writes it.
    """
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    parts = list(frames(table, runs))
    columns = COLUMNS[table] if table != "runs" else {}
    if not parts:
        return pd.DataFrame({name: _column([], kind) for name, kind in columns.items()})
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]


def frames(table: str, runs: Sequence[tuple[str, RunData]]) -> Iterator[pd.DataFrame]:
    """The same in parts, for tables that are larger than memory."""
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    if table == "runs":
        rows = [row for name, run in runs for row in _guarded(run, table, lambda: _run_rows(name, run))]  # noqa: B023
        if rows:
            yield _run_frame(rows)
        return
    names, domains = [name for name, _ in runs], sorted({_domain(each) for _, run in runs for each in run.domains})
    for name, run in runs:
        for domain, columns in _guarded(run, table, lambda: _PARTS[table](run)):  # noqa: B023
            made = {key: _column(columns[key], kind) for key, kind in list(COLUMNS[table].items())[len(_WHOSE) :]}
            count = len(next(iter(made.values())))
            if count:
                own = columns.get("domain")
                owner = _repeated(domain, domains, count) if own is None else _chosen(own, domains)
                yield pd.DataFrame({"run": _repeated(name, names, count), "domain": owner, **made})


def _guarded(run: RunData, table: str, rows: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Whatever is wrong with what others have written is one line."""
    try:
        yield from rows()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise RunDataError(f"{run.folder}: the {table} are not as this version writes them; run it again") from None


def harmless(text: str) -> str:
    """Text that UTF-8 can hold: half surrogate pairs, of which names of files may consist, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _column(values: Any, kind: str) -> Any:
    """A column in the type that goes with its SQL type; arrays of NumPy stay what they are."""
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    if isinstance(values, np.ndarray | pd.api.extensions.ExtensionArray):
        return values
    if kind == "BIGINT":
        return pd.array([_whole(value) for value in values], dtype="Int64")
    if kind == "DOUBLE":
        return pd.array([_number(value) for value in values], dtype="Float64")
    if kind == "BOOLEAN":
        return pd.array([value if isinstance(value, bool) else None for value in values], dtype="boolean")
    return pd.array([None if value is None else harmless(str(value)) for value in values], dtype="str")


def _repeated(value: str, among: Sequence[str], count: int) -> Any:
    """The same in every row, in little memory."""
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    return pd.Categorical.from_codes(np.full(count, among.index(value), np.int16), list(among))


def _chosen(values: Sequence[Any], among: Sequence[str]) -> Any:
    """Texts of a few; others are null."""
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    places = {value: place for place, value in enumerate(among)}
    return pd.Categorical.from_codes([places.get(harmless(str(value)), -1) for value in values], list(among))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and -_MOST <= value < _MOST else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _domain(domain: DomainRun) -> str:
    return harmless(domain.domain)


def _run_rows(name: str, run: RunData) -> Iterator[dict[str, Any]]:
    of_all = {"command": run.summary.get("command"), "folder": str(run.folder)}
    environment = dict(_flat("environment", run.summary.get("environment", {})))
    for domain in run.domains:
        own = {key: value for key, value in domain.run.items() if key not in _OWN_TABLES}
        figures = dict(_flat("", own))
        yield {"run": name, "domain": _domain(domain), **of_all, **figures, **environment} | {"run": name}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers and texts by the path to them, as in latency_ns_map_p99; lists as JSON."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            part = re.sub(r"\W+", "_", str(key), flags=re.ASCII).lower()
            yield from _flat(f"{name}_{part}" if name else part, item)
    else:
        yield name, json.dumps(value) if isinstance(value, list) else value


def _run_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame({name: _column(values, _kind(name, values)) for name, values in columns.items()})


def _kind(name: str, values: Sequence[Any]) -> str:
    if name in COLUMNS["runs"]:
        return COLUMNS["runs"][name]
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return "BOOLEAN"
    if known and all(_whole(value) is not None for value in known):
        return "BIGINT"
    # What no run has is a number in most others.
    return "DOUBLE" if all(_number(value) is not None for value in known) else "VARCHAR"


def _of_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Columns:
    return {name: [row.get(name) for row in rows] for name in names}


def _events(run: RunData) -> Iterator[tuple[str, Columns]]:
    entries = list(run.log())
    columns = _of_rows(entries, ["domain", *_OF_ENTRY])
    yield "", {**columns, "fields": [json.dumps(_fields(entry)) for entry in entries]}


def _samples(run: RunData) -> Iterator[tuple[str, Columns]]:
    entries = [entry for entry in run.log() if entry["event"] == "sample"]
    yield "", _of_rows(entries, list(COLUMNS["samples"])[1:])


def _fields(entry: Mapping[str, Any]) -> Any:
    """What an event says beyond what all say, in text that is UTF-8."""
    return _harmless_all({key: value for key, value in entry.items() if key not in (*_OF_ENTRY, "domain")})


def _harmless_all(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless(str(key)): _harmless_all(item) for key, item in value.items()}
    return [_harmless_all(item) for item in value] if isinstance(value, list) else value


def _flushes(run: RunData) -> Iterator[tuple[str, Columns]]:
    for domain in run.domains:
        flushes, clock = domain.flushes(), domain.clock
        ended = flushes["finished_ticks"] >= 0
        started_ns = _since_start(clock, flushes["started_ticks"])
        finished_ns = _since_start(clock, flushes["finished_ticks"])
        took_ns = _ns(flushes["finished_ticks"] - flushes["started_ticks"], clock)
        yield (
            _domain(domain),
            {
                "started_ns": started_ns,
                "finished_ns": _where(ended, finished_ns),
                "took_ns": _where(ended, took_ns),
                "role": _roles(domain, flushes["slot"]),
                "cpu": flushes["cpu"].astype(np.int64),
                "cause": _texts(flushes["cause"], CAUSES, "unknown"),
                "entries": flushes["entries"].copy(),
                **{name: _where(ended, flushes[name]) for name in ("walked", "changed", "wait_ns", "service_ns")},
            },
        )


def _since_start(clock: Clock, ticks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return _ns(ticks - clock.start_ticks, clock)


def _ns(ticks: npt.NDArray[np.int64], clock: Clock) -> npt.NDArray[np.int64]:
    rounded: npt.NDArray[np.int64] = np.rint(ticks * clock.tick_ns).astype(np.int64)
    return rounded


def _where(known: npt.NDArray[np.bool_], values: npt.NDArray[np.int64]) -> Any:
    """Numbers of which some are not known."""
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    return pd.arrays.IntegerArray(values.copy(), ~known)


def _texts(numbers: npt.NDArray[Any], names: Sequence[str], otherwise: str) -> Any:
    """A name for each number, from 0 on."""
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    known = list(dict.fromkeys([*names, otherwise]))
    place = np.array([known.index(name) for name in names] or [0], np.int32)
    inside = (numbers >= 0) & (numbers < len(names))
    codes = np.where(inside, place[np.clip(numbers, 0, len(place) - 1)], known.index(otherwise))
    return pd.Categorical.from_codes(codes, known).astype("str")


def _roles(domain: DomainRun, slots: npt.NDArray[np.int32]) -> Any:
    return _texts(slots, [harmless(str(process["role"])) for process in domain.run["processes"]], "unknown")


def _large(
    run: RunData, codes: tuple[int, ...], columns_of: Callable[[DomainRun, npt.NDArray[np.void]], Columns]
) -> Iterator[tuple[str, Columns]]:
    """A table with a row for each event, some at a time."""
    for domain in run.domains:
        for events in _gathered(domain.chosen_chunks(codes)):
            yield _domain(domain), columns_of(domain, events)


def _gathered(chunks: Iterator[npt.NDArray[np.void]]) -> Iterator[npt.NDArray[np.void]]:
    """Small chunks put together to larger ones, none of them empty."""
    waiting: list[npt.NDArray[np.void]] = []
    for chunk in filter(len, chunks):
        waiting.append(chunk)
        if sum(map(len, waiting)) >= _CHUNK:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _ops(run: RunData) -> Iterator[tuple[str, Columns]]:
    return _large(run, (EVENT_MAP, EVENT_UNMAP), _of_ops)


def _of_ops(domain: DomainRun, events: npt.NDArray[np.void]) -> Columns:
    import pandas as pd  # noqa: PLC0415 - heavy, and of an extra

    return {
        "cpu": events["cpu"].astype(np.int64),
        "op": pd.Categorical.from_codes((events["code"] == EVENT_UNMAP).astype(np.int8), list(_OPS.values())),
        "at_ns": _since_start(domain.clock, events["ticks"]),
        "iova_pfn": events["a"].copy(),
        "pages": events["b"] & ((1 << PAGES_BITS) - 1),
        "took_ns": _ns(events["b"] >> PAGES_BITS, domain.clock),
    }


def _lock_waits(run: RunData) -> Iterator[tuple[str, Columns]]:
    return _large(run, (EVENT_LOCK_WAIT,), _of_lock_waits)


def _of_lock_waits(domain: DomainRun, events: npt.NDArray[np.void]) -> Columns:
    identity: Any = events["a"]
    return {
        "role": _roles(domain, events["slot"].astype(np.int32)),
        "cpu": events["cpu"].astype(np.int64),
        "lock": _texts(np.asarray(lock_kind(identity)), list(LOCK_NAMES.values()), "unknown"),
        "number": lock_number(identity),
        "at_ns": _since_start(domain.clock, events["ticks"]),
        "waited_ns": _ns(events["b"], domain.clock),
    }


def _requests(run: RunData) -> Iterator[tuple[str, Columns]]:
    for domain in run.domains:
        posted = np.empty(0, event_t)
        for chunk in _gathered(domain.chosen_chunks((EVENT_RPCIT, EVENT_RPCIT_DONE))):
            events = np.concatenate((posted, chunk))
            events = events[np.argsort(events["slot"], kind="stable")]
            last = np.append(events["slot"][1:] != events["slot"][:-1], True)
            # What has not been answered in this chunk may be in the next.
            waiting = last & (events["code"] == EVENT_RPCIT)
            posted = events[waiting]
            yield _domain(domain), _of_requests(domain, events[~waiting])
        yield _domain(domain), _of_requests(domain, posted)


def _of_requests(domain: DomainRun, events: npt.NDArray[np.void]) -> Columns:
    starts = np.flatnonzero(events["code"] == EVENT_RPCIT)
    began = events[starts]
    ends = np.minimum(starts + 1, max(len(events) - 1, 0))
    ended = events[ends]
    answered = (ends > starts) & (ended["code"] == EVENT_RPCIT_DONE) & (ended["slot"] == began["slot"])
    low = 0xFFFFFFFF
    return {
        "role": _roles(domain, began["slot"].astype(np.int32)),
        "cpu": began["cpu"].astype(np.int64),
        "posted_ns": _since_start(domain.clock, began["ticks"]),
        "took_ns": _where(answered, _ns(ended["ticks"] - began["ticks"], domain.clock)),
        "everything": began["b"] < 0,
        "first_pfn": began["a"].copy(),
        "pages": np.abs(began["b"]),
        "walked": _where(answered, ended["a"] >> 32),
        "changed": _where(answered, ended["a"] & low),
        "wait_ns": _where(answered, ended["b"] >> 32),
        "service_ns": _where(answered, ended["b"] & low),
    }


def _locks(run: RunData) -> Iterator[tuple[str, Columns]]:
    for domain in run.domains:
        yield _domain(domain), _of_rows(contention(domain.run), list(COLUMNS["locks"])[2:])


def _processes(run: RunData) -> Iterator[tuple[str, Columns]]:
    for domain in run.domains:
        yield _domain(domain), _of_rows(domain.run["processes"], list(COLUMNS["processes"])[2:])


def _breakdown(run: RunData) -> Iterator[tuple[str, Columns]]:
    for domain in run.domains:
        rows = [
            {"op": op, "stage": stage, "stage_ns": ns, **{name: of[name] for name in _OF_STAGES}}
            for op, of in (domain.run.get("breakdown") or {}).items()
            for stage, ns in of["stages_ns"].items()
        ]
        yield _domain(domain), _of_rows(rows, list(COLUMNS["breakdown"])[2:])


_PARTS: dict[str, Callable[[RunData], Iterator[tuple[str, Columns]]]] = {
    "events": _events,
    "flushes": _flushes,
    "locks": _locks,
    "ops": _ops,
    "lock_waits": _lock_waits,
    "requests": _requests,
    "samples": _samples,
    "breakdown": _breakdown,
    "processes": _processes,
}
