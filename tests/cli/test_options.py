"""What is typed becomes the description of the run; what is wrong becomes one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.cli.failure import Failure
from emu.cli.options import MachineOptions, configured, overrides_of, parse_setting, parse_switch


def resolved(machine_file=None, **options):
    own = {name: options.pop(name) for name in ("workload", "seconds", "ops", "seed") if name in options}
    return configured(machine_file, overrides_of(MachineOptions(**options), **own))


def test_options_end_in_the_description():
    config = resolved(
        cpus=8, domain=["DMA-FQ", "DMA"], engine="threads", fq_size=512, fq_timeout=2.5, on_overrun="wait",
        workload="nic", seconds=0.25, seed=7,
    )  # fmt: skip
    assert (config.machine.cpus, config.machine.engine, config.machine.seconds, config.machine.seed) == (
        8,
        "threads",
        0.25,
        7,
    )
    assert config.domain.types == ["DMA-FQ", "DMA"]
    assert (config.domain.fq_size, config.domain.fq_timeout_ms, config.domain.on_overrun) == (512, 2.5, "wait")
    assert config.workload.name == "nic"


def test_options_override_the_file_and_the_file_the_preset(tmp_path):
    file = tmp_path / "machine.toml"
    file.write_text('[machine]\ncpus = 3\nseed = 5\n[hypervisor]\npreset = "lpar"\nwalk_ns = 9.0\n')
    config = resolved(file, cpus=2)
    assert (config.machine.cpus, config.machine.seed, config.hypervisor.walk_ns) == (2, 5, 9.0)
    assert config.hypervisor.preset == "lpar"
    assert not config.hypervisor.shadows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("machine.cpus=4", 4),
        ("hypervisor.walk_ns=2.5", 2.5),
        ("machine.pin=false", False),
        ("hypervisor.service=inline", "inline"),
        ('hypervisor.service="inline"', "inline"),
        ("domain.types=['DMA', 'DMA-SQ']", ["DMA", "DMA-SQ"]),
        ("workload.block_kb={4 = 0.5, 8 = 0.5}", {"4": 0.5, "8": 0.5}),
        ("machine.name = a=b", "a=b"),
    ],
)
def test_settings_are_toml_values_or_bare_words(text, expected):
    assert parse_setting(text)[2] == expected


@pytest.mark.parametrize(
    "text",
    [
        "machine.cpus",
        "cpus=4",
        "=4",
        ".=4",
        "machine.=4",
        "a.b=",
        "a.b=[1",
        "a.b=1\nc = 2",
        "machine.cpus=" + 5000 * "9",
        "machine.cpus=" + 5000 * "[",
    ],
    ids=lambda text: text[:20],
)
def test_settings_of_another_form_are_refused(text):
    with pytest.raises(Failure, match="--set"):
        parse_setting(text)


def test_every_number_can_be_set():
    config = resolved(set_=["hypervisor.intercept_ns=1", "domain.aperture_mb=64", "workload.queue_depth=4"])
    assert (config.hypervisor.intercept_ns, config.domain.aperture_mb, config.workload.queue_depth) == (1, 64, 4)


def test_switches_become_the_timeline():
    config = resolved(switch=["0.5s:DMA-FQ", "750ms:unbind", ".25s:DMA-SQ"])
    assert [(action.at_s, action.type or action.driver) for action in config.machine.timeline] == [
        (0.5, "DMA-FQ"),
        (0.75, "unbind"),
        (0.25, "DMA-SQ"),
    ]
    assert config.domain.types == ["DMA"]


def test_bugs_and_faults_are_off_unless_named():
    config = resolved()
    assert (config.domain.bugs, config.machine.faults) == ([], [])
    config = resolved(bug=["queue-before-type", "init-fq-before-type"], fault=["fq-alloc"])
    assert config.domain.bugs == ["queue-before-type", "init-fq-before-type"]
    assert config.machine.faults == ["fq-alloc"]


def test_setting_the_preset_loads_it():
    assert not resolved(set_=["hypervisor.preset=lpar"]).hypervisor.shadows


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cpus": 0}, "--cpus: "),
        ({"cpus": 5000}, "--cpus: "),
        ({"domain": ["DMA-XQ"]}, "--domain: "),
        ({"domain": ["DMA", "DMA"]}, "--domain: names a domain twice"),
        ({"engine": "gpu"}, "--engine: "),
        ({"fq_size": 100}, "--fq-size: must be a power of two"),
        ({"fq_timeout": 0.0}, "--fq-timeout: "),
        ({"on_overrun": "cry"}, "--on-overrun: "),
        ({"preset": "xen"}, "unknown preset 'xen'; there are"),
        ({"workload": "floppy"}, "--workload: "),
        ({"seconds": -1.0}, "--seconds: "),
        ({"ops": 0}, "--ops: "),
        ({"set_": ["hypervisor.walk_ns=-1"]}, "--set hypervisor.walk_ns: "),
        ({"set_": ["hypervisor.walk_ns=fast"]}, "--set hypervisor.walk_ns: "),
        ({"set_": ["nothing.here=1"]}, "no such key"),
        ({"set_": ["machine.colour=1"]}, "--set machine.colour: no such key"),
        ({"cpus": 2, "set_": ["machine.cpus=3"]}, "--cpus and --set machine.cpus"),
        ({"set_": ["machine.seed=1", "machine.seed=2"]}, "--set machine.seed"),
        ({"ops": 5, "seconds": 1.0}, "--ops and --seconds contradict"),
        ({"domain": ["DMA"], "fq_size": 64}, "needs a domain with a flush queue"),
        ({"switch": ["DMA-FQ"]}, "--switch DMA-FQ: needs the form TIME:TYPE"),
        ({"switch": ["5:DMA-FQ"]}, "needs the form TIME:TYPE"),
        ({"switch": ["5min:DMA-FQ"]}, "needs the form TIME:TYPE"),
        ({"switch": ["-1s:DMA-FQ"]}, "needs the form TIME:TYPE"),
        ({"switch": ["1s:"]}, "needs the form TIME:TYPE"),
        ({"switch": ["1e3s:DMA"]}, "needs the form TIME:TYPE"),
        ({"switch": ["1s:DMA-XQ"]}, "--switch 1s:DMA-XQ: must be DMA, DMA-FQ"),
        ({"switch": ["99999s:DMA-FQ"]}, "machine.timeline.at_s: must be at most 86400"),
        ({"switch": ["1s:DMA-FQ"], "set_": ["machine.timeline=[]"]}, "--switch and --set machine.timeline"),
        ({"bug": ["ant"]}, "--bug: must be 'init-fq-before-type', 'queue-before-type' or 'reuse-unflushed'"),
        ({"fault": ["san-andreas"]}, "--fault: san-andreas: there is no fault 'san-andreas'; there are fq-alloc, kill"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_option(options, said):
    with pytest.raises(Failure) as failure:
        resolved(**options)
    assert said in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_wrong_file_is_blamed_itself(tmp_path):
    file = tmp_path / "machine.toml"
    file.write_text("[machine]\ncpus = 0\n")
    with pytest.raises(Failure, match=r"machine\.toml: machine\.cpus: "):
        resolved(file, seed=3)


def test_a_wrong_option_is_blamed_though_there_is_a_file(tmp_path):
    file = tmp_path / "machine.toml"
    file.write_text("[machine]\nseed = 4\n")
    with pytest.raises(Failure, match=r"^--cpus: "):
        resolved(file, cpus=0)


def test_a_key_of_the_costs_that_is_no_text_is_refused_in_one_line():
    with pytest.raises(Failure) as refused:
        resolved(set_=["costs.\udcf2=1"])
    assert len(str(refused.value).splitlines()) == 1


@given(st.integers(0, 86_399_999), st.sampled_from(["DMA", "DMA-FQ", "DMA-SQ", "identity", "unbind", "bind"]))
@settings(max_examples=40, derandomize=True)
def test_a_switch_is_read_as_it_is_written_in_either_unit(at_ms, what):
    key = "driver" if what in ("unbind", "bind") else "type"
    assert parse_switch(f"{at_ms}ms:{what}") == {"at_s": pytest.approx(at_ms / 1000), key: what}
    assert parse_switch(f"{at_ms / 1000}s:{what}") == {"at_s": at_ms / 1000, key: what}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("replay", "s390x-lazy-nvme", "--set", "machine.functions=2"), "a capture is replayed on one function"),
        (("bench", "--set", "machine.functions=2"), "works on one device"),
        (("run", "--set", "machine.functions=2", "--switch", "0.1s:DMA-FQ"), "give its function"),
        (("run", "--set", "function.cpus=2"), "is said in a machine file"),
    ],
)
def test_what_knows_one_function_only_refuses_several_in_one_line(emu, command, said):
    code, out, err = emu(*command)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
