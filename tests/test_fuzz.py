"""The fuzzer runs, finds what is wrong, survives it, and gives the same inputs for the same seed."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

from fuzzing.at_speed import STATUS_BYTES, Status, run
from fuzzing.judge import finding_of
from fuzzing.memory import Checked, Guarded, OutOfBoundsError
from fuzzing.mutation import Mutator
from fuzzing.target import Target

from emu.capture.shipped import find_capture


class Fragile(Target):
    """A parser that refuses what is empty, and has one bug."""

    name = "fragile"
    refusals = (ValueError,)

    def seeds(self):
        return [b"number 1\n"]

    def words(self):
        return [b"word"]

    def feed(self, data):
        if not data:
            raise ValueError("it is empty; give something")
        if b"word" in data:
            raise KeyError(data)
        if b"two" in data:
            raise ValueError("two\nlines")


def fuzzed(*arguments):
    command = [sys.executable, str(TOOLS / "fuzz.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_parsers_hold_under_hundreds_of_mutated_inputs(tmp_path):
    done = fuzzed("events", "--unguided", "--inputs", 500, "--out", tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (0, []), done.stdout + done.stderr
    assert [row.split()[:2] for row in done.stdout.splitlines()[1:]] == [["events", "500"]]


def test_compiled_code_stays_within_its_arrays_for_hundreds_of_mutated_captures(tmp_path):
    (tmp_path / "status").write_bytes(bytes(STATUS_BYTES))
    (tmp_path / "corpus").mkdir()
    source = find_capture(Path("s390x-lazy-nvme"))
    lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)
    for begin in range(0, 200, 20):
        (tmp_path / "corpus" / str(begin)).write_bytes(b"".join(lines[begin : begin + 20]))
    command = [sys.executable, str(TOOLS / "fuzzing" / "at_speed.py"), "captures", "500", "1"]
    command += [str(tmp_path / "status"), str(tmp_path / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["inputs"], found["findings"]) == (500, [])


def test_an_unknown_parser_is_refused():
    done = fuzzed("letters")
    assert done.returncode == 2
    assert "no parser letters" in done.stderr


@pytest.mark.parametrize(
    ("data", "said"), [(b"fine", None), (b"", None), (b"word", "KeyError"), (b"two", "not in one line")]
)
def test_an_input_is_taken_refused_in_one_line_or_a_finding(data, said):
    found = finding_of(Fragile(), data)
    assert found is None if said is None else said in found


def test_a_bug_is_found_once_with_an_input_that_shows_it(tmp_path):
    (tmp_path / "status").write_bytes(bytes(STATUS_BYTES))
    found = run(Fragile(), Fragile().seeds(), 2000, "seed", Status(tmp_path / "status"))
    ((why, data),) = found["findings"]
    assert "KeyError" in why
    assert finding_of(Fragile(), bytes.fromhex(data))
    assert found["inputs"] == 2000


def test_one_seed_gives_one_sequence():
    def first(seed):
        mutator = Mutator(Fragile().seeds(), Fragile().words(), seed)
        return [mutator.next() for _ in range(200)]

    assert first("a") == first("a") != first("b")


def test_guarded_arrays_end_where_a_process_dies():
    code = (
        f"import sys, ctypes; sys.path.insert(0, {str(TOOLS)!r})\n"
        "from fuzzing.memory import Guarded\n"
        "array = Guarded().frombuffer(b'12345', 'u1')\n"
        "at = array.__array_interface__['data'][0]\n"
        "print(ctypes.c_uint8.from_address(at + 4).value, flush=True)\n"
        "ctypes.c_uint8.from_address(at + 5).value\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("53\n", -11)


def test_guarded_arrays_are_used_again_and_empty_again():
    memory = Guarded()
    memory.zeros(9, "i8")[:] = 7
    memory.begin()
    assert memory.zeros(9, "i8").tolist() == [0] * 9


def test_checked_memory_reaches_what_there_is_and_nothing_else():
    memory, form = Checked(), np.dtype([("a", "i4"), ("b", "u8")], align=True)
    rows = memory.zeros(3, form)
    at = rows.__array_interface__["data"][0]
    memory.element(form, at, 2).b = -1
    memory.element(form, at, 2).a = 1 << 31
    assert rows[2].item() == (-(1 << 31), (1 << 64) - 1)
    for reach in (
        lambda: memory.element(form, at, 3),
        lambda: memory.deref(form, at + 40),
        lambda: memory.byte_at(at, 48),
    ):
        with pytest.raises(OutOfBoundsError):
            reach()
