"""`emu scaling`: what is measured, fitted and printed."""

import json

import pytest

from emu import scaling
from emu.scaling import Plan, Point

CPUS = [1, 2, 4, 8]


@pytest.fixture
def halving(monkeypatch):
    """A machine of which every CPU but the first adds half of what the first does."""

    def measured(plan, _on_compile, _on_progress):
        for config in plan.configs():
            cpus = config.machine.cpus
            yield Point(config.domain.types[0], config.machine.engine, cpus, 1000.0 * (1 + (cpus - 1) / 2))

    monkeypatch.setattr(scaling, "measured", measured)


def test_a_real_machine_is_measured_and_fitted(emu):
    arguments = ["--preset", "lpar", "--domain", "DMA", "--most", "8", "--set", "machine.ops=4000", "--json"]
    code, out, _ = emu("scaling", *arguments)
    found = json.loads(out)
    assert code == 0
    assert [point["cpus"] for point in found["points"]] == CPUS
    # One server serves all of them: nothing is gained by more CPUs.
    assert found["fits"]["DMA"]["contention"] == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("halving")
def test_there_is_a_line_for_each_number_of_cpus_and_for_each_fit(emu):
    _, out, _ = emu("scaling", "--domain", "DMA", "--domain", "DMA-FQ", "--most", "16")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[0] for line in lines if line[0].isdigit()] == ["1", "2", "4", "8", "16"]
    assert ["4", "2500", "2500"] in lines
    assert [line[0] for line in lines][-2:] == ["DMA", "DMA-FQ"]


@pytest.mark.usefixtures("halving")
def test_real_processes_stand_beside_the_virtual_ones_as_far_as_there_are_cores(emu, monkeypatch):
    monkeypatch.setattr(scaling, "cores", lambda: 4)
    _, out, _ = emu("scaling", "--domain", "DMA", "--preset", "lpar", "--processes", "--most", "8")
    lines = [line.split() for line in out.splitlines()]
    beside = [line for line in lines if line[:1] == ["processes"]]
    assert [line[1] for line in beside] == ["1000", "1500", "2500"]
    assert beside[0][2:] == ["(+0", "%)"]


def test_what_was_measured_before_an_interruption_is_shown(emu, monkeypatch):
    def measured(_plan, _on_compile, _on_progress):
        yield Point("DMA", "sim", 1, 1000.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "measured", measured)
    code, out, err = emu("scaling")
    assert code == 130
    assert "1000" in out
    assert "interrupted" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--most", "4"], "--most: must be 8 to 4096"),
        (["--domain", "DMB"], "--domain: must be DMA, "),
        (["--preset", "hyperv"], "unknown preset 'hyperv'"),
        (["--set", "machine.cpu=3"], "machine.cpu: no such key"),
    ],
)
def test_a_wrong_call_is_one_line(emu, arguments, complaint):
    code, out, err = emu("scaling", *arguments)
    assert code == 2
    assert not out
    assert complaint in err
    assert err.count("\n") == 1


def test_servers_need_cores_too(monkeypatch):
    monkeypatch.setattr(scaling, "cores", lambda: 4)
    plan = Plan("kvm", ["DMA"], CPUS, with_processes=True)
    configs = [config for config in plan.configs() if config.machine.engine == "processes"]
    assert [config.machine.cpus for config in configs] == [1, 2]
