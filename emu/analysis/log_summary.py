"""A run's log in short: what happened how often, where nothing happened for longest, what a user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from emu.analysis.run_data import DomainRun, RunData, RunDataError
from emu.analysis.run_tables import harmless

_MESSAGES = ("warning", "error", "death")


def log_summary(name: str, run: RunData) -> dict[str, Any]:
    """What the log of a run says.

    Args:
        name: what the run is called.
        run: the run.

    Returns:
        `run`, `folder`, `command`, `exit_code` and `error` (of its last entry, None where it was cut off), `seconds`
        from the first entry to the last, `entries`, `outside` (their number by event, of those of no domain), `domains`
        and `messages` (`{"event", "domain", "message"}`, each once).
        Of each domain: `domain`, `load_s`, `recorded` and `lost` (events of the rings, None where not all were
        recorded), `left_out` (of the log, as it had too many), `longest_gap_ns` and `gap_from_ns` (the longest part of
        the load of which the log has nothing), `entries`, and `events`: by name `count`, `per_s` of the load,
        `first_ns` and `last_ns`.

    Raises:
        RunDataError: the log cannot be read, or is not as this version writes it.
    """
    entries = list(run.log())
    try:
        return _summary(name, run, entries)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunDataError(f"{run.folder}: its log is not as this version writes it; run it again") from None


def _summary(name: str, run: RunData, entries: list[dict[str, Any]]) -> dict[str, Any]:
    ends = [entry for entry in entries if str(entry["event"]).endswith("_finished") and "exit_code" in entry]
    times = [int(entry["time_ns"]) for entry in entries]
    known = {domain.domain for domain in run.domains}
    outside = Counter(_text(entry["event"]) for entry in entries if entry.get("domain") not in known)
    return {
        "run": name,
        "folder": harmless(str(run.folder)),
        "command": run.summary.get("command"),
        "exit_code": ends[-1]["exit_code"] if ends else None,
        "error": ends[-1].get("error") if ends else None,
        "seconds": (max(times) - min(times)) / 1e9 if times else 0.0,
        "entries": len(entries),
        "outside": dict(outside),
        "domains": [
            _of_domain(domain, [entry for entry in entries if entry.get("domain") == domain.domain])
            for domain in run.domains
        ],
        "messages": _messages(entries),
    }


def _of_domain(domain: DomainRun, entries: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = float(domain.run["seconds"])
    left_out = sum(int(entry["left_out"]) for entry in entries if entry["event"] == "log_truncated")
    moments = list(_moments(domain, entries, whole=not left_out))
    gap_ns, from_ns = _longest_gap(moments, round(seconds * 1e9))
    recorded = domain.run["events"] or {}
    return {
        "domain": harmless(domain.domain),
        "load_s": seconds,
        "recorded": recorded.get("recorded"),
        "lost": recorded.get("lost"),
        "left_out": left_out,
        "longest_gap_ns": gap_ns,
        "gap_from_ns": from_ns,
        "entries": len(entries),
        "events": _events(entries, seconds),
    }


def _events(entries: list[dict[str, Any]], seconds: float) -> dict[str, dict[str, Any]]:
    by_name: dict[str, list[int | None]] = {}
    for entry in entries:
        by_name.setdefault(_text(entry["event"]), []).append(_at_ns(entry))
    found = {}
    for name, moments in sorted(by_name.items(), key=lambda item: (-len(item[1]), item[0])):
        known = [at_ns for at_ns in moments if at_ns is not None]
        found[name] = {
            "count": len(moments),
            "per_s": len(moments) / seconds if known and seconds else None,
            "first_ns": min(known, default=None),
            "last_ns": max(known, default=None),
        }
    return found


def _at_ns(entry: dict[str, Any]) -> int | None:
    """When it happened, in ns since the start of the load; None of what happened before or after."""
    if entry.get("at_ns") is not None:
        return int(entry["at_ns"])
    return round(entry["at_s"] * 1e9) if entry.get("at_s") is not None else None


def _moments(domain: DomainRun, entries: list[dict[str, Any]], *, whole: bool) -> Iterator[int]:
    yield from (at_ns for at_ns in map(_at_ns, entries) if at_ns is not None)
    if whole:
        return
    flushes, clock = domain.flushes(), domain.clock
    for field in ("started_ticks", "finished_ticks"):
        yield from (clock.since_start_ns(int(ticks)) for ticks in flushes[field] if ticks >= 0)


def _longest_gap(moments: list[int], end_ns: int) -> tuple[int, int]:
    """The longest stretch between two moments of the load, and where it begins."""
    inside = sorted({0, *(at_ns for at_ns in moments if 0 < at_ns < end_ns), max(end_ns, 0)})
    return max(((after - before, before) for before, after in pairwise(inside)), default=(0, 0))


def _messages(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    told = [
        {"event": entry["event"], "domain": _text(entry.get("domain") or ""), "message": _text(entry.get("message"))}
        for entry in entries
        if entry["event"] in _MESSAGES
    ]
    return [message for place, message in enumerate(told) if message not in told[:place]]


def _text(value: Any) -> str:
    return harmless(str(value))
