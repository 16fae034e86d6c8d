"""`emu top`: look at a machine that is running, again and again or once."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from emu.cli.failure import FINE, Failure

if TYPE_CHECKING:
    from emu.machine.look import Look, RunningMachine

_EVERY_S = 2.0
_APART_S = 0.5
_SHORTEST_S, _LONGEST_S = 0.1, 60.0
_ENDED = "the machine has ended"


def top(
    machine: Annotated[
        str | None,
        Parameter(name="RUN-FOLDER|PID", help="Which machine; default the one that runs, if there is only one."),
    ] = None,
    /,
    *,
    interval: Annotated[
        float | None,
        Parameter(metavar="S", help="Seconds between two looks; default 2, and 0.5 between the two of --once."),
    ] = None,
    once: Annotated[bool, Parameter(negative=(), help="Print one look as text and end.")] = False,
    json: Annotated[bool, Parameter(negative=(), help="With --once: print one JSON object instead.")] = False,
) -> int:
    """Watch a running machine: CPUs, rings, flushes, the hypervisor, locks, and what devices can still reach.

    It only reads the machine's memory. Keys: q ends, p pauses, + and - change the interval, s the order.
    """
    if json and not once:
        raise Failure("--json: only --once prints an object; add it")
    if interval is not None and not _SHORTEST_S <= interval <= _LONGEST_S:
        raise Failure(f"--interval {interval:g}: give {_SHORTEST_S:g} to {_LONGEST_S:g} s")
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure("the live view needs a terminal; use --once")
    if once:
        return _look_once(_found(machine), interval or _APART_S, as_object=json)
    return _watch(machine, interval or _EVERY_S)


def _look_once(machine: RunningMachine, apart_s: float, *, as_object: bool) -> int:
    from emu.analysis.live import live_figures
    from emu.analysis.summary import as_json
    from emu.report.live_table import plain_lines

    before = machine.look()
    time.sleep(apart_s)
    figures = live_figures(machine.about, before, machine.look())
    has_ended = machine.has_ended
    if as_object:
        sys.stdout.write(as_json({**figures, "ended": has_ended}))
    else:
        for line in (*plain_lines(figures), *([f"\n{_ENDED}"] if has_ended else [])):
            print(line)
    return FINE


def _watch(name: str | None, interval_s: float) -> int:
    try:
        from emu.report.live_screen import LiveView
    except ModuleNotFoundError as error:
        raise Failure(f"the live view needs {error.name}: pip install 'emu[top]'; --once does without") from None
    watched = Watched(_found(name))
    LiveView(watched, interval_s).run()
    return FINE


class Watched:
    """A machine under the live view; where its supervisor makes another one after it, that is taken up.

    Args:
        machine: the machine.
    """

    def __init__(self, machine: RunningMachine) -> None:
        self._machine = machine
        self._before: Look | None = None
        self._figures: dict[str, Any] | None = None
        self._has_ended = False

    @property
    def note(self) -> str:
        """That it has ended, if it has."""
        return _ENDED if self._has_ended else ""

    def look(self) -> dict[str, Any] | None:
        """Figures since the last look; the last ones of a machine that has ended."""
        from emu.analysis.live import live_figures

        if self._has_ended and not self._take_up_next():
            return self._figures
        now = self._machine.look()
        self._figures = live_figures(self._machine.about, self._before, now)
        self._before = now
        self._has_ended = self._machine.has_ended
        return self._figures

    def _take_up_next(self) -> bool:
        from emu.machine.look import LookError, machine_of_process

        try:
            following = machine_of_process(self._machine.supervisor)
        except LookError:
            return False
        if following.has_ended or following.name == self._machine.name:
            return False
        self._machine, self._before, self._has_ended = following, None, False
        return True


def _found(name: str | None) -> RunningMachine:
    """The machine that the user means.

    Raises:
        Failure: there is none, or it is not clear which.
    """
    from emu.machine.look import LookError, machine_in_folder, machine_of_process

    try:
        if name is None:
            return _only_one()
        folder = Path(name)
        if folder.is_dir():
            _refuse_simulation(folder)
            return machine_in_folder(folder)
        if name.isascii() and name.isdecimal():
            return machine_of_process(int(name))
    except LookError as error:
        raise Failure(str(error)) from None
    raise Failure(f"{name!r} is neither a run's folder nor a pid")


def _refuse_simulation(folder: Path) -> None:
    import tomllib

    try:
        engine = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["machine"]["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if engine == "sim":
        raise Failure(
            f"{folder} is the run of a simulation (--engine sim), which cannot be looked at: its segment is private"
        )


def _only_one() -> RunningMachine:
    from emu.machine.look import running_machines

    machines = running_machines()
    if not machines:
        raise Failure(
            "no machine is running; start one with emu run (but a simulation, --engine sim, cannot be looked at: "
            "its segment is private)"
        )
    if len(machines) > 1:
        named = ", ".join(f"pid {machine.supervisor} ({machine.about['domain']})" for machine in machines)
        raise Failure(f"{len(machines)} machines are running: {named}; name the pid or the run's folder of one")
    return machines[0]
