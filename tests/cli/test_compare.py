"""`emu compare` and `emu.compare`: what is compared, what is said, what is refused."""

import json
import os
import re

import pytest

import emu as package

SMALL = ("--engine", "sim", "--cpus", "2", "--ops", "60", "--set", "domain.aperture_mb=64")


def found(emu, *arguments):
    code, out, err = emu("compare", *SMALL, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_schemes_are_compared_with_the_first(emu):
    said = found(emu, "--domain", "DMA", "--domain", "DMA-SQ", "--domain", "identity")
    names = [one["name"] for one in said["candidates"]]
    assert (said["baseline"], said["rounds"], names) == ("DMA", 12, ["DMA", "DMA-SQ", "identity"])
    assert [one["differs"] for one in said["candidates"]] == [None, True, True]
    assert said["candidates"][2]["ratio"] > 10
    assert said["candidates"][1]["low"] <= said["candidates"][1]["ratio"] <= said["candidates"][1]["high"]


def test_a_scheme_does_not_differ_from_itself(emu):
    # Other seeds are other loads of the same machine: equals that do not measure the same.
    said = found(emu, "--domain", "DMA", "--vary", "machine.seed=1,1001")["candidates"][1]
    assert said["ratio"] != 1
    assert said["differs"] is False
    assert re.fullmatch(
        r"machine.seed=1001: no difference from machine.seed=1 found; if there is one it is below [\d.]+ %",
        said["says"],
    )


def test_five_percent_more_of_a_cost_are_found(emu):
    said = found(emu, "--domain", "DMA", "--preset", "lpar", "--vary", "hypervisor.intercept_ns=100000,105000")
    assert said["candidates"][1]["differs"]
    assert 0.95 < said["candidates"][1]["ratio"] < 0.98


def test_the_same_description_twice_measures_the_same(emu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text('[domain]\ntypes = ["DMA"]\n')
    said = found(emu, "one.toml", "one.toml")
    assert [one["name"] for one in said["candidates"]] == ["DMA", "DMA (2)"]
    assert said["candidates"][1]["says"] == "DMA (2): the same as DMA in every round"


def test_names_say_what_differs(emu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, cpus in (("few", 1), ("many", 3)):
        (tmp_path / f"{name}.toml").write_text(
            f'[machine]\nengine = "sim"\nops = 30\ncpus = {cpus}\n[domain]\ntypes = ["DMA-FQ", "DMA-SQ"]\n'
        )
    arguments = ("few.toml", "many.toml", "--vary", "domain.on_overrun=kernel,wait", "--repeat", "9", "--json")
    code, out, _ = emu("compare", *arguments, "--baseline", "few DMA-SQ domain.on_overrun=wait")
    said = json.loads(out)
    assert code == 0
    assert [one["name"] for one in said["candidates"]] == [
        f"{file} {domain} domain.on_overrun={value}"
        for file in ("few", "many")
        for value in ("kernel", "wait")
        for domain in ("DMA-FQ", "DMA-SQ")
    ]
    assert said["baseline"] == "few DMA-SQ domain.on_overrun=wait"


def test_the_table_has_a_line_for_each_and_says_what_was_found(emu, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = emu("compare", *SMALL, "--domain", "DMA", "--domain", "DMA-SQ", "--until", "5%")
    assert (code, err) == (0, "")
    assert out.startswith("12 rounds, map+unmap pairs per s, ratios of the same round to DMA:\n")
    assert re.search(r"^DMA +[\d.]+( k)? +[\d.]+ % +– +– +baseline", out, re.MULTILINE)
    assert re.search(r"^DMA-SQ +[\d.]+( k)? +[\d.]+ % +\d\.\d+ +\d\.\d+ to \d\.\d+ +higher", out, re.MULTILINE)
    assert re.search(r"^DMA-SQ: [\d.]+ % higher than DMA \([\d.]+ % to [\d.]+ %\)$", out, re.MULTILINE)
    assert "Every ratio is known to 5 % after 12 rounds." in out


def test_a_load_without_chance_is_told(emu):
    said = found(emu, "--domain", "DMA", "--domain", "DMA-FQ", "--workload", "map_benchmark", "--repeat", "8")
    assert said["candidates"][1]["differs"]
    assert said["warnings"] == [
        "all rounds measured the same: nothing in this load is random, so the ratios are exact for it and no other"
    ]


@pytest.mark.parametrize("metric", ["map-p50", "unmap-p99"])
def test_another_metric_is_compared(emu, metric):
    said = found(emu, "--domain", "DMA", "--domain", "DMA-SQ", "--metric", metric)
    assert said["metric"] == metric
    assert said["candidates"][1]["ratio"] < 1


def test_what_was_measured_is_kept(emu, tmp_path):
    out = tmp_path / "here"
    said = found(emu, "--domain", "DMA", "--domain", "DMA-SQ", "--repeat", "8", "--out", str(out))
    assert json.loads((out / "comparison.json").read_text()) == said
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    (pairs,) = [line["pairs"] for line in lines if (line["round"], line["candidate"]) == (1, "DMA")]
    assert package.run(out / "candidate-1.toml", seed=2).runs[0]["pairs_per_s"] == pairs


def test_python_finds_the_same(emu):
    from_command = found(emu, "--domain", "DMA", "--domain", "DMA-SQ", "--repeat", "8")
    settings = {"engine": "sim", "cpus": 2, "ops": 60, "set": {"domain.aperture_mb": 64}}
    compared = package.compare(**settings, domain=["DMA", "DMA-SQ"], repeat=8)
    assert compared.candidates == from_command["candidates"]
    assert (compared.exit_code, compared.messages) == (0, [])
    assert list(compared.to_dataframe()["name"]) == ["DMA", "DMA-SQ"]
    assert len(compared.rounds()) == 16
    assert re.fullmatch(r"<emu\.Comparison: DMA-SQ: .* than DMA \(.*\)>", repr(compared))
    base = package.load_config(**settings, domain="DMA")
    varied = package.compare(base, vary={"hypervisor.preset": ["kvm", "lpar"]}, repeat=8, until=50)
    assert [one["name"] for one in varied.candidates] == ["hypervisor.preset=kvm", "hypervisor.preset=lpar"]
    assert len(package.compare(base, base, repeat=8).candidates) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--domain", "DMA"), "needs two candidates at least"),
        (("--vary", "fq_size=1,2"), "--vary fq_size=1,2: needs the form section.key=V1,V2"),
        (("--vary", "machine.cpus=1"), "needs at least two values"),
        (("--vary", "machine.cpus=1,2", "--vary", "machine.cpus=3,4"), "is given twice"),
        (("--vary", "machine.cpus=1,0"), "--vary machine.cpus=0: must be at least 1, not 0"),
        (("--vary", "machine.lunch=1,0"), "no such key"),
        (("--vary", "machine.cpus=1,2", "--cpus", "3"), "--cpus and --vary both give machine.cpus"),
        (("--vary", f"machine.seed={','.join(map(str, range(20)))}"), "100 candidates are too many"),
        (("--baseline", "X"), "--baseline X: no such candidate; there are DMA, DMA-FQ"),
        (("--repeat", "7"), "--repeat 7: must be at least 8"),
        (("--repeat", "1001"), "--repeat: must be at most 1000"),
        (("--repeat", "many"), "not a whole number"),
        (("--until", "soon"), "--until soon: needs percent"),
        (("--until", "0%"), "--until 0%: needs percent"),
        (("--metric", "smell"), "--metric smell: must be pairs, map-p50"),
        (("--record",), "--record: a comparison keeps no events"),
        (("--switch", "9s:DMA-FQ", "--domain", "DMA", "--domain", "identity"), "the timeline goes on to 9 s"),
        (("nowhere.toml", "elsewhere.toml"), "cannot read nowhere.toml"),
        (("--out", "."), "--out . is not empty"),
        (("--out", "full/inside"), "cannot be used"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(emu, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").write_text("")
    code, out, err = emu("compare", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("emu compare: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: package.compare(domain="DMA"), "needs two candidates at least"),
        (lambda: package.compare(vary={"cpus": [1, 2]}), "vary: cpus: needs the form section.key"),
        (lambda: package.compare(until=0), "until 0: needs percent"),
        (lambda: package.compare(lunch=1), "lunch: no such setting"),
        (lambda: package.compare("nowhere.toml", "elsewhere.toml"), "cannot read nowhere.toml"),
    ],
)
def test_errors_from_python_are_one_line_too(call, said):
    with pytest.raises(package.ConfigError, match=re.escape(said)) as raised:
        call()
    assert "--" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(emu, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = emu("compare", "--out", str(tmp_path / "locked"))
    assert code == 2
    assert "cannot be written" in err
