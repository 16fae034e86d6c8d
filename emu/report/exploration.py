"""What a search over schedules has come to, in words and as data."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from emu.explore.bounds import Bounds
from emu.explore.search import Limits, Result


def _machine(bounds: Bounds) -> str:
    programs = {" ".join(program) for program in bounds.programs}
    cpus = f"{len(bounds.programs)} CPU{'s' * (len(bounds.programs) > 1)}"
    each = "; ".join(" ".join(program) for program in bounds.programs) if len(programs) > 1 else programs.pop()
    parts = [f"{bounds.domain}, {cpus}: {each}"]
    if bounds.domain != "DMA" or bounds.switch:
        parts.append(f"rings of {bounds.fq_size}")
    if bounds.on_overrun != "kernel":
        parts.append(f"on_overrun = {bounds.on_overrun}")
    if bounds.timer:
        parts.append(f"the timer fires up to {bounds.timer} ×")
    if bounds.switch:
        parts.append(f"switched to {bounds.switch}")
    if bounds.policy:
        parts.append(f"policy {Path(bounds.policy).stem}")
    if bounds.granule > 1:
        parts.append(f"mappings of {bounds.granule} pages")
    if bounds.ordering != "sc":
        parts.append(f"stores as with {bounds.ordering}")
    return ", ".join(parts)


def _numbers(result: Result) -> str:
    return (
        f"{result.schedules} schedules run to their end, {result.cut_short} to a state met before; "
        f"{result.states} states, {result.steps} steps in {result.elapsed_s:.1f} s"
    )


def _verdict(limits: Limits, result: Result) -> str:
    if result.found:
        found = result.found
        preempted = f"{found.preemptions} preemption{'s' * (found.preemptions != 1)}"
        return (
            f"Violation ({found.violation.kind}): {found.violation.text}. The first after {result.first_s:.2f} s; "
            f"the shortest schedule found has {preempted}, {found.switches} switches and {found.steps} steps."
        )
    if result.stopped_by:
        return f"Stopped by {result.stopped_by}, not complete: no violation so far."
    if result.is_whole:
        return "Complete: no schedule of this machine violates anything, whatever the preemptions."
    return f"Complete: no schedule of this machine with up to {limits.preemptions} preemptions violates anything."


def print_result(bounds: Bounds, limits: Limits, result: Result, *, wrap_at: int) -> None:
    """Say what was explored, how much of it, and what came out."""
    mutant = os.environ.get("EMU_MUTANT")
    lines = [f"Explored: {_machine(bounds)}."]
    if mutant:
        lines.append(f"A BUG WAS PUT INTO THE SOURCE ON PURPOSE: {mutant}.")
    for preemptions, level in enumerate(result.levels):
        lines.append(
            f"  {preemptions} preemption{'s' * (preemptions != 1)}: {level.schedules} schedules, "
            f"{level.cut_short} cut short, {level.states} new states"
        )
    lines += [f"{_numbers(result)}.", _verdict(limits, result)]
    for line in lines:
        print(textwrap.fill(line, wrap_at))


def as_data(bounds: Bounds, limits: Limits, result: Result) -> dict[str, Any]:
    """The same as one JSON object."""
    found = result.found
    return {
        "explored": _machine(bounds),
        "mutant": os.environ.get("EMU_MUTANT"),
        "preemptions": limits.preemptions,
        "complete": not result.stopped_by and found is None,
        "whatever_the_preemptions": result.is_whole and not result.stopped_by and found is None,
        "stopped_by": result.stopped_by or None,
        "schedules": result.schedules,
        "cut_short": result.cut_short,
        "states": result.states,
        "steps": result.steps,
        "passes": result.passes,
        "seconds": round(result.elapsed_s, 3),
        "by_preemptions": [
            {"schedules": level.schedules, "cut_short": level.cut_short, "states": level.states}
            for level in result.levels
        ],
        "violation": found
        and {
            "kind": found.violation.kind,
            "text": found.violation.text,
            "preemptions": found.preemptions,
            "switches": found.switches,
            "steps": found.steps,
            "first_after_s": round(result.first_s, 3),
            "first_after_schedules": result.first_schedules,
        },
    }
