"""`emu set` finds the running machine, and ends with what its kernel says."""

import socket
import threading
from pathlib import Path

import pytest

from emu.machine.control_socket import NAME, ControlSocket


@pytest.fixture
def machines(monkeypatch, tmp_path):
    """Machines in folders below the current directory, answering everything alike: machines("emu-runs/b", "EPERM")."""
    monkeypatch.chdir(tmp_path)
    stopping, threads, asked = threading.Event(), [], []

    def answer(control, folder, errno):
        with control:
            ready.set()
            while not stopping.wait(0.005):
                while request := control.next_request():
                    asked.append((folder, request.name, request.value))
                    request.answer(errno, errno and "the reason")

    def start(folder, errno=None):
        Path(folder).mkdir(parents=True)
        ready.clear()
        threads.append(threading.Thread(target=answer, args=(ControlSocket(Path(folder)), folder, errno)))
        threads[-1].start()
        ready.wait()
        return asked

    ready = threading.Event()
    yield start
    stopping.set()
    for thread in threads:
        thread.join()


def test_a_running_machine_is_set_and_says_so(machines, emu):
    asked = machines("emu-runs/20260101T000000Z-DMA-0000")
    code, out, err = emu("set", "type", "DMA-FQ")
    assert (code, err) == (0, "")
    assert out == "emu-runs/20260101T000000Z-DMA-0000: type DMA-FQ\n"
    assert asked == [("emu-runs/20260101T000000Z-DMA-0000", "type", "DMA-FQ")]


def test_what_the_kernel_refuses_is_one_line_and_exit_code_1(machines, emu):
    machines("emu-runs/20260101T000000Z-DMA-0000", "EPERM")
    assert emu("set", "type", "identity") == (1, "", "emu set: EPERM: the reason\n")


def test_the_newest_machine_that_answers_is_meant(machines, emu):
    machines("emu-runs/20260101T000000Z-DMA-0000")
    asked = machines("emu-runs/20260102T000000Z-DMA-0000")
    Path("emu-runs/20260103T000000Z-ended").mkdir()
    killed = Path("emu-runs/20260104T000000Z-killed")
    killed.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(killed / NAME))
    left.close()
    emu("set", "driver", "unbind")
    assert [folder for folder, _, _ in asked] == ["emu-runs/20260102T000000Z-DMA-0000"]


def test_a_machine_may_be_named_by_its_folder(machines, emu):
    machines("emu-runs/20260101T000000Z-DMA-0000")
    asked = machines("elsewhere")
    assert emu("set", "driver", "bind", "--run", "elsewhere")[0] == 0
    assert asked == [("elsewhere", "driver", "bind")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "type", "DMA"), "no machine is running in a folder of emu-runs/; name the run's folder with --run"),
        (("set", "type", "DMA", "--run", "nowhere"), "no machine is running in nowhere"),
        (("set", "colour", "red"), "there is no 'colour' to set; there are type and driver"),
        (("set", "driver", "fly"), "driver can be set to unbind or bind, not 'fly'"),
        (("set", "type"), "VALUE"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(monkeypatch, tmp_path, emu, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = emu(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
