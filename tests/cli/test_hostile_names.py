"""Names that mean harm, of folders, files and captures: they show as text, in a line, and the log stays a log."""

import json
import shutil
from pathlib import Path

import pytest

from emu.analysis.log_schema import entry_adapter
from emu.capture.shipped import find_capture

NAME = "a\n[red]b\x1b[31m<script>\u202ec"
HARMFUL = "\x1b\u202e"
REAL = ("--engine", "sim", "--cpus", "2", "--seconds", "0.02", "--domain", "DMA-FQ")


def is_text(*printed):
    """Whether what was printed neither acts on a terminal nor breaks a line where the name does."""
    whole = "".join(printed)
    return not any(letter in whole for letter in HARMFUL) and "\n[red]b" not in whole and "\nb" not in whole


def entries(folder):
    """The log's entries, validated, one a line."""
    return [
        entry_adapter.validate_python(json.loads(line)) for line in (folder / "events.jsonl").read_text().splitlines()
    ]


def test_the_name_of_a_folder_is_text(emu, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / NAME
    code, out, err = emu("run", *REAL, "--out", str(folder))
    assert (code, err) == (0, "")
    assert "Results: " in out
    assert r"a\n[red]b\x1b[31m<script>\u202ec" in out
    assert is_text(out)
    assert len(entries(folder)) == (folder / "events.jsonl").read_bytes().count(b"\n")
    code, out, err = emu("run", *REAL, "--out", str(folder))
    assert code == 2
    assert err.count("\n") == 1
    assert is_text(err)


def test_the_name_of_a_capture_is_text(emu, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    source = find_capture(Path("s390x-lazy-nvme"))
    target = tmp_path / f"{NAME}.trace.gz"
    shutil.copy(source, target)
    shutil.copy(source.with_name("s390x-lazy-nvme.json"), tmp_path / f"{NAME}.json")
    code, out, err = emu("replay", str(target), "--engine", "sim", "--out", str(tmp_path / "here"))
    assert (code, err) == (0, "")
    assert r"[red]b\x1b[31m<script>\u202ec" in out
    assert is_text(out)
    started = [entry for entry in entries(tmp_path / "here") if entry.event == "domain_started"]
    assert NAME in started[0].workload


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", NAME),
        ("run", "--set", f"machine.{NAME}=1"),
        ("run", "--domain", NAME),
        ("run", NAME, "--costs", NAME, "--engine", "sim"),
        ("replay", NAME),
        ("logs", NAME),
        ("set", "type", NAME),
        ("set", NAME, "DMA"),
        (NAME,),
        ("run", f"--{NAME}"),
    ],
)
def test_a_name_in_a_complaint_is_text(emu, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = emu(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert is_text(err)
