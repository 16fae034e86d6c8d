"""Statements about the description of a run: where values come from, what is refused, and in which words."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emu.config import (
    DEFAULT_PRESET,
    DMB_SIZES_KB,
    MAX_CPUS,
    MAX_DMBS,
    PRESETS,
    QUEUED,
    Config,
    ConfigError,
    load,
    presets,
)

TYPES = ["DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict", "identity"]
APERTURE_END = 1 << 42


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "machine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def message_of(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as error:
        load(written(folder, text))
    return str(error.value)


def nanoseconds() -> st.SearchStrategy[float]:
    return st.floats(0, 1e12)


def subset(optional: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def actions() -> st.SearchStrategy[dict[str, Any]]:
    at_s = st.floats(0, 86_400)
    types = st.fixed_dictionaries({"at_s": at_s, "type": st.sampled_from(TYPES)})
    return types | st.fixed_dictionaries({"at_s": at_s, "driver": st.sampled_from(["unbind", "bind"])})


def machines() -> st.SearchStrategy[dict[str, Any]]:
    values = {
        "cpus": st.integers(1, MAX_CPUS),
        "engine": st.sampled_from(["processes", "threads", "sim"]),
        "seed": st.integers(0, 2**63 - 1),
        "hz": st.sampled_from([100, 250, 300, 1000]),
        "pin": st.booleans(),
        "check": st.booleans(),
        "timeline": st.lists(actions(), max_size=3),
        "faults": st.sampled_from([[], ["fq-alloc"]]),
    }
    seconds = st.floats(0, 86_400, exclude_min=True)
    return subset({**values, "seconds": seconds}) | subset({**values, "ops": st.integers(1, 2**63 - 1)})


@st.composite
def domains(draw: st.DrawFn) -> dict[str, Any]:
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, unique=True))
    aperture_mb = draw(st.integers(1, 1 << 21))
    aperture_start = 4096 * draw(st.integers(0, (APERTURE_END - (aperture_mb << 20)) >> 12))
    pages = st.lists(st.integers(0, 1 << 30), min_size=2, max_size=2, unique=True).map(sorted)
    values: dict[str, st.SearchStrategy[Any]] = {
        "reserved": st.lists(pages.map(lambda page: (page[0] << 12, (page[1] << 12) - 1)), max_size=3),
        "dma_bits": st.integers(max(20, aperture_start.bit_length()), 64),
        "iova_ranges": st.integers(64, 1 << 28),
        "fq_memory_mb": st.integers(0, 1 << 20),
        "bugs": st.lists(st.sampled_from(["init-fq-before-type", "queue-before-type"]), unique=True),
        "device": st.sampled_from([None, "pci", "ism"]),
    }
    if QUEUED & set(types):
        values["fq_size"] = st.integers(1, 24).map(lambda order: 1 << order)
        values["fq_timeout_ms"] = st.floats(0, 3_600_000, exclude_min=True)
        values["on_overrun"] = st.sampled_from(["kernel", "wait"])
    return {"types": types, "aperture_mb": aperture_mb, "aperture_start": aperture_start, **draw(subset(values))}


@st.composite
def hypervisors(draw: st.DrawFn) -> dict[str, Any]:
    service = draw(st.sampled_from(["process", "inline"]))
    return {
        "preset": draw(st.sampled_from(presets())),
        "shadows": draw(st.booleans()),
        "intercept_ns": draw(nanoseconds()),
        "walk_ns": draw(nanoseconds()),
        "change_ns": draw(nanoseconds()),
        "absent_entries": draw(st.sampled_from(["skip", "count"])),
        "servers": draw(st.integers(1, 64)) if service == "process" else 1,
        "queue_limit": draw(st.integers(0, 2 * MAX_CPUS)),
        "service": service,
    }


def workloads() -> st.SearchStrategy[dict[str, Any]]:
    shares = st.dictionaries(st.integers(1, 4096), st.floats(0, 1e6), min_size=1, max_size=8)
    return subset(
        {
            "name": st.sampled_from(["map_benchmark", "nvme", "nic", "ism"]),
            "queue_depth": st.integers(1, 65_536),
            "granule": st.integers(1, 1024),
            "hold_ns": nanoseconds(),
            "block_kb": shares.filter(lambda shares: sum(shares.values()) > 0),
            "completion": st.sampled_from(["same", "other"]),
            "ring": st.integers(1, 65_536),
            "batch": st.integers(1, 4096),
            "dmbs": st.integers(1, MAX_DMBS),
            "dmb_kb": st.dictionaries(st.sampled_from(DMB_SIZES_KB), st.floats(0.001, 1e6), min_size=1),
        }
    )


@given(machine=machines(), domain=domains(), hypervisor=hypervisors(), workload=workloads())
def test_a_description_survives_being_written_and_read(machine, domain, hypervisor, workload):
    config = Config.model_validate(
        {"machine": machine, "domain": domain, "hypervisor": hypervisor, "workload": workload}
    )
    assert Config.model_validate(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("preset", presets())
def test_the_description_a_run_leaves_can_be_run_again(tmp_path, preset):
    config = load(preset=preset, overrides=[("machine", "ops", 1000), ("workload", "block_kb", {4: 1, 512: 3})])
    assert load(written(tmp_path, config.to_toml())) == config


def test_the_defaults_need_nothing():
    config = load()
    assert config.hypervisor.preset == DEFAULT_PRESET
    assert config.machine.cpus in range(2, 5)


def test_all_presets_are_found():
    assert {"bare-metal", "kvm", "lpar", "zvm"} <= set(presets())


@pytest.mark.parametrize("preset", presets())
def test_a_preset_loads_and_describes_a_hypervisor_only(preset):
    assert load(preset=preset).hypervisor.preset == preset
    assert set(tomllib.loads((PRESETS / f"{preset}.toml").read_text(encoding="utf-8"))) == {"hypervisor"}


@pytest.mark.parametrize("preset", presets())
def test_every_number_of_a_preset_has_a_comment(preset):
    # A comment speaks for the lines below it, up to an empty line or a table's head.
    is_explained = False
    for line in (PRESETS / f"{preset}.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            is_explained = True
        elif not line.strip() or line.startswith("["):
            is_explained = False
        else:
            [value] = tomllib.loads(line).values()
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            assert is_explained or not is_number, line


def test_a_file_goes_before_its_preset_and_a_flag_before_both(tmp_path):
    path = written(tmp_path, '[hypervisor]\npreset = "zvm"\nwalk_ns = 1.5\nchange_ns = 2.5\n')
    preset = load(preset="zvm").hypervisor
    config = load(path, overrides=[("hypervisor", "change_ns", 3.5)]).hypervisor
    assert config.intercept_ns == preset.intercept_ns
    assert config.walk_ns == 1.5
    assert config.change_ns == 3.5


def test_a_preset_of_the_command_line_stands_for_all_of_its_numbers(tmp_path):
    path = written(tmp_path, '[hypervisor]\npreset = "zvm"\nwalk_ns = 1.5\n')
    assert load(path, preset="lpar").hypervisor == load(preset="lpar").hypervisor


def test_a_flag_that_is_not_given_changes_nothing(tmp_path):
    path = written(tmp_path, "[machine]\ncpus = 7\n")
    assert load(path, overrides=[("machine", "cpus", None)]) == load(path)


def test_a_file_replaces_a_mix_of_block_sizes_as_a_whole(tmp_path):
    assert load(written(tmp_path, "[workload]\nblock_kb = { 8 = 1.0 }\n")).workload.block_kb == {8: 1.0}


@pytest.mark.parametrize(
    ("in_file", "flag", "expected"),
    [("seconds = 3.0", ("machine", "ops", 10), (10, 1.5)), ("ops = 10", ("machine", "seconds", 3.0), (None, 3.0))],
)
def test_a_flag_for_the_length_of_a_run_replaces_the_file_s(tmp_path, in_file, flag, expected):
    machine = load(written(tmp_path, f"[machine]\n{in_file}\n"), overrides=[flag]).machine
    assert (machine.ops, machine.seconds) == expected


WRONG = {
    "unknown section": "[nosuch]\nx = 1",
    "unknown key": "[machine]\nnosuch = 1",
    "not a table": "machine = 3",
    "top-level value": "cpus = 3",
    "not TOML": "[machine\ncpus = 3",
    "truncated": "[machine]\ncpus = [1, 2",
    "NUL": "\x00",
    "not UTF-8": b"\xff\xfe[machine]",
    "too few CPUs": "[machine]\ncpus = 0",
    "too many CPUs": "[machine]\ncpus = 4097",
    "text for a number": '[machine]\ncpus = "many\\nCPUs"',
    "date for a number": "[machine]\ncpus = 1979-05-27",
    "fraction for a count": "[machine]\nseed = 1.5",
    "not a time": "[machine]\nseconds = nan",
    "endless": "[machine]\nseconds = inf",
    "odd tick rate": "[machine]\nhz = 99",
    "action without a time": '[machine]\ntimeline = [{ type = "DMA" }]',
    "action that is none": "[machine]\ntimeline = [{ at_s = 1.0 }]",
    "action that is two": '[machine]\ntimeline = [{ at_s = 1.0, type = "DMA", driver = "bind" }]',
    "action of the past": '[machine]\ntimeline = [{ at_s = -1.0, type = "DMA" }]',
    "action of another kind": '[machine]\ntimeline = [{ at_s = 1.0, cpu = "off" }]',
    "unknown type in time": '[machine]\ntimeline = [{ at_s = 1.0, type = "no\\nsuch" }]',
    "unknown fault": '[machine]\nfaults = ["nosuch"]',
    "unknown bug": '[domain]\nbugs = ["nosuch"]',
    "no domain": "[domain]\ntypes = []",
    "domain twice": '[domain]\ntypes = ["DMA", "DMA"]',
    "unknown domain": '[domain]\ntypes = ["nosuch\\n"]',
    "ring size": "[domain]\nfq_size = 100",
    "unaligned aperture": "[domain]\naperture_start = 1",
    "half a range": "[domain]\nreserved = [[0]]",
    "negative cost": "[hypervisor]\nwalk_ns = -1.0",
    "unknown preset": '[hypervisor]\npreset = "no\\nsuch"',
    "preset that is no name": '[hypervisor]\npreset = ["kvm"]',
    "unknown workload": '[workload]\nname = "nosuch\\n"',
    "no block size": "[workload]\nblock_kb = {}",
    "block size that is no number": "[workload]\nblock_kb = { x = 1.0 }",
    "block size of nothing": "[workload]\nblock_kb = { 0 = 1.0 }",
    "negative share": "[workload]\nblock_kb = { 4 = -1.0, 8 = 2.0 }",
    "share that is no number": "[workload]\nblock_kb = { 4 = nan }",
    "buffer size between two": "[workload]\ndmb_kb = { 48 = 1.0 }",
    "too many buffers": "[workload]\ndmbs = 1889",
    "unknown device": '[domain]\ndevice = "nosuch"',
    "negative queue": "[hypervisor]\nqueue_limit = -1",
    "endless share": "[workload]\nblock_kb = { 4 = inf, 8 = 1.0 }",
    "key of two lines": '[machine]\n"a\\nb" = 1',
    "section of two lines": '["a\\nb"]\nx = 1',
    "value of two lines": '"a\\nb" = 1',
    "number of 5000 digits": "[machine]\ncpus = " + 5000 * "9",
    "more operations than 64 bits count": "[machine]\nops = 0x" + 4000 * "f",
    "an address of thousands of digits": "[domain]\nreserved = [[0, 0x" + 4000 * "f" + "]]",
    "hexadecimal number of 5000 digits": "[machine]\ncpus = 0x" + 5000 * "f",
    "arrays 5000 deep": "x = " + 5000 * "[",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_one_line_that_names_file_or_preset(tmp_path, text):
    message = message_of(tmp_path, text)
    assert len(message.splitlines()) == 1
    assert "machine.toml" in message or "unknown preset" in message


def test_what_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "absent.toml", tmp_path / "two\nlines.toml"):
        with pytest.raises(ConfigError, match="cannot read") as error:
            load(path)
        assert len(str(error.value).splitlines()) == 1


def test_a_wrong_flag_is_named():
    with pytest.raises(ConfigError, match=r"machine\.cpus") as error:
        load(overrides=[("machine", "cpus", "a\nb")])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[machine]\ncpus = 0", "machine.cpus"),
        ("[domain]\nfq_size = 100", "domain.fq_size: must be a power of two, as 128"),
        ("[workload]\nblock_kb = { 9999 = 1.0 }", "workload.block_kb: block size 9999 KiB"),
        ("[workload]\ndmb_kb = { 8 = 1.0 }", "workload.dmb_kb: buffer size 8 KiB is not one of 16, 32, 64, 128"),
        ("[workload]\nnosuch = 1", "workload.nosuch: no such key"),
        ("[domain]\nreserved = [[0, 4095], [0]]", "domain.reserved"),
    ],
)
def test_a_message_says_where_in_the_file(tmp_path, text, place):
    assert place in message_of(tmp_path, text)


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError) as error:
        load(preset="nosuch")
    assert all(name in str(error.value) for name in presets())


CONTRADICTIONS = {
    "machine.ops": "[machine]\nops = 5\nseconds = 1.0",
    "hypervisor.servers": '[hypervisor]\nservers = 2\nservice = "inline"',
    "domain.fq_size": '[domain]\ntypes = ["DMA"]\nfq_size = 256',
    "domain.fq_timeout_ms": '[domain]\ntypes = ["s390-lazy"]\nfq_timeout_ms = 10.0',
    "domain.on_overrun": '[domain]\ntypes = ["identity"]\non_overrun = "wait"',
    "domain.aperture_start": "[domain]\naperture_start = 0x3ff00000000\naperture_mb = 4097",
    "domain.dma_bits": "[domain]\ndma_bits = 32",
    "domain.reserved": "[domain]\nreserved = [[8192, 4095]]",
}


@pytest.mark.parametrize(("key", "text"), CONTRADICTIONS.items())
def test_a_contradiction_is_refused(tmp_path, key, text):
    message = message_of(tmp_path, text)
    assert len(message.splitlines()) == 1
    assert key in message


@pytest.mark.parametrize("types", [["DMA-FQ"], ["DMA", "DMA-SQ"]])
def test_queue_options_go_with_any_domain_that_has_a_queue(types):
    config = load(overrides=[("domain", "types", types), ("domain", "fq_size", 512)])
    assert config.domain.fq_size == 512


def test_queue_options_go_with_a_switch_to_a_type_that_has_a_queue(tmp_path):
    text = '[machine]\ntimeline = [{ at_s = 0.5, type = "DMA-FQ" }]\n[domain]\ntypes = ["DMA"]\nfq_size = 512'
    config = load(written(tmp_path, text))
    assert config.domain.fq_size == 512
    assert load(written(tmp_path, config.to_toml())) == config


def test_what_is_switched_is_strict_unless_said_otherwise(tmp_path):
    timeline = '[machine]\ntimeline = [{ at_s = 0.5, type = "DMA-FQ" }]\n'
    assert load(written(tmp_path, timeline)).domain.types == ["DMA"]
    assert load(written(tmp_path, timeline + '[domain]\ntypes = ["identity"]')).domain.types == ["identity"]


@pytest.mark.parametrize(
    ("workload", "device", "expected"),
    [("nvme", None, "pci"), ("ism", None, "ism"), ("ism", "pci", "pci"), ("nvme", "ism", "ism")],
)
def test_the_load_of_an_ism_device_runs_on_one_unless_told_otherwise(workload, device, expected):
    assert load(overrides=[("workload", "name", workload), ("domain", "device", device)]).device == expected


@given(share=st.floats(allow_nan=True, allow_infinity=True))
@example(share=math.inf)
def test_a_share_is_finite_and_not_negative(share):
    values = {"hypervisor": load().hypervisor.model_dump(), "workload": {"block_kb": {4: share, 8: 1.0}}}
    try:
        config = Config.model_validate(values)
    except ValueError:
        assert not (math.isfinite(share) and share >= 0)
    else:
        assert math.isfinite(config.workload.block_kb[4])
        assert config.workload.block_kb[4] >= 0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"cmdq_entries": 8}, "hypervisor.cmdq_entries needs service = cmdq"),
        ({"cmdq_patched": True, "service": "inline"}, "hypervisor.cmdq_patched needs service = cmdq"),
        ({"service": "cmdq", "cmdq_entries": 12}, "must be a power of two, as 16 is"),
        ({"service": "cmdq", "servers": 2}, "contradicts service = cmdq"),
        ({"service": "cmdq", "queue_limit": 2}, "contradicts service = cmdq"),
        ({"service": "cmdq", "cmdq_patched": True, "cmdq_entries": 8}, "cmdq_entries of at least 16"),
    ],
)
def test_a_command_queue_that_cannot_be_is_refused_in_one_line(values, complaint):
    overrides = [("machine", "cpus", 4), *(("hypervisor", key, value) for key, value in values.items())]
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(preset="kvm", overrides=overrides)
    assert "\n" not in str(caught.value)


def test_a_completion_of_a_command_queue_cannot_go_astray():
    with pytest.raises(ConfigError, match="a completion is a word of the queue"):
        load(preset="smmuv3", overrides=[("machine", "faults", ["drop:completion:1/3"])])


@pytest.mark.parametrize("preset", ["kvm", "smmuv3"])
def test_a_description_with_or_without_a_command_queue_can_be_read_again(preset, tmp_path):
    config = load(preset=preset, overrides=[("domain", "depot_magazines", 32)])
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert load(tmp_path / "again.toml") == config


# Several functions.


def test_functions_add_up_to_the_machine(tmp_path):
    text = (
        '[[function]]\ntype = "DMA-FQ"\ncpus = 3\n[[function]]\nname = "B"\ncpus = 2\nworkload = { queue_depth = 7 }\n'
    )
    config = load(written(tmp_path, text), overrides=[("workload", "queue_depth", 9)])
    assert (config.machine.cpus, config.functions) == (5, 2)
    assert [config.function_name(number) for number in range(2)] == ["function 0", "B"]
    assert config.domain.types == ["DMA", "DMA-FQ", "DMA-SQ", "identity"]
    lazy, other = (config.of_function(number) for number in range(2))
    assert (lazy.machine.cpus, lazy.workload.queue_depth, lazy.machine.seed) == (3, 9, config.machine.seed)
    assert (other.machine.cpus, other.workload.queue_depth) == (2, 7)
    assert load(written(tmp_path, config.to_toml())) == config


def test_a_machine_of_one_function_says_nothing_of_functions():
    assert "[[function]]" not in load().to_toml()
    assert "function = " not in load().to_toml()


def test_where_every_function_has_a_type_the_machine_runs_once(tmp_path):
    text = '[[function]]\ntype = "DMA"\n[[function]]\ntype = "DMA-FQ"\n'
    assert load(written(tmp_path, text)).domain.types == ["DMA"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[machine]\ncpus = 3\n[[function]]\n[[function]]\n", "machine.cpus = 3, but [[function]] has 2"),
        ("[machine]\nfunctions = 3\n[[function]]\n[[function]]\n", "machine.functions = 3, but [[function]] has 2"),
        ("[[function]]\ncpus = 0\n", "0 CPUs in all"),
        ("[[function]]\ncpu = 1\n", "function.cpu: no such key"),
        (
            '[[function]]\n[[function]]\ntype = "s390-lazy"\n[domain]\ntypes = ["DMA"]\n',
            "all functions have one of them",
        ),
        ('[domain]\ntypes = ["DMA"]\n[[function]]\nfq_size = 64\n', "need a type with a flush queue"),
        ("[[function]]\nfq_size = 65\n", "must be a power of two"),
        ('[domain]\ntypes = ["DMA-SQ"]\n[[function]]\ntype = "DMA"\n', "every [[function]] has a type of its own"),
        ('[machine]\nfunctions = 2\ntimeline = [{ at_s = 0.1, type = "DMA-FQ" }]\n', "give its function, from 0 to 1"),
        ('[machine]\nfunctions = 2\ntimeline = [{ at_s = 0.1, driver = "unbind" }]\n', "machines of one function"),
        ("[machine]\nfunctions = 17\n", "must be at most 16"),
        ("function = 3\n", "function: must be a list"),
    ],
)
def test_functions_that_make_no_sense_are_refused_in_one_line(tmp_path, text, said):
    message = message_of(tmp_path, text)
    assert said in message
    assert "\n" not in message


def test_what_a_table_says_has_no_option():
    with pytest.raises(ConfigError, match="is said in a machine file"):
        load(overrides=[("function", "cpus", 2)])
