"""`emu claims`: exit codes and what is printed; what is measured is tested in tests/claims."""

import json

import pytest

from emu.analysis.claims import CANNOT_BE_SHOWN, DOES_NOT_HOLD, HOLDS, Finding, Interval
from emu.claims import measure
from emu.experiment import DeathError


@pytest.fixture
def found(monkeypatch):
    """What there is to find: (verdict or an exception) of each chosen claim, in turn."""
    answers = []

    def findings(_bench, claims):
        for claim, answer in zip(claims, answers, strict=False):
            if isinstance(answer, BaseException):
                raise answer
            yield Finding(claim.id, "a [b]/c", "1 to 2 ×", Interval(1.5, 1.4, 1.6), " ×", answer, "so it is")

    monkeypatch.setattr(measure.Bench, "findings", findings)
    return answers


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [([HOLDS, HOLDS], 0), ([HOLDS, CANNOT_BE_SHOWN], 0), ([HOLDS, DOES_NOT_HOLD], 1)],
)
def test_only_what_does_not_hold_fails(emu, found, verdicts, code):
    found += verdicts
    assert emu("claims", "--only", "C1", "--only", "C2")[0] == code


def test_the_table_has_a_line_for_each_finding(emu, found):
    found += [HOLDS, DOES_NOT_HOLD]
    _, out, err = emu("claims", "--only", "C1", "--only", "c7")
    lines = [line for line in out.splitlines() if "a [b]/c" in line and "1.400 to 1.600" in line]
    assert [line.split()[0] for line in lines] == ["C1", "C7"]
    assert lines[0].split("1.600")[1].strip() == HOLDS
    assert "so it is" in out
    assert not err


def test_json_is_one_object_with_sources(emu, found):
    found.append(HOLDS)
    _, out, _ = emu("claims", "--only", "C6", "--json")
    (claim,) = json.loads(out)["claims"]
    assert claim["id"] == "C6"
    assert "20230802123612" in claim["source"]
    assert claim["findings"][0]["measured"] == {"value": 1.5, "low": 1.4, "high": 1.6}


def test_what_was_measured_before_an_interruption_is_shown(emu, found):
    found += [HOLDS, KeyboardInterrupt()]
    code, out, err = emu("claims")
    assert code == 130
    assert "C1 " in out
    assert "interrupted" in err


def test_a_process_that_died_is_told(emu, found):
    found.append(DeathError("DMA: cpu 0 died"))
    assert emu("claims")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "C99"], "--only C99: no such claim; there are C1, C2"),
        (["--engine", "threads"], "--engine: must be sim or processes"),
        (["--rounds", "0"], "--rounds: must be 1 to 100"),
        (["--set", "hypervisor"], "needs the form section.key=value"),
        (["--only", "C1", "--set", "hypervisor.no=1"], "C1: command line: hypervisor.no: no such key"),
    ],
)
def test_a_wrong_call_is_one_line(emu, arguments, complaint):
    code, out, err = emu("claims", *arguments)
    assert code == 2
    assert not out
    assert complaint in err
    assert err.count("\n") == 1
