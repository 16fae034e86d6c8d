"""The operator of a running machine: carries out what its timeline and its control socket ask for, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.config import Action
from emu.machine.control_socket import ControlSocket, Request
from emu.machine.sysfs import Answer, Sysfs
from emu.machine.timeline import Timeline

_TIMELINE = "timeline"
_REST_S = 0.001
"""How often to look whether all rest, while a driver is being unbound."""
_MOST_REQUESTS = 16
"""So many are carried out before somebody looks at the processes again: clients may ask faster than is answered."""


class Operator:
    """Writes to the machine's sysfs when it is time to, or when somebody asks.

    Args:
        sysfs: of the machine.
        timeline: what is to be done.
        socket: where requests come from.
        on_event: told of each write: event, values.

    Attributes:
        switches: what was written and what became of it, as in summary.json.
    """

    def __init__(
        self, sysfs: Sysfs, timeline: Timeline, socket: ControlSocket, on_event: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.switches: list[dict[str, Any]] = []
        self._sysfs = sysfs
        self._timeline = timeline
        self._socket = socket
        self._on_event = on_event
        self._unbinding: tuple[float, Request] | None = None

    def work(self, now_s: float) -> float:
        """Do what is to be done at `now_s` since the start of the load.

        Returns:
            Seconds after which to come again at the latest.
        """
        if self._unbinding and not self._finish_unbinding():
            return _REST_S
        while action := self._timeline.take_due(now_s):
            self._write(now_s, _as_request(action))
            if self._unbinding:
                return _REST_S
        for _ in range(_MOST_REQUESTS):
            request = self._socket.next_request()
            if request is None:
                break
            self._write(now_s, request)
            if self._unbinding:
                return _REST_S
        return self._timeline.next_at_s - now_s

    def warnings(self) -> list[str]:
        """What of the timeline was refused, or never came to pass, in sentences."""
        refused = [
            f"{_named(switch['type'], switch['driver'])} at {switch['at_s']:.3f} s was refused with {switch['errno']}: "
            f"{switch['reason']}"
            for switch in self.switches
            if switch["errno"] and switch["by"] == _TIMELINE
        ]
        missed = [
            f"{_named(action.type, action.driver)} at {action.at_s:g} s: the load ended before"
            for action in self._timeline.left
        ]
        return refused + missed

    def _write(self, now_s: float, request: Request) -> None:
        answer = self._sysfs.write(request.name, request.value, request.function)
        if answer is None:
            self._unbinding = (now_s, request)
        else:
            self._note(now_s, request, answer)

    def _finish_unbinding(self) -> bool:
        answer = self._sysfs.unbound()
        if answer is None or self._unbinding is None:
            return False
        self._note(*self._unbinding, answer)
        self._unbinding = None
        return True

    def _note(self, at_s: float, request: Request, answer: Answer) -> None:
        switch = {
            "at_s": round(at_s, 6),
            "type": request.value if request.name == "type" else None,
            "driver": request.value if request.name == "driver" else None,
            "function": request.function,
            "errno": answer.errno,
            "reason": answer.reason,
            "by": request.origin,
        }
        self.switches.append(switch)
        self._on_event("sysfs_written", switch)
        request.answer(answer.errno, answer.reason)


def _as_request(action: Action) -> Request:
    name = "type" if action.type else "driver"
    return Request(name, str(action.type or action.driver), _TIMELINE, function=action.function)


def _named(domain_type: str | None, driver: str | None) -> str:
    return f"type {domain_type}" if domain_type else f"driver {driver}"
