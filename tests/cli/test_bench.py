"""`emu bench` is the kernel's dma_map_benchmark: its options, its limits, its words, its three lines."""

import json
import re

import pytest

from emu.experiment import MachineError

SIM = ("--engine", "sim", "-s", "1", "-x", "10000")
FORMAT = re.compile(
    r"dma mapping benchmark\((?P<mode>SINGLE_MODE|SG_MODE)\): threads:(?P<threads>\d+) seconds:(?P<seconds>\d+) "
    r"node:(?P<node>-?\d+) dir:(?P<dir>BIDIRECTIONAL|TO_DEVICE|FROM_DEVICE) granule:(?P<granule>\d+)\n"
    r"average map latency\(us\):(?P<map>\d+\.\d) standard deviation:(?P<map_sd>\d+\.\d)\n"
    r"average unmap latency\(us\):(?P<unmap>\d+\.\d) standard deviation:(?P<unmap_sd>\d+\.\d)\n"
)
"""What tools/dma/dma_map_benchmark.c prints."""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "2"), "invalid map mode, SINGLE_MODE:0, SG_MODE: 1"),
        (("-m", "-1"), "invalid map mode, SINGLE_MODE:0, SG_MODE: 1"),
        (("-t", "0"), "invalid number of threads, must be in 1-1024"),
        (("-t", "1025"), "invalid number of threads, must be in 1-1024"),
        (("-t", "many"), "invalid number of threads, must be in 1-1024"),
        (("-t-1",), "invalid number of threads, must be in 1-1024"),
        (("-s", "0"), "invalid number of seconds, must be in 1-300"),
        (("-s", "301"), "invalid number of seconds, must be in 1-300"),
        (("-s", "99999999999999999999"), "invalid number of seconds, must be in 1-300"),
        (("-x", "-1"), "invalid transmit delay, must be in 0-10000000"),
        (("-x", "10000001"), "invalid transmit delay, must be in 0-10000000"),
        (("-b", "19"), "invalid dma mask bit, must be in 20-64"),
        (("-b", "65"), "invalid dma mask bit, must be in 20-64"),
        (("-d", "3"), "invalid dma direction"),
        (("-d", "-1"), "invalid dma direction"),
        (("-g", "0"), "invalid granule size"),
        (("-g", "1025"), "invalid granule size"),
        (("-n", "-2"), "ioctl: Invalid argument"),
        (("-n", "1024"), "ioctl: Invalid argument"),
        (("-g", "0", "-t", "0"), "invalid number of threads, must be in 1-1024"),
        (("-n", "-2", "-g", "0"), "invalid granule size"),
    ],
)
def test_what_is_out_of_limits_is_refused_in_the_tools_words(emu, arguments, said):
    assert emu("bench", *arguments) == (1, "", f"{said}\n")


@pytest.mark.parametrize("domain", ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict", "identity"])
def test_every_scheme_prints_the_tools_three_lines(emu, domain):
    code, out, err = emu("bench", *SIM, "-t", "2", "-g", "4", "--domain", domain)
    assert (code, err) == (0, "")
    found = FORMAT.fullmatch(out)
    assert found
    shown = [found[name] for name in ("mode", "threads", "seconds", "node", "dir", "granule")]
    assert shown == ["SINGLE_MODE", "2", "1", "-1", "BIDIRECTIONAL", "4"]


def test_a_flush_at_every_unmap_shows_in_its_latency(emu):
    strict, lazy, none = (
        FORMAT.fullmatch(emu("bench", *SIM, "--preset", "lpar", "--domain", domain)[1])
        for domain in ("DMA", "DMA-SQ", "identity")
    )
    assert float(strict["unmap"]) > 10 * max(float(lazy["unmap"]), 0.1)
    assert none["map"] == none["unmap"] == "0.0"


def test_what_has_no_effect_is_said_beside_the_lines(emu):
    code, out, err = emu("bench", *SIM, "-n0", "-d2", "-m1", "-g8", "--domain", "identity")
    assert code == 0
    assert FORMAT.fullmatch(out)[0].startswith(
        "dma mapping benchmark(SG_MODE): threads:1 seconds:1 node:0 dir:FROM_DEVICE granule:8\n"
    )
    assert "-n 0 has no effect" in err
    assert "-d 2 has no effect" in err


def test_a_mask_too_narrow_for_the_load_ends_as_in_the_kernel(emu):
    code, out, err = emu("bench", *SIM, "-b", "20", "-g", "64", "--domain", "DMA-FQ")
    assert (code, out, err) == (1, "", "ioctl: Cannot allocate memory\n")


def test_json_has_the_fields_of_the_kernels_structure(emu):
    code, out, err = emu("bench", *SIM, "--domain", "DMA", "-b", "64", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["threads"], found["dma_bits"], found["dma_trans_ns"], found["granule"]) == (1, 64, 10_000, 1)
    for call in ("map", "unmap"):
        exact = found["latency_ns"][call]
        assert exact["calls"] > 10_000
        assert found[f"avg_{call}_100ns"] == int(exact["average"] // 100)


def test_a_held_mapping_is_held(emu):
    rates = [
        json.loads(emu("bench", "--engine", "sim", "-s", "1", "-x", held, "--json")[1])["pairs_per_s"]
        for held in ("20000", "120000")
    ]
    assert 1e9 / rates[1] - 1e9 / rates[0] == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-q", "3"), "-q"),
        (("--domain", "DMA-XQ"), "--domain: must be"),
        (("--preset", "xen"), "there are bare-metal"),
        (("--engine", "steam"), "--engine: must be"),
        (("--set", "workload.granule=3"), "-g and --set workload.granule both set"),
        (("-b", "24", "--set", "domain.aperture_start=4294967296"), "the device reaches no address"),
    ],
)
def test_what_only_the_emulator_has_is_refused_in_its_own_words(emu, arguments, said):
    code, out, err = emu("bench", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("emu bench: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_mapping_of_single_pages_has_a_segment_for_each(monkeypatch, emu):
    seen = []

    def note(_config, _domain, workload, **_callbacks):
        seen.append(workload)
        raise MachineError("enough seen")

    monkeypatch.setattr("emu.experiment.run_machine", note)
    for mode in ("0", "1"):
        assert emu("bench", *SIM, "-t", "2", "-g", "8", "-m", mode) == (2, "", "emu bench: enough seen\n")
    one, several = seen
    assert [program.ops["nents"][0] for program in one.programs] == [1, 1]
    assert [program.ops["nents"][0] for program in several.programs] == [8, 8]
    assert several.segments.tolist() == [1] * 8
