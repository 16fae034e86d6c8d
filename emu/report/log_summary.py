"""A run's log in short, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from emu.report.answer import print_answer, readably
from emu.report.plain import one_line
from emu.report.quantity import amount, duration

COLUMNS = ("domain", "event", "entries", "per s", "first_ns", "last_ns")
TYPES = ("VARCHAR", "VARCHAR", "BIGINT", "DOUBLE", "BIGINT", "BIGINT")


def print_log_summary(console: Console, found: dict[str, Any]) -> None:
    """Print what `emu.analysis.log_summary.log_summary` has found out."""
    console.print(Text(_headline(found), style="bold"), soft_wrap=True)
    for domain in found["domains"]:
        console.print(Text(_domain(domain)), soft_wrap=True)
    console.print()
    print_answer(console, COLUMNS, TYPES, rows(found), readably)
    if found["messages"]:
        console.print()
    for message in found["messages"]:
        whose = f"{message['domain']}: " if message["domain"] else ""
        console.print(
            Text.assemble((message["event"].capitalize(), "yellow"), f": {one_line(whose + message['message'])}"),
            soft_wrap=True,
        )


def rows(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A row for each domain and event, as COLUMNS says."""
    for domain in found["domains"]:
        for name, event in domain["events"].items():
            yield domain["domain"], name, event["count"], event["per_s"], event["first_ns"], event["last_ns"]
    for name, count in found["outside"].items():
        yield None, name, count, None, None, None


def _headline(found: dict[str, Any]) -> str:
    domains = len(found["domains"])
    parts = [f"emu {found['command']}, {domains} domain{'s' * (domains != 1)} in {duration(found['seconds'] * 1e9)}"]
    parts.append("cut off" if found["exit_code"] is None else f"exit code {found['exit_code']}")
    if found["error"]:
        parts.append(str(found["error"]))
    return one_line(f"{found['run']}: {', '.join(parts)}; {found['entries']} entries")


def _domain(domain: dict[str, Any]) -> str:
    parts = [f"{duration(domain['load_s'] * 1e9)} of load"]
    if domain["recorded"] is not None:
        parts.append(f"{amount(domain['recorded'])} events recorded, {amount(domain['lost'])} lost")
    if domain["left_out"]:
        parts.append(f"{amount(domain['left_out'])} events only in the events-*.bin")
    gap, since = duration(domain["longest_gap_ns"]), duration(domain["gap_from_ns"])
    return one_line(f"{domain['domain']}: {'; '.join(parts)}; nothing for at most {gap}, from {since} on")
