"""A verification for people: the kernel's numbers beside ours, phase by phase, and what did not agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.analysis.kernel_comparison import Compared
from emu.analysis.verification import TIMER_TOLERANCE_MS, Verification
from emu.report.plain import plain

_SHORT = {
    "Mapped pages": "mapped pages",
    "Unmapped pages": "unmapped pages",
    "Global RPCITs": "global",
    "Sync Map RPCITs": "sync map",
    "Sync RPCITs": "sync",
}


def print_verification(console: Console, found: Verification) -> None:
    """Print everything that was compared."""
    console.print()
    kernel = f"Linux {found.kernel}" if found.kernel else "a kernel without description"
    console.print(plain(f"Capture {found.capture}, {kernel}, replayed at its recorded times as {found.domain}."))
    if found.comparison:
        rows = [*found.comparison.phases, ("in all", found.comparison.counters)]
        console.print()
        console.print(_counters(rows))
    console.print()
    for line in _sentences(found):
        console.print(plain(line))
    for note in found.notes:
        console.print(f"[yellow]Note[/yellow]: {plain(note)}")
    disagreements = found.disagreements()
    for line in disagreements:
        console.print(f"[bold red]Differs[/bold red]: {plain(line)}")
    if not disagreements:
        console.print("[green]Everything that must agree does.[/green]")


def _counters(phases: Sequence[tuple[str, Sequence[Compared]]]) -> Table:
    """A row for each phase; where both agree one number stands for both."""
    names = list(dict.fromkeys(row.name for _, rows in phases for row in rows))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("phase")
    for name in names:
        table.add_column(_SHORT.get(name, name), justify="right")
    for name, rows in phases:
        by_name = {row.name: row for row in rows}
        table.add_row(name, *(_cell(by_name.get(column)) for column in names))
    return table


def _cell(row: Compared | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    if row.difference == 0:
        return Text(f"{row.kernel} =", style="green" if row.must_agree else "")
    return Text(f"{row.emu} ({row.kernel})", style="bold red" if row.must_agree else "dim")


def _sentences(found: Verification) -> Iterator[str]:
    yield "Of each counter: the kernel's = ours, or ours (the kernel's)."
    flushes = found.flushes
    if flushes.firings_ms:
        yield (
            f"Timer flushes: {len(flushes.firings_ms)}, each fired as late as it was recorded to; by our jiffies they "
            f"were due at most {flushes.largest_difference_ms:.1f} ms from that (tolerance {TIMER_TOLERANCE_MS:g} ms"
            f"{f', {flushes.beyond_tolerance} beyond it' if flushes.beyond_tolerance else ''})."
        )
    if flushes.full_kernel or flushes.full_emu:
        same = len(set(flushes.full_kernel) & set(flushes.full_emu))
        yield (
            f"Flushes by full rings: {len(flushes.full_emu)} here, {len(flushes.full_kernel)} in the kernel, "
            f"{same} at the same unmap."
        )
    if flushes.overruns_kernel or flushes.overruns_emu:
        same = len(set(flushes.overruns_kernel) & set(flushes.overruns_emu))
        yield (
            f"Ring overruns: {len(flushes.overruns_emu)} here, {len(flushes.overruns_kernel)} in the kernel, {same} at "
            f"the same append; {flushes.overrun_iovas} addresses lost."
        )
    if found.moved:
        yield f"{found.moved} flushes happened within 20 ms of a phase's edge and count on its other side."
    yield from _attempts(found)
    yield from _addresses(found)


def _attempts(found: Verification) -> Iterator[str]:
    if not (tried := found.attempts):
        return
    failures, roll_backs, first = tried["failures"], tried["roll_backs"], tried["first_failure_s"]
    yield (
        f"Failed allocations, median of {tried['replays']} replays at the recorded size of the address space: "
        f"{failures['emu']} here ({failures['least']} to {failures['most']}), {failures['kernel']} in the kernel; "
        f"taken back by them: {roll_backs['emu']} mappings ({roll_backs['least']} to {roll_backs['most']}), "
        f"{roll_backs['kernel']} in the kernel; the first at {first['emu']:.3f} s here, {first['kernel']:.3f} s there."
    )


def _addresses(found: Verification) -> Iterator[str]:
    iova = found.iova
    if iova is None:
        return
    share = 100 * iova["identical"] / iova["maps"] if iova["maps"] else 100.0
    yield (
        f"Addresses in the trace's order: {iova['identical']} of {iova['maps']} maps got the kernel's ({share:.2f} %), "
        f"the first {iova['identical_from_the_start']} before anything was put right."
    )
    if not iova["others"]:
        return
    if not iova["identical_from_the_start"]:
        yield "Not even the first: the trace seems to begin while the domain was in use, or another allocator was."
    yield (
        f"Of the others {iova['verified']} get it with one event moved, for {iova['inferred']} the log allows that, "
        f"{iova['unexplained']} are unexplained:"
    )
    for name, count in iova["others"].items():
        yield f"  {count:>7} {name}"
    yield "By phase: " + ", ".join(f"{phase['name']} {_share(phase)}" for phase in iova["phases"]) + "."


def _share(phase: dict[str, Any]) -> str:
    if phase["identical"] == phase["maps"]:
        return f"all {phase['maps']}"
    return f"{phase['identical']} of {phase['maps']}"
