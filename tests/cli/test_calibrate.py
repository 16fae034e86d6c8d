"""`emu doctor --calibrate` writes a file, and `--costs` reads it: never over another file, never anything but costs."""

import json
import tomllib
from pathlib import Path

import pytest

from emu.config import load
from emu.machine.calibration import Calibration, CalibrationError

COSTS = {"map": 23.5, "lock": 4.25, "transfer": 70.0}


@pytest.fixture
def calibrated(monkeypatch, tmp_path):
    """A calibration that takes no time, in an empty current directory."""
    found = Calibration(
        COSTS, {name: (ns - 1, ns + 1) for name, ns in COSTS.items()}, [("queue", 100.0, 98.0)], 5,
        {"wake": "it takes two cores"},
    )  # fmt: skip
    monkeypatch.setattr("emu.machine.calibration.calibrate", lambda **_: found)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.usefixtures("calibrated")
def test_the_file_is_read_by_a_run_on_virtual_clocks(emu, machine):
    assert emu("doctor", "--calibrate")[0] == 0
    code, _, err = emu("run", "--engine", "sim", "--costs", "costs.toml", "--domain", "DMA")
    assert (code, err) == (0, "")
    costs = machine.calls[0][0].costs
    assert (costs.map_ns, costs.lock_ns, costs.transfer_ns) == (23.5, 4.25, 70.0)
    assert costs.wake_ns == load().costs.wake_ns


@pytest.mark.usefixtures("calibrated")
def test_it_holds_costs_only_and_says_what_was_left_out(emu):
    emu("doctor", "--calibrate", "--out", "mine.toml")
    text = Path("mine.toml").read_text()
    assert tomllib.loads(text) == {"costs": {f"{name}_ns": ns for name, ns in COSTS.items()}}
    assert "# wake_ns was not measured: it takes two cores" in text
    assert [path.name for path in Path().iterdir()] == ["mine.toml"]


@pytest.mark.usefixtures("calibrated")
def test_people_see_steps_spread_and_what_they_add_up_to(emu):
    _, out, _ = emu("doctor", "--calibrate")
    assert "map_ns" in out
    assert "22.5–24.5" in out
    assert "not measured: it takes two cores" in out
    assert "0.98" in out
    assert "--costs costs.toml" in out


@pytest.mark.usefixtures("calibrated")
def test_scripts_see_one_json_object(emu):
    _, out, _ = emu("doctor", "--calibrate", "--json")
    found = json.loads(out)
    assert (found["file"], found["costs_ns"]) == ("costs.toml", COSTS)


@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--calibrate",), "costs.toml exists; name another file with --out"),
        (("--calibrate", "--out", "nowhere/costs.toml"), "nowhere is no folder that can be written"),
        (("--calibrate", "--out", "costs.toml/costs.toml"), "costs.toml is no folder that can be written"),
        (("--out", "other.toml"), "only --calibrate writes a file"),
    ],
)
def test_a_file_that_cannot_be_new_is_refused_before_anything_is_measured(emu, monkeypatch, arguments, said):
    monkeypatch.setattr("emu.machine.calibration.calibrate", None)
    Path("costs.toml").write_text("precious")
    code, out, err = emu("doctor", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert Path("costs.toml").read_text() == "precious"


@pytest.mark.usefixtures("calibrated")
def test_a_machine_that_cannot_be_measured_is_one_line(emu, monkeypatch):
    def refuse(**_):
        raise CalibrationError("nothing is compiled")

    monkeypatch.setattr("emu.machine.calibration.calibrate", refuse)
    assert emu("doctor", "--calibrate") == (2, "", "emu doctor: nothing is compiled\n")
    assert not list(Path().iterdir())


def test_costs_win_over_the_machine_file_and_single_values_over_both(emu, machine):
    Path("machine.toml").write_text('[machine]\nengine = "sim"\n[costs]\nmap_ns = 1.0\nlock_ns = 1.0\ntree_ns = 1.0\n')
    Path("costs.toml").write_text("[costs]\nmap_ns = 2.0\nlock_ns = 2.0\n")
    arguments = ("--costs", "costs.toml", "--set", "costs.lock_ns=3", "--domain", "DMA")
    assert emu("run", "machine.toml", *arguments)[0] == 0
    costs = machine.calls[0][0].costs
    assert (costs.tree_ns, costs.map_ns, costs.lock_ns) == (1.0, 2.0, 3.0)


def test_a_replay_takes_costs_too(emu, machine):
    Path("costs.toml").write_text("[costs]\nmap_ns = 2.0\n")
    assert emu("replay", "s390x-strict-nvme", "--engine", "sim", "--costs", "costs.toml")[0] in {0, 1}
    assert machine.calls[0][0].costs.map_ns == 2.0


@pytest.mark.parametrize(
    ("text", "engine", "said"),
    [
        ("[costs]\nmap_ns = 2.0\n[machine]\ncpus = 3\n", "sim", "costs.toml: machine is not about costs"),
        ("[costs]\ncolour = 2.0\n", "sim", "costs.toml: costs.colour: no such key"),
        ("[costs]\nmap_ns = -2.0\n", "sim", "costs.toml: costs.map_ns: must be at least 0"),
        ("[costs]\nmap_ns = nan\n", "sim", "costs.toml: costs.map_ns: must be at most 1000000000000.0, not nan"),
        ("", "sim", "costs.toml has no [costs]"),
        ("costs = 3\n", "sim", "costs.toml has no [costs]"),
        ("[costs\n", "sim", "costs.toml is not TOML"),
        ("[costs]\nmap_ns = 2.0\n", "processes", "--costs: processes run on real clocks"),
    ],
)
def test_a_wrong_file_of_costs_is_one_line_that_names_it(emu, machine, text, engine, said):
    Path("costs.toml").write_text(text)
    code, out, err = emu("run", "--engine", engine, "--costs", "costs.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not machine.calls
