"""The control socket of a running machine: how another process writes to its sysfs.

`control.sock` in the run's folder, a stream of lines, for the owner only. A request is one line of JSON,
`{"set": "type", "value": "DMA-FQ"}`, and so is the reply: `{"errno": null, "reason": null}` when it is done, the
kernel's errno and its reason when it is refused, `{"error": "..."}` when the request makes no sense. Nothing that a
client does, or fails to do, makes the machine wait: it is served between two looks at the processes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAME = "control.sock"
SETTINGS = {"type": (), "driver": ("unbind", "bind")}
"""What can be set, and to which values; to any where there are none, which the emulated kernel then judges."""

_LONGEST_LINE = 4096
_MOST_CLIENTS = 16
_PATIENCE_S = 30.0


class ControlError(Exception):
    """The machine cannot be reached, or does not understand; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class Request:
    """Something to write to sysfs.

    Attributes:
        name, value: the file and what is written to it.
        origin: who asks: "timeline" or "socket".
        answer: told the kernel's errno and reason, both None when it is done.
        function: of which function, where there are several; None for any other request.
    """

    name: str
    value: str
    origin: str
    answer: Callable[[str | None, str | None], None] = lambda _errno, _reason: None
    function: int | None = None


class ControlSocket:
    """The machine's end; a socket without a folder has no clients.

    Args:
        folder: where the socket is to be, or None.

    Attributes:
        problem: why there is no socket though there is a folder, as one line, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._listener: socket.socket | None = None
        self._clients: list[_Client] = []

    def __enter__(self) -> Self:
        if self._folder is not None:
            try:
                self._listener = _listen(self._folder)
            except OSError as error:
                self.problem = f"{self._folder / NAME}: {error.strerror}; this run cannot be controlled from outside"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        if self._listener is not None and self._folder is not None:
            self._listener.close()
            with suppress(OSError):
                (self._folder / NAME).unlink()

    def give_up(self) -> None:
        """In a forked child: the socket and its file stay the parent's."""
        for client in self._clients:
            client.close()
        if self._listener is not None:
            self._listener.close()
        self._listener, self._clients = None, []

    def next_request(self) -> Request | None:
        """A request that makes sense, of the client that has waited longest; None when there is none now."""
        self._welcome()
        for client in list(self._clients):
            request = client.next_request()
            if client.is_gone:
                self._clients.remove(client)
            elif request:
                # Others first, the next time.
                self._clients.remove(client)
                self._clients.append(client)
                return request
        return None

    def _welcome(self) -> None:
        # Not all: they may come as fast as they are taken.
        for _ in range(_MOST_CLIENTS):
            if self._listener is None:
                return
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody is there, or no longer
                return
            if len(self._clients) == _MOST_CLIENTS:
                self._clients.pop(0).close()
            self._clients.append(_Client(connection))


class _Client:
    """One connection: bytes that have come, lines taken out of them."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = b""
        self._has_ended = False
        self.is_gone = False

    def close(self) -> None:
        self.is_gone = True
        self._connection.close()

    def next_request(self) -> Request | None:
        self._receive()
        while not self.is_gone and b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            try:
                name, value = parse(line)
            except ControlError as error:
                self._reply({"error": str(error)})
            else:
                return Request(name, value, "socket", self._answer)
        if len(self._received) > _LONGEST_LINE:
            self._reply({"error": f"a request is one line of at most {_LONGEST_LINE} bytes"})
            self.close()
        elif self._has_ended:
            self.close()
        return None

    def _receive(self) -> None:
        while len(self._received) <= _LONGEST_LINE and not self._has_ended:
            try:
                received = self._connection.recv(_LONGEST_LINE)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            self._has_ended = not received
            self._received += received

    def _answer(self, errno: str | None, reason: str | None) -> None:
        self._reply({"errno": errno, "reason": reason})

    def _reply(self, reply: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:  # gone, or it does not read what it asked for
            self.close()


def parse(line: bytes) -> tuple[str, str]:
    """Name and value of a request.

    Raises:
        ControlError: it is no request.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("a request is one line of JSON") from None
    if not isinstance(request, dict) or set(request) != {"set", "value"}:
        raise ControlError('a request is {"set": NAME, "value": VALUE}')
    name, value = request["set"], request["value"]
    if not isinstance(name, str) or not isinstance(value, str):
        raise ControlError("name and value are texts")
    check(name, value)
    return name, value


def check(name: str, value: str) -> None:
    """Refuse what cannot be set.

    Raises:
        ControlError: there is no such setting, or it has no such value.
    """
    if name not in SETTINGS:
        raise ControlError(f"there is no {name!r} to set; there are {' and '.join(SETTINGS)}")
    if SETTINGS[name] and value not in SETTINGS[name]:
        raise ControlError(f"{name} can be set to {' or '.join(SETTINGS[name])}, not {value!r}")


def is_answering(folder: Path) -> bool:
    """Whether a machine listens in this folder."""
    try:
        _connect(folder).close()
    except OSError:
        return False
    return True


def send(folder: Path, name: str, value: str) -> tuple[str | None, str | None]:
    """Ask the machine whose run's folder this is to write a value.

    Returns:
        The kernel's errno and reason, both None when it is done.

    Raises:
        ControlError: no machine runs there, it does not answer, or it does not understand.
    """
    try:
        connection = _connect(folder)
    except FileNotFoundError:
        raise ControlError(f"no machine is running in {folder}") from None
    except ConnectionRefusedError:
        raise ControlError(f"the run in {folder} was killed and has left {NAME}; no machine is running") from None
    except OSError as error:
        raise ControlError(f"{folder / NAME}: {error.strerror}") from None
    with connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.sendall(json.dumps({"set": name, "value": value}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                reply = lines.readline(_LONGEST_LINE)
        except TimeoutError:
            raise ControlError(f"the machine in {folder} did not answer within {_PATIENCE_S:g} s") from None
        except OSError:
            reply = b""
    return understood(reply, folder)


def understood(reply: bytes, folder: Path) -> tuple[str | None, str | None]:
    """The kernel's errno and reason in the reply of the machine whose run's folder this is.

    Raises:
        ControlError: it is cut off, an error, or no reply at all.
    """
    if not reply.endswith(b"\n"):
        raise ControlError(f"the machine in {folder} ended before it answered")
    try:
        said = json.loads(reply)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        said = {}
    if isinstance(said.get("error"), str):
        raise ControlError(said["error"])
    errno, reason = said.get("errno", said), said.get("reason", said)
    if not isinstance(errno, str | None) or not isinstance(reason, str | None):
        raise ControlError(f"what listens in {folder} does not answer as a machine does")
    return errno, reason


def _listen(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file gets the mode that the socket has when it is bound: there is no moment at which others may connect.
        os.fchmod(listener.fileno(), 0o600)
        with _short_path(folder) as path:
            listener.bind(path)
        listener.listen(_MOST_CLIENTS)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _connect(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_PATIENCE_S)
        with _short_path(folder) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


@contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """The socket's path by way of an open folder: an address of a socket holds 107 bytes, a path may be longer."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)
