"""Exit codes and error lines: 0 fine, 1 violation, 2 wrong call, 3 a death, 130 interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.cli.app import main
from emu.experiment import MachineError

REPOSITORY = Path(__file__).parents[2]


def test_a_run_is_fine(machine, emu):
    code, out, err = emu("run")
    assert (code, err) == (0, "")
    assert [domain for _, domain, _, _ in machine.calls] == ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "identity"]
    assert "DMA-FQ" in out


def test_all_domains_run_under_the_same_load(machine, emu):
    emu("run", "--domain", "DMA", "--domain", "DMA-SQ", "--ops", "1000")
    assert machine.calls[0][2] is machine.calls[1][2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nonsense",), "--nonsense"),
        (("fly",), "Available commands: run, replay, set, stress, explore, logs, report, export and more"),
        (("run", "--cpu", "3"), "Did you mean --cpus?"),
        (("run", "--cpus", "many"), '"many" is not a whole number'),
        (("run", "--cpus", "1.5"), '"1.5" is not a whole number'),
        (("run", "--cpus"), "--cpus requires an argument"),
        (("run", "--cpus", "0"), "--cpus: "),
        (("run", "--cpus", "4097"), "4096"),
        (("run", "--seconds", "soon"), "--seconds"),
        (("run", "--seconds", "nan"), "--seconds"),
        (("run", "--domain", "DMA-XQ"), "'DMA-SQ'"),
        (("run", "--preset", "xen"), "there are bare-metal, kvm, lpar, smmuv3, virtio-iommu, vtd-caching, zvm"),
        (("run", "--workload", "floppy"), "'nvme'"),
        (("run", "--fq-size", "1000"), "must be a power of two, as 1024 is"),
        (("run", "--set", "cpus=3"), "section.key=value"),
        (("run", "missing.toml"), "cannot read missing.toml"),
        (("run", "broken.toml"), "broken.toml is not TOML"),
        (("run", "binary.toml"), "binary.toml is not text"),
        (("run", "contradictory.toml"), "contradict each other"),
        (("run", "folder"), "cannot read folder"),
        (("run", "a.toml", "b.toml"), "b.toml"),
        (("run", "--switch", "soon:DMA-FQ"), "--switch 0.5s:DMA-FQ"),
        (("run", "--switch", "2s:DMA-FQ"), "the timeline goes on to 2 s, but the load ends after 1.5 s"),
        (("run", "--bug", "ant"), "--bug: must be"),
        (("run", "--policy", "nosuch.py"), "nosuch.py: No such file or directory; give a policy's Python file"),
        (("run", "--policy", "nosuch"), "--policy: no policy nosuch; emu has adaptive_timeout, batching,"),
        (("run", "--policy", "folder/"), "folder: Is a directory; give a policy's Python file"),
        (("run", "--policy", "wrong.py"), "wrong.py:4: nobody asks for ring, as rings is;"),
        (("run", "policy.toml"), "policy.toml: domain.policy: cannot read "),
        (("run", "--domain", "DMA", "--policy", "kernel"), "domain.policy needs a domain with a flush queue"),
        (("compare", "--vary", "domain.policy=kernel,nosuch"), "no policy nosuch; emu has"),
        (("explore", "--policy", "nosuch.py"), "emu explore: --policy: cannot read "),
        (("explore", "--policy", "wrong.py"), "wrong.py:4: nobody asks for ring"),
        (("stress", "--policy", "nosuch"), "--policy: no policy nosuch; emu has"),
        (("explore", "--domain", "DMA", "--policy", "kernel"), "a domain of type DMA has no flush queue"),
        (("run", "--out", "full"), "--out full is not empty"),
        (("run", "--out", "broken.toml/results"), "--out broken.toml/results cannot be used"),
        (("replay",), "CAPTURE"),
        (("replay", "missing.trace"), "missing.trace: no such capture"),
        (("replay", "folder"), "folder is a directory"),
        (("replay", "broken.toml"), "broken.toml has no map events"),
        (("replay", "broken.toml", "--speed", "warp"), "--speed: must be asap or real"),
        (("doctor", "--cure"), "--cure"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(machine, emu, arguments, said):
    Path("broken.toml").write_text("[machine\n")
    Path("binary.toml").write_bytes(b"\xff\xfe\x00")
    Path("contradictory.toml").write_text("[machine]\nseconds = 1\nops = 5\n")
    Path("wrong.py").write_text('"""Wrong."""\n\n\ndef ring(cpus):\n    return 1\n')
    Path("policy.toml").write_text('[domain]\npolicy = "nosuch.py"\n')
    Path("folder").mkdir()
    Path("full").mkdir()
    Path("full/something").touch()
    code, out, err = emu(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("emu")
    assert said in err
    assert not machine.calls


@pytest.mark.usefixtures("machine")
def test_the_line_names_the_command(emu):
    assert emu("run", "--cpus", "0")[2].startswith("emu run: ")
    assert emu("replay", "nothing")[2].startswith("emu replay: ")


def test_a_machine_that_cannot_be_started_keeps_what_ran_before(machine, emu):
    machine.outcomes["DMA-FQ"] = MachineError("cannot start cpu 3: too many\nprocesses")
    code, out, err = emu("run", "--json")
    assert code == 2
    assert err == "emu run: cannot start cpu 3: too many processes\n"
    assert [run["domain"] for run in json.loads(out)["runs"]] == ["DMA"]


def test_a_violation_is_exit_code_1(machine, emu):
    machine.runs["DMA-SQ"] = {"violations": 2}
    code, out, _ = emu("run")
    assert code == 1
    assert "2 violations" in out


def test_a_bug_on_purpose_is_said_loudly_and_so_is_what_it_did(machine, emu):
    machine.runs["DMA"] = {
        "violations": 7,
        "violations_by_kind": {"handed_out_twice": 0, "queued_while_strict": 7, "queues_of_another_type": 0},
        "bugs": ["queue-before-type"],
    }
    code, out, err = emu("run", "--switch", "0.5s:DMA-FQ", "--bug", "queue-before-type", "--out", "here")
    assert code == 1
    assert "emu run: BUG ON PURPOSE: queue-before-type is on" in err
    assert "7 violations: an unmap was queued while the domain's type said DMA. That is" in " ".join(out.split())
    assert "BUG ON PURPOSE" in Path("here/events.jsonl").read_text()


def test_a_bug_on_purpose_that_had_no_occasion_is_no_violation(machine, emu):
    machine.runs["DMA"] = {"bugs": ["queue-before-type"]}
    code, out, _ = emu("run", "--domain", "DMA", "--bug", "queue-before-type")
    assert code == 0
    assert "had no occasion to show" in " ".join(out.split())


def test_books_that_do_not_balance_are_a_violation(machine, emu):
    machine.runs["DMA-SQ"] = {"violations": 3, "violations_by_kind": {"books_of_iovas": 3}}
    code, out, _ = emu("run")
    assert code == 1
    assert "3 violations: IOVAs queued, reclaimed and overrun are not those unmapped." in " ".join(out.split())


def test_a_death_is_exit_code_3_with_partial_results(machine, emu):
    machine.outcomes["DMA-FQ"] = {"died": "cpu 1 (pid 17) was killed by SIGKILL"}
    machine.runs["DMA-FQ"] = {"conservation": None}
    code, out, err = emu("run", "--out", "here")
    assert code == 3
    assert "cpu 1 (pid 17) was killed by SIGKILL" in err
    assert "DMA-FQ" in out
    assert [run["domain"] for run in json.loads(Path("here/summary.json").read_text())["runs"]] == ["DMA", "DMA-FQ"]


def test_an_interruption_is_exit_code_130_with_partial_results(machine, emu):
    machine.outcomes["DMA-FQ"] = {"interrupted": True}
    code, out, err = emu("run", "--json")
    assert code == 130
    assert err.count("\n") == 1
    assert "interrupted" in err
    assert [run["domain"] for run in json.loads(out)["runs"]] == ["DMA", "DMA-FQ"]


def test_an_interruption_between_domains_keeps_those_that_ran(machine, emu):
    machine.outcomes["DMA-FQ"] = KeyboardInterrupt()
    code, out, _ = emu("run", "--json")
    assert code == 130
    assert [run["domain"] for run in json.loads(out)["runs"]] == ["DMA"]


def test_no_arguments_print_help(emu):
    code, out, err = emu()
    assert (code, err) == (0, "")
    assert "replay" in out


@pytest.mark.parametrize("command", ["run", "replay", "set", "doctor"])
def test_every_command_shows_an_example(emu, command):
    code, out, _ = emu(command, "--help")
    assert code == 0
    assert f"Example: emu {command}" in out


def test_help_does_not_import_what_is_heavy():
    program = "import sys, emu.cli.app as a; a.dispatch(['run', '--help']); sys.exit('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_before_the_command_is_known_is_one_line():
    program = """
import sys
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "emu.config":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from emu.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "emu: interrupted\n")


def test_a_reader_that_leaves_early_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "emu", "--help"], cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert b"Traceback" not in done.stderr


def test_doctor_prints_one_json_object(emu):
    code, out, err = emu("doctor", "--json")
    assert (code, err) == (0, "")
    assert {"cores", "numba", "cache", "cache_warm", "shared_memory_free_bytes"} <= json.loads(out).keys()


def test_doctor_lists_the_same_for_people(emu):
    code, out, _ = emu("doctor")
    assert code == 0
    assert "cache_warm" in out


def test_a_bug_does_not_look_like_a_violation(machine, monkeypatch):
    machine.outcomes["DMA"] = ZeroDivisionError("a bug")
    monkeypatch.setattr(sys, "argv", ["emu", "run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 70
