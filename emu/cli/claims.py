"""`emu claims`: what has been published about the schemes, each statement as an experiment that runs here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from emu.cli.failure import DEATH, FINE, INTERRUPTED, VIOLATION, Failure
from emu.cli.options import JsonOption, QuietOption, parse_setting, whole_number
from emu.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emu.analysis.claims import Finding
    from emu.claims.claim import Claim

_ENGINES = ("sim", "processes")
_MOST_ROUNDS = 100


def claims(
    *,
    only: Annotated[
        list[str] | None,
        Parameter(negative=(), metavar="CLAIM", help="A claim to try, as in --only C2; repeatable; default all."),
    ] = None,
    engine: Annotated[
        str, Parameter(help="What runs: sim, virtual clocks, or processes, where there are cores; default sim.")
    ] = "sim",
    rounds: Annotated[
        int | None,
        Parameter(
            converter=whole_number,
            help="How often everything is measured, each time with another seed; default as the claim says.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative=(),
            metavar="SECTION.KEY=VALUE",
            help="Change any value of every machine, to see which claims that breaks; repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Try what has been published about the schemes, and say of each claim whether it holds here.

    Two minutes for all. The exit code is 0 if everything that can be shown here holds, 1 otherwise.
    """
    if engine not in _ENGINES:
        raise Failure(f"--engine: must be {' or '.join(_ENGINES)}, not {engine!r}")
    if rounds is not None and not 1 <= rounds <= _MOST_ROUNDS:
        raise Failure(f"--rounds: must be 1 to {_MOST_ROUNDS}, not {rounds}")
    changes: dict[str, dict[str, Any]] = {}
    for text in set_ or ():
        section, key, value = parse_setting(text)
        changes.setdefault(section, {})[key] = value

    chosen = _chosen(only)
    found, is_interrupted = _measured(chosen, engine, rounds, changes, quiet=quiet)
    _print(chosen, found, engine, as_object=json)
    if is_interrupted:
        print("emu claims: interrupted; what was measured is shown", file=sys.stderr)
        return INTERRUPTED
    from emu.analysis.claims import DOES_NOT_HOLD

    return VIOLATION if any(finding.verdict == DOES_NOT_HOLD for finding in found) else FINE


def _chosen(only: list[str] | None) -> list[Claim]:
    from emu.claims.claim import read_claims

    known = {claim.id: claim for claim in read_claims()}
    for name in only or ():
        if name.upper() not in known:
            raise Failure(f"--only {name}: no such claim; there are {', '.join(known)}")
    wanted = {name.upper() for name in only} if only else known.keys()
    return [claim for name, claim in known.items() if name in wanted]


def _measured(
    chosen: list[Claim], engine: str, rounds: int | None, changes: dict[str, dict[str, Any]], *, quiet: bool
) -> tuple[list[Finding], bool]:
    """What was found, and whether the user stopped it."""
    try:
        import scipy  # noqa: F401 - said now, not after a minute
    except ModuleNotFoundError:
        raise Failure("needs scipy, which is not installed; pip install 'emu[claims]'") from None
    from emu.claims.measure import Bench
    from emu.experiment import DeathError, MachineError
    from emu.report.progress import ProgressBars

    found: list[Finding] = []
    with ProgressBars(quiet=quiet) as bars:
        bench = Bench(engine, rounds, changes, bars.compiled, lambda part: bars.ran("claims", part))
        try:
            # What was found before something goes wrong is kept.
            found.extend(bench.findings(chosen))
        except KeyboardInterrupt:
            return found, True
        except (ConfigError, MachineError) as error:
            raise Failure(str(error)) from None
        except DeathError as error:
            raise Failure(str(error), DEATH) from None
    return found, False


def _print(chosen: Sequence[Claim], found: Sequence[Finding], engine: str, *, as_object: bool) -> None:
    from emu.analysis.environment import emu_version, environment
    from emu.analysis.summary import SCHEMA, as_json

    if as_object:
        # On virtual clocks the same findings come out wherever and whenever they are made.
        known = {"emu": emu_version()} if engine == "sim" else environment()
        of = {claim.id: [finding.as_dict() for finding in found if finding.claim == claim.id] for claim in chosen}
        told = [
            {"id": claim.id, "statement": claim.statement, "source": claim.source, "reading": claim.reading,
             "findings": of[claim.id]}
            for claim in chosen
        ]  # fmt: skip
        whole = {"schema": SCHEMA, "command": "claims", "engine": engine, "environment": known, "claims": told}
        sys.stdout.write(as_json(whole))
        sys.stdout.flush()
        return
    from rich.console import Console

    from emu.report.claims import print_claims

    said = {claim.id: f"{claim.statement} ({claim.source}). Read: {claim.reading}" for claim in chosen}
    print_claims(Console(highlight=False), said, found)
