"""The control socket: for its owner only, gone with its machine, and not to be hung or broken by any client."""

import json
import socket
import stat
import threading
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.machine import control_socket
from emu.machine.control_socket import NAME, ControlError, ControlSocket, Request, is_answering, send, understood
from emu.machine.operator import Operator
from emu.machine.run_folder import RunFolder
from emu.machine.sysfs import Answer
from emu.machine.timeline import Timeline

GOOD = b'{"set": "type", "value": "DMA-FQ"}\n'


@pytest.fixture
def machine(tmp_path):
    with ControlSocket(tmp_path) as control:
        yield control


@contextmanager
def client(folder):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(str(folder / NAME))
    try:
        yield connection
    finally:
        connection.close()


def reply_to(connection):
    with connection.makefile("r") as lines:
        return json.loads(lines.readline())


def asked(request):
    return (request.name, request.value, request.origin) if request else None


@pytest.fixture
def answering(machine):
    """A machine that answers, on a thread, all that it is asked with these; returns what it was asked."""
    requests, stopping = [], threading.Event()

    def serve(errno=None, reason=None):
        def look():
            while not stopping.wait(0.005):
                while request := machine.next_request():
                    requests.append(asked(request))
                    request.answer(errno, reason)

        thread = threading.Thread(target=look)
        thread.start()
        threads.append(thread)
        return requests

    threads = []
    yield serve
    stopping.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("machine")
def test_it_is_for_its_owner_only(tmp_path):
    mode = (tmp_path / NAME).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_it_goes_with_the_machine_however_that_ends(tmp_path):
    def interrupted():
        with ControlSocket(tmp_path):
            assert is_answering(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / NAME).exists()


def test_a_path_of_any_length_will_do(tmp_path):
    folder = tmp_path / ("long" * 30) / ("longer" * 30)
    folder.mkdir(parents=True)
    with ControlSocket(folder) as control:
        assert control.problem is None
        assert is_answering(folder)


def test_without_a_folder_there_is_nothing_to_reach():
    with ControlSocket(None) as control:
        assert control.next_request() is None


def test_a_folder_that_cannot_hold_it_costs_a_sentence_not_the_run(tmp_path):
    with ControlSocket(tmp_path / "missing") as control:
        assert control.next_request() is None
    assert "missing" in control.problem
    assert "cannot be controlled" in control.problem


@pytest.mark.parametrize(("errno", "reason"), [(None, None), ("EPERM", "a driver is bound")])
def test_a_request_is_answered_with_what_the_kernel_says(tmp_path, answering, errno, reason):
    requests = answering(errno, reason)
    assert send(tmp_path, "type", "DMA-FQ") == (errno, reason)
    assert requests == [("type", "DMA-FQ", "socket")]


def test_a_request_may_come_in_pieces(machine, tmp_path):
    with client(tmp_path) as connection:
        for byte in GOOD[:-1]:
            connection.sendall(bytes([byte]))
            assert machine.next_request() is None
        connection.sendall(GOOD[-1:])
        assert asked(machine.next_request()) == ("type", "DMA-FQ", "socket")


@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([GOOD, b"null\n", b"\xff\n", b"\n", b"x" * 2000 + b"\n"]), max_size=6), st.data())
def test_it_does_not_matter_in_which_pieces_requests_come(machine, tmp_path, lines, data):
    stream, asked_for = b"".join(lines), 0
    with client(tmp_path) as connection:
        while stream:
            piece = data.draw(st.integers(1, min(len(stream), 2500)))
            connection.sendall(stream[:piece])
            stream = stream[piece:]
            while machine.next_request():
                asked_for += 1
    while machine._clients:
        machine.next_request()
    assert asked_for == lines.count(GOOD)


def test_clients_that_come_as_fast_as_they_are_taken_do_not_keep_the_machine(machine, monkeypatch):
    class Flood:
        """Somebody new each time; they stay."""

        def __init__(self):
            self.others = []

        def accept(self):
            mine, other = socket.socketpair()
            self.others.append(other)
            return mine, None

        def close(self):
            for other in self.others:
                other.close()

    flood = Flood()
    with monkeypatch.context() as patched:
        patched.setattr(machine, "_listener", flood)
        assert machine.next_request() is None
    assert len(flood.others) == len(machine._clients) == control_socket._MOST_CLIENTS
    flood.close()


def test_a_client_that_always_wants_more_does_not_keep_the_operator():
    class Sysfs:
        def write(self, _name, _value, _function):
            return Answer("EPERM", "a driver is bound")

    class Greedy:
        def next_request(self):
            return Request("type", "DMA", "socket")

    operator = Operator(Sysfs(), Timeline([]), Greedy(), lambda _event, _values: None)
    operator.work(0.0)
    assert 0 < len(operator.switches) < 100


def test_half_a_surrogate_pair_can_be_asked_for_and_logged(machine, tmp_path):
    with client(tmp_path) as connection, RunFolder(tmp_path) as folder:
        connection.sendall(b'{"set": "type", "value": "\\ud800"}\n')
        folder.log("sysfs_written", type=machine.next_request().value)
    assert json.loads((tmp_path / "events.jsonl").read_text())["type"] == "\ud800"
    assert folder.problem is None


@pytest.mark.parametrize(
    "reply", [b"3\n", b"[]\n", b"{}\n", b'{"errno": 3, "reason": null}\n', b"\xff\n", b"[" * 5000 + b"\n"]
)
def test_what_does_not_answer_as_a_machine_is_one_line(tmp_path, reply):
    with pytest.raises(ControlError, match="does not answer as a machine does"):
        understood(reply, tmp_path)


def test_several_requests_may_come_at_once_and_are_given_out_one_by_one(machine, tmp_path):
    with client(tmp_path) as connection:
        connection.sendall(GOOD + GOOD.replace(b"FQ", b"SQ"))
        assert asked(machine.next_request())[1] == "DMA-FQ"
        assert asked(machine.next_request())[1] == "DMA-SQ"
        assert machine.next_request() is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\n", "one line of JSON"),
        (b"type=DMA-FQ\n", "one line of JSON"),
        (b"\xff\x00\n", "one line of JSON"),
        (b"[" * 3000 + b"\n", "one line of JSON"),
        (b"[1]\n", '{"set": NAME, "value": VALUE}'),
        (b"null\n", '{"set": NAME, "value": VALUE}'),
        (b'{"set": "type"}\n', '{"set": NAME, "value": VALUE}'),
        (b'{"set": "type", "value": "DMA", "force": true}\n', '{"set": NAME, "value": VALUE}'),
        (b'{"set": "type", "value": 1}\n', "are texts"),
        (b'{"set": ["type"], "value": "DMA"}\n', "are texts"),
        (b'{"set": "colour", "value": "red"}\n', "there is no 'colour' to set; there are type and driver"),
        (b'{"set": "driver", "value": "crash"}\n', "driver can be set to unbind or bind"),
    ],
)
def test_nonsense_is_answered_and_the_next_request_is_served(machine, tmp_path, line, said):
    with client(tmp_path) as connection:
        connection.sendall(line + GOOD)
        assert asked(machine.next_request()) == ("type", "DMA-FQ", "socket")
        assert said in reply_to(connection)["error"]


def test_a_line_without_an_end_is_refused_and_the_client_sent_away(machine, tmp_path):
    with client(tmp_path) as connection:
        connection.sendall(b"x" * 20_000)
        while machine.next_request():
            pytest.fail("it was taken for a request")
        assert "at most 4096 bytes" in reply_to(connection)["error"]
        assert machine._clients == []


def test_silent_clients_keep_nobody_waiting(machine, tmp_path):
    connections = []
    for _ in range(control_socket._MOST_CLIENTS):
        connections.append(socket.socket(socket.AF_UNIX))
        connections[-1].connect(str(tmp_path / NAME))
    assert machine.next_request() is None
    with client(tmp_path) as connection:
        connection.sendall(GOOD)
        assert asked(machine.next_request()) == ("type", "DMA-FQ", "socket")
    for silent in connections:
        silent.close()
    while machine._clients:
        assert machine.next_request() is None


def test_clients_take_turns(machine, tmp_path):
    with client(tmp_path) as greedy, client(tmp_path) as modest:
        greedy.sendall(GOOD * 3)
        modest.sendall(GOOD.replace(b"FQ", b"SQ"))
        values = [asked(machine.next_request())[1] for _ in range(4)]
        assert values.index("DMA-SQ") <= 1


def test_a_client_that_has_gone_is_not_missed(machine, tmp_path):
    with client(tmp_path) as connection:
        connection.sendall(GOOD)
    request = machine.next_request()
    assert asked(request) == ("type", "DMA-FQ", "socket")
    request.answer("EPERM", "too late")
    assert machine.next_request() is None
    assert machine._clients == []


def test_a_client_that_does_not_read_is_sent_away(machine, tmp_path):
    with client(tmp_path) as connection:
        connection.sendall(GOOD)
        request = machine.next_request()
        for _ in range(10_000):
            request.answer("EPERM", "x" * 1000)
            if machine._clients[0].is_gone:
                break
        assert machine._clients[0].is_gone
        assert machine.next_request() is None


def test_a_folder_without_a_machine_is_one_line(tmp_path):
    with pytest.raises(ControlError, match="no machine is running in"):
        send(tmp_path, "type", "DMA")
    with pytest.raises(ControlError, match="no machine is running in"):
        send(tmp_path / "missing", "type", "DMA")
    assert not is_answering(tmp_path)


def test_what_a_killed_run_has_left_is_one_line(tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / NAME))
    left.close()
    with pytest.raises(ControlError, match=r"was killed and has left control\.sock; no machine is running"):
        send(tmp_path, "type", "DMA")
    assert not is_answering(tmp_path)


@pytest.mark.usefixtures("machine")
def test_a_machine_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(control_socket, "_PATIENCE_S", 0.05)
    with pytest.raises(ControlError, match=r"did not answer within 0\.05 s"):
        send(tmp_path, "type", "DMA")


def test_a_machine_that_ends_meanwhile_is_one_line(tmp_path):
    control = ControlSocket(tmp_path).__enter__()
    said = []

    def ask():
        try:
            send(tmp_path, "type", "DMA")
        except ControlError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while control.next_request() is None:
        pass
    control.__exit__(None, None, None)
    thread.join()
    assert said == [f"the machine in {tmp_path} ended before it answered"]


def test_what_the_machine_does_not_understand_is_said(tmp_path, answering):
    answering()
    with pytest.raises(ControlError, match="there is no 'colour' to set"):
        send(tmp_path, "colour", "red")
