"""The control socket: clients of every kind, all at once, and a machine that must stay reachable."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from emu.machine.control_socket import NAME, SETTINGS, ControlError, ControlSocket, understood
from emu.machine.run_folder import RunFolder
from fuzzing.target import Target, WrongError

_GOOD = b'{"set": "type", "value": "DMA-FQ"}\n'
_MOST_LOOKS = 200
"""So many requests a client may have waiting, and not more."""


class Control(Target):
    """Clients do what an input says, one step a line, and the machine answers between steps.

    A line's first byte chooses the client, its second what it does: `+` sends the rest of the line, `>` sends it with a
    newline, `*` sends it a thousand times, `-` closes, `|` closes its writing side, `.` reads. Requests go on to the
    run's event log, as a machine's do. What follows a NUL is a machine's reply to `emu set`.
    """

    name = "control"
    modules = ("emu.machine.control_socket",)
    leaves_out = ("ControlSocket.__", "send", "is_answering", "_listen", "_connect", "_short_path")
    refusals = (ControlError,)

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="emu-fuzz-")
        self._path = Path(self._folder.name)
        self._log = RunFolder(self._path)
        self._machine = ControlSocket(self._path).__enter__()
        self._descriptor = os.open(self._path, os.O_PATH)
        self._address = f"/proc/self/fd/{self._descriptor}/{NAME}"
        self._seen = 0

    def close(self) -> None:
        self._machine.__exit__(None, None, None)
        self._log.close()
        os.close(self._descriptor)
        self._folder.cleanup()

    def seeds(self) -> list[bytes]:
        good = _GOOD.strip()
        return [
            b"a>" + good + b"\na." + b"\na-",
            b"a+" + good[:9] + b"\nb>" + good + b"\na>" + good[9:] + b"\nb|\na-",
            b"a*" + good + b"\nb>[1]\nc>null\nd+x\na.",
            b"\n".join(b"%c+" % client for client in range(97, 120)),
            b'a>{"set": "type", "value": "\\ud800"}\nb>{"set": "driver", "value": "unbind"}',
            b'\0{"errno": null, "reason": null}',
            b'\0{"errno": "EPERM", "reason": "a driver is bound"}',
            b'\0{"error": "there is none"}',
        ]

    def words(self) -> list[bytes]:
        names = (*SETTINGS, "set", "value", "error", "errno", "reason", *SETTINGS["driver"])
        return [
            *(f'"{name}"'.encode() for name in names),
            _GOOD, b"\na>", b"\nb+", b"\nc*", b"\nd-", b"\ne|", b"\0", b"\0{", b"[" * 1000, b"9" * 5000, b'"\\ud800"',
            b"\xff", b"\xfe\xff", b"null",
        ]  # fmt: skip

    def feed(self, data: bytes) -> None:
        script, _, reply = data.partition(b"\0")
        clients: dict[int, socket.socket] = {}
        for line in script.split(b"\n")[:64]:
            if len(line) > 1:
                self._step(clients, line)
                self._serve(looks=3)
        for client in clients.values():
            client.close()
        self._is_reachable()
        if reply:
            self._feed_reply(reply)

    def _step(self, clients: dict[int, socket.socket], line: bytes) -> None:
        client = clients.get(line[0])
        if client is None:
            client = clients[line[0]] = self._connected()
        # A client that the machine has sent away, or that sends more than is taken, sees an error.
        with suppress(OSError):
            what, rest = line[1:2], line[2:]
            if what == b"-":
                clients.pop(line[0]).close()
            elif what == b"|":
                client.shutdown(socket.SHUT_WR)
            elif what == b".":
                client.recv(10_000)
            else:
                client.send({b"+": rest, b"*": (rest + b"\n") * 1000}.get(what, rest + b"\n"))

    def _connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self._address)
        client.setblocking(False)
        return client

    def _serve(self, looks: int) -> list[str]:
        values = []
        for _ in range(looks):
            request = self._machine.next_request()
            if request is None:
                break
            values.append(request.value)
            self._seen += 1
            if not request.value.isascii() or self._seen % 4096 == 0:
                self._log.log("sysfs_written", type=request.value, by=request.origin)
            request.answer("EPERM", f"no {request.value}")
        return values

    def _is_reachable(self) -> None:
        """Whatever the others did, the next client is served."""
        with self._connected() as client:
            client.send(_GOOD)
            served: list[str] = []
            for _ in range(_MOST_LOOKS):
                served += self._serve(looks=100)
                with suppress(BlockingIOError):
                    if json.loads(client.recv(4096)) == {"errno": "EPERM", "reason": "no DMA-FQ"}:
                        break
            else:
                raise WrongError("the next client is not answered")
        self._serve(looks=10_000)
        if self._machine._clients:
            raise WrongError("clients that have gone are still waited for")

    def _feed_reply(self, reply: bytes) -> None:
        errno, reason = understood(reply, self._path)
        if not all(isinstance(text, str | None) for text in (errno, reason)):
            raise WrongError(f"{errno!r} and {reason!r} are no answer")
