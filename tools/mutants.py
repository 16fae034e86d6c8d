"""Look for every bug of the catalogue with `emu explore`, and under real processes; write docs/mutants.md anew.

For people who change emu, which is why it is no command of it: a bug that nothing catches any longer is a check lost.
Under processes each bug needs its own compiled code, half a minute of it, so `--only explore` is much the faster.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from patched import call

from emu.mutants.catalogue import MUTANTS
from emu.mutants.patch import Mutant

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "mutants.md"
BEGIN, END = "<!-- table: tools/mutants.py -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Caught:
    """What one way of looking has found: `by` is empty when nothing."""

    by: str
    cost: str


def patch_of(mutant: Mutant) -> str | None:
    """Its name, where it is a patch of the source and not an option of the machine."""
    return mutant.name if mutant.edits else None


def by_explore(mutant: Mutant) -> Caught:
    """Look for it in all interleavings of a small machine."""
    _, found, error = call(patch_of(mutant), ["explore", "--shorten", "0", "--seconds", "60", *mutant.explore])
    if found is None:
        return Caught("", error)
    violation = found["violation"]
    if violation is None:
        return Caught("", f"{found['schedules'] + found['cut_short']} schedules, {found['seconds']:.1f} s")
    preempted = violation["preemptions"]
    cost = f"{violation['first_after_schedules']} schedules, {violation['first_after_s']:.2f} s"
    return Caught(f"{violation['kind']}, {preempted} preemption{'s' * (preempted != 1)}", cost)


def by_processes(mutant: Mutant, seed: int) -> Caught:
    """Run real processes with all checks on."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["run", *mutant.run, "--seed", str(seed), "--out", f"{folder}/out", "--quiet"]
        code, summary, error = call(patch_of(mutant), options, f"{folder}/cache")
    if summary is None:
        if code in (0, 2):
            return Caught("", error[:60])
        said = signal.Signals(-code).name if code < -1 else f"exit code {code}: {error}"[:60]
        return Caught(said, "no result")
    (run,) = summary["runs"]
    found = [f"{count} {kind}" for kind, count in run.get("violations_by_kind", {}).items() if count]
    if not found and run["violations"]:
        found.append(f"{run['violations']} violations")
    books = run.get("conservation") or {}
    if books.get("holds") is False:
        found.append("books do not balance")
    found += [f"{run[key]} {key}" for key in ("lost", "stale") if isinstance(run.get(key), int) and run[key]]
    if run.get("died"):
        found.append(str(run["died"]))
    return Caught(", ".join(found), f"{run['ops']} pairs, {run['seconds']:.1f} s")


def row(mutant: Mutant, explored: Caught, ran: Caught | None) -> str:
    """One line of the table."""
    cells = [f"`{mutant.name}`", mutant.why, explored.by or "–", explored.cost]
    cells += [ran.by or "–", ran.cost] if ran else ["not run", ""]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants; default all")
    parser.add_argument("--only", choices=("explore",), help="leave real processes out")
    parser.add_argument("--seed", type=int, default=1, help="of the runs of real processes")
    options = parser.parse_args()
    unknown = set(options.names) - set(MUTANTS)
    if unknown:
        parser.error(f"there is no mutant {min(unknown)}")
    bugs = [m for m in MUTANTS.values() if not m.is_remedy and (not options.names or m.name in options.names)]
    rows, explored_count, ran_count, nowhere = [], 0, 0, []
    for mutant in bugs:
        explored = by_explore(mutant)
        ran = None if options.only else by_processes(mutant, options.seed)
        explored_count += bool(explored.by)
        ran_count += bool(ran and ran.by)
        if not explored.by and not (ran and ran.by):
            nowhere.append(mutant.name)
        rows.append(row(mutant, explored, ran))
        print(rows[-1], flush=True)
    said = f"{len(bugs)} bugs: {explored_count} caught by `emu explore`"
    said += "" if options.only else f", {ran_count} by real processes"
    said += f"; by none: {', '.join(nowhere)}." if nowhere else "; none escapes both."
    print(said)
    if not options.names:
        head = (
            "| bug | what it is | `emu explore` says | after | real processes say | after |\n|---|---|---|---|---|---|"
        )
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{head}\n" + "\n".join(rows) + f"\n{END}{after}", encoding="utf-8")
    sys.exit(1 if nowhere else 0)


if __name__ == "__main__":
    main()
