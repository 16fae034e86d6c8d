"""A run as a trace that Perfetto and Chrome open: JSON in the Trace Event Format, an event a line.

Every domain is a process of the trace, and every process of its machine a track: CPUs, timer, hypervisor. Time 0 is the
start of each domain's load, so that domains lie one below the other. Events come in no order of time, which the format
does not ask for: so they are written as they are read, and nothing is held whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from emu.analysis.event_streams import merged, process_streams
from emu.analysis.flushes import cause_name
from emu.analysis.operations import MAPPED, UNMAPPED, Rows, lock_label, requests_of, slices_of
from emu.analysis.run_data import DomainRun, RunData

DEFAULT_MOST = 1_000_000

_PAGE_SHIFT = 12
_FOREVER = 1 << 62
_COUNTERS = {"queued": "queued IOVAs", "mapped_pages": "mapped pages", "waiting": "hypervisor queue"}
_INSTANTS = {
    "timer_armed", "timer_fired", "overrun", "lock_taken_over", "sysfs_written", "fault", "fault_over", "process_died",
    "violation", "death", "log_truncated",
}  # fmt: skip
_COMMON = {"time", "time_ns", "role", "pid", "event", "domain", "at_ns"}
_NAMES = {MAPPED: "map", UNMAPPED: "unmap"}


class TraceEvents:
    """The trace of a run.

    Args:
        data: the run.
        domains: those of it that are wanted.
        most: maps, unmaps and lock waits of each domain at most, the first ones.

    Attributes:
        notes: sentences about what was left out; complete once all parts have been taken.
    """

    def __init__(self, data: RunData, domains: list[DomainRun], most: int) -> None:
        self._data, self._domains, self._most = data, domains, most
        self._flows = 0
        self.notes: list[str] = []

    def parts(self) -> Iterator[str]:
        """The text.

        Raises:
            RunDataError: something of the run cannot be read.
        """
        before = '{"displayTimeUnit":"ns","traceEvents":[\n'
        for event in self._events():
            yield before + event
            before = ",\n"
        other = {"command": self._data.summary["command"], "environment": self._data.summary["environment"]}
        yield "\n]," + f'"otherData":{json.dumps({**other, "left_out": self.notes})}' + "}\n"

    def _events(self) -> Iterator[str]:
        for pid, domain in enumerate(self._domains, 1):
            tracks = _Tracks(pid, domain)
            yield from tracks.names()
            yield from self._slices(tracks, domain)
            yield from _flushes(tracks, domain)
        yield from self._from_log()

    def _slices(self, tracks: _Tracks, domain: DomainRun) -> Iterator[str]:
        """Maps, unmaps, lock waits, and requests with their service and what leads from one to the other."""
        until = self._until(domain) if domain.is_recorded else _FOREVER
        if until < _FOREVER:
            args = {"note": self.notes[-1]}
            yield tracks.instant(0, domain.clock.since_start_ns(until), "operations end here", args)
        for stream in process_streams(domain):
            for chunk in stream:
                slices = slices_of(chunk)
                yield from tracks.slices(slices[slices["finished_ticks"] <= until])
        streams = [requests_of(stream, domain.clock) for stream in process_streams(domain)]
        for requests in merged(streams, "served_ns"):
            wanted = (requests["answered_ticks"] <= until) | (requests["pages"] < 0)
            yield from tracks.requests(requests[wanted], self._flows)
            self._flows += len(requests)

    def _until(self, domain: DomainRun) -> int:
        """The ticks up to which operations are shown."""
        count, until = 0, _FOREVER
        streams = [(slices_of(chunk) for chunk in stream) for stream in process_streams(domain)]
        for slices in merged(streams, "finished_ticks"):
            if count + len(slices) > self._most and until == _FOREVER:
                until = int(slices["finished_ticks"][self._most - count]) - 1
            count += len(slices)
        if until < _FOREVER:
            shown_s = domain.clock.since_start_ns(until) / 1e9
            self.notes.append(
                f"{domain.domain}: of {count} maps, unmaps and lock waits only the first {self._most} at most are "
                f"here, and requests, up to {shown_s:.6f} s; flushes and counters are all here."
            )
        return until

    def _from_log(self) -> Iterator[str]:
        tracks = {domain.domain: _Tracks(pid, domain) for pid, domain in enumerate(self._domains, 1)}
        for entry in self._data.log():
            track = tracks.get(str(entry.get("domain")))
            if track is None:
                continue
            at_ns = _at_ns(entry)
            if entry["event"] == "sample":
                for field, name in _COUNTERS.items():
                    yield track.counter(at_ns, name, int(entry[field]))
            elif entry["event"] in _INSTANTS:
                args = {name: value for name, value in entry.items() if name not in _COMMON}
                yield track.instant(track.of_role(str(entry["role"])), at_ns, str(entry["event"]), args)


class _Tracks:
    """The tracks of one domain: 0 is the supervisor's, those of its processes follow, each its slot + 1."""

    def __init__(self, pid: int, domain: DomainRun) -> None:
        self._pid, self._domain, self._clock = pid, domain, domain.clock
        self._roles = [str(process["role"]) for process in domain.run["processes"]]
        servers = [slot + 1 for slot, role in enumerate(self._roles) if role.startswith("hypervisor")]
        # Who serves its own requests does so in turn with all others: that is one server too.
        self._is_inline = not servers
        self._servers = servers or [len(self._roles) + 1]
        self._free_at_ns = dict.fromkeys(self._servers, 0)

    def names(self) -> Iterator[str]:
        """What the viewer calls the tracks, and their order."""
        run = self._domain.run
        title = f"{run['domain']}: {run['workload']}, {run['preset']}, {run['engine']}"
        yield self._metadata(0, "process_name", {"name": title})
        yield self._metadata(0, "process_sort_index", {"sort_index": self._pid})
        inline = ["hypervisor (inline)"] if self._is_inline else []
        for tid, name in enumerate(["supervisor", *self._roles, *inline]):
            yield self._metadata(tid, "thread_name", {"name": name})
            yield self._metadata(tid, "thread_sort_index", {"sort_index": tid or len(self._roles) + 2})

    def of_role(self, role: str) -> int:
        """The track of a process."""
        return self._roles.index(role) + 1 if role in self._roles else 0

    def instant(self, tid: int, at_ns: int, name: str, args: dict[str, Any]) -> str:
        """Something without a length."""
        return self._event("i", tid, at_ns, f'"s":"t","name":{json.dumps(name)},"args":{json.dumps(args)}')

    def counter(self, at_ns: int, name: str, value: int) -> str:
        """A counter's new value."""
        return self._event("C", 0, at_ns, f'"name":{json.dumps(name)},"args":{{"value":{value}}}')

    def slice(self, tid: int, since_ns: int, until_ns: int, name: str, args: str) -> str:
        """Something that lasts."""
        dur = _us(max(until_ns - max(since_ns, 0), 0))
        return self._event("X", tid, since_ns, f'"dur":{dur},"name":{json.dumps(name)},"args":{{{args}}}')

    def slices(self, rows: Rows) -> Iterator[str]:
        """Maps, unmaps and lock waits; rows of slice_t."""
        since, until = self._times(rows["started_ticks"]), self._times(rows["finished_ticks"])
        fields = (rows[name].tolist() for name in ("slot", "kind", "a", "b"))
        for since_ns, until_ns, slot, kind, a, b in zip(since, until, *fields, strict=True):
            if kind in _NAMES:
                name = _NAMES[kind] if a else "map failed"
                args = f'"iova":"0x{a << _PAGE_SHIFT:x}","pages":{b}'
            else:
                lock, number = lock_label(a)
                name, args = f"wait for {lock}", f'"number":{number}'
            yield self.slice(slot + 1, since_ns, until_ns, name, args)

    def requests(self, rows: Rows, first_flow: int) -> Iterator[str]:
        """Requests, in the order in which they were served; rows of request_t."""
        posted, answered = self._times(rows["posted_ticks"]), self._times(rows["answered_ticks"])
        names = ("slot", "cpu", "pfn", "pages", "walked", "changed", "wait_ns", "service_ns", "served_ns")
        fields = (rows[name].tolist() for name in names)
        for number, row in enumerate(zip(posted, answered, *fields, strict=True)):
            posted_ns, answered_ns, slot, cpu, pfn, pages, walked, changed, wait_ns, service_ns, served_ns = row
            kind = "everything" if pages < 0 else "range"
            args = f'"iova":"0x{pfn << _PAGE_SHIFT:x}","pages":{abs(pages)},"walked":{walked},"changed":{changed}'
            times = f'"wait_ns":{wait_ns},"service_ns":{service_ns}'
            yield self.slice(slot + 1, posted_ns, answered_ns, f"request ({kind})", f"{args},{times}")
            if not service_ns:
                continue
            server = self._server_at(served_ns)
            # Times are rounded to ns, so a service may seem to begin 1 ns before the one that it waited for was over.
            begin_ns = max(served_ns, self._free_at_ns[server])
            end_ns = max(served_ns + service_ns, begin_ns)
            self._free_at_ns[server] = end_ns
            yield self.slice(server, begin_ns, end_ns, f"serve ({kind})", f'"cpu":{cpu},{args},{times}')
            flow = f'"id":{first_flow + number},"cat":"request","name":"request"'
            yield self._event("s", slot + 1, posted_ns, flow)
            yield self._event("f", server, begin_ns, f'"bp":"e",{flow}')

    def flush(self, row: dict[str, Any]) -> str:
        """A flush of everything, or where its end is not known, its beginning; a row of flush_t."""
        since_ns = self._clock.since_start_ns(row["started_ticks"])
        cause = cause_name(row["cause"])
        figures = {name: row[name] for name in ("cpu", "entries", "walked", "changed", "wait_ns", "service_ns")}
        args = {"cause": cause, **figures}
        if row["finished_ticks"] < 0:
            return self.instant(row["slot"] + 1, since_ns, f"flush ({cause}), never over", args)
        until_ns = self._clock.since_start_ns(row["finished_ticks"])
        return self.slice(row["slot"] + 1, since_ns, until_ns, f"flush ({cause})", json.dumps(args)[1:-1])

    def _server_at(self, at_ns: int) -> int:
        """Which server may have been the one: of those that are free the one that has been so for the shortest time."""
        free = [server for server in self._servers if self._free_at_ns[server] <= at_ns]
        if free:
            return max(free, key=lambda server: self._free_at_ns[server])
        return min(self._servers, key=lambda server: self._free_at_ns[server])

    def _times(self, ticks: Any) -> list[int]:
        times: list[int] = np.maximum(self._clock.times_since_start_ns(ticks), 0).tolist()
        return times

    def _metadata(self, tid: int, name: str, args: dict[str, Any]) -> str:
        return f'{{"ph":"M","pid":{self._pid},"tid":{tid},"name":"{name}","args":{json.dumps(args)}}}'

    def _event(self, phase: str, tid: int, at_ns: int, rest: str) -> str:
        return f'{{"ph":"{phase}","pid":{self._pid},"tid":{tid},"ts":{_us(max(at_ns, 0))},{rest}}}'


def _flushes(tracks: _Tracks, domain: DomainRun) -> Iterator[str]:
    flushes = domain.flushes()
    for row in flushes:
        named = dict(zip(flushes.dtype.names or (), row.tolist(), strict=True))
        yield tracks.flush(named)
        yield tracks.counter(domain.clock.since_start_ns(named["started_ticks"]), "being flushed", named["entries"])
        if named["finished_ticks"] >= 0:
            yield tracks.counter(domain.clock.since_start_ns(named["finished_ticks"]), "being flushed", 0)


def _at_ns(entry: dict[str, Any]) -> int:
    """Since the start of the load; 0 of what does not say."""
    at_ns, at_s = entry.get("at_ns"), entry.get("at_s")
    if at_ns is not None:
        return int(at_ns)
    return round(float(at_s) * 1e9) if at_s is not None else 0


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"
