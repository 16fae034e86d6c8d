"""A replay takes its defaults from the capture's description, and its counters are held against the kernel's."""

import json
from pathlib import Path

import pytest

from emu.capture.counters import COUNTERS

S390, X86 = "Linux version 6.12.1-s390x (gcc)", "Linux version 6.12.1-amd64 (gcc)"
KERNEL = dict(zip(COUNTERS, (2, 1, 18, 2, 0), strict=True))
"""What the kernel counted for the trace below, had its domain been lazy."""


def trace():
    lines = []
    for number, (cpu, event) in enumerate([(0, "map"), (1, "map"), (2, "unmap")]):
        start = 0x17FFB0000 if number != 1 else 0x17FFB1000
        where = f"iova=0x{start:016x} - 0x{start + 4096:016x}"
        rest = "paddr=0x0000000000001000 size=4096" if event == "map" else "size=4096 unmapped_size=4096"
        lines.append(f"  kw-182  [00{cpu}] d.H2.  25.{number:06d}: {event}: IOMMU: {where} {rest}\n")
    return "".join(lines)


@pytest.fixture
def capture(machine):
    """A capture in the current directory; its description is what the test makes it."""
    Path("run.trace").write_text(trace())
    counted = {"Mapped pages": 2, "Unmapped pages": 1, "Global RPCITs": 0, "Sync Map RPCITs": 2, "Sync RPCITs": 0}
    for domain in ("DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "identity"):
        machine.runs[domain] = {"counters": dict(counted)}

    def describe(kernel_version, domain_type, **counters):
        readings = {"dev": {**KERNEL, **counters}} if "s390x" in kernel_version else {}
        phase = {
            "counters_before": {"dev": dict.fromkeys(COUNTERS, 0)} if readings else {},
            "counters_settled": readings,
            "delta_running_plus_settling": readings,
        }
        description = {"kernel_version": kernel_version, "domain_type": [domain_type], "phases": {"p": phase}}
        Path("run.json").write_text(json.dumps(description))

    return describe


def ran(machine):
    return [(domain, config.hypervisor.preset) for config, domain, _, _ in machine.calls]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ((S390, "DMA"), [("DMA", "kvm")]),
        ((S390, "DMA-FQ"), [("DMA-SQ", "kvm")]),
        ((X86, "DMA"), [("DMA", "bare-metal")]),
        ((X86, "DMA-FQ"), [("DMA-FQ", "bare-metal")]),
        ((S390, "unknown"), [("DMA", "kvm"), ("DMA-SQ", "kvm")]),
    ],
)
def test_the_default_is_what_the_kernel_had(machine, emu, capture, described, expected):
    capture(*described)
    emu("replay", "run.trace")
    assert ran(machine) == expected


def test_the_machine_may_be_said_apart_from_the_release(machine, emu, capture):
    capture("Linux version 6.8.0-45-generic (gcc)", "DMA-FQ")
    description = json.loads(Path("run.json").read_text()) | {"arch": "s390x"}
    Path("run.json").write_text(json.dumps(description))
    emu("replay", "run.trace")
    assert ran(machine) == [("DMA-SQ", "kvm")]


def test_x86_in_caching_mode_must_tell_of_maps_as_well(machine, emu, capture):
    capture(X86, "DMA")
    description = json.loads(Path("run.json").read_text())
    description["dmesg_iommu"] = ["[ 2.4] DMAR: IOMMU batching disallowed due to virtualization"]
    Path("run.json").write_text(json.dumps(description))
    emu("replay", "run.trace")
    assert ran(machine) == [("DMA", "kvm")]


@pytest.mark.usefixtures("capture")
def test_without_a_description_strict_and_single_queue_are_run(machine, emu):
    code, out, _ = emu("replay", "run.trace")
    assert code == 0
    assert ran(machine) == [("DMA", "kvm"), ("DMA-SQ", "kvm")]
    assert "no counters of the kernel" in out


def test_options_override_the_description(machine, emu, capture):
    capture(X86, "DMA")
    emu("replay", "run.trace", "--domain", "s390-lazy", "--preset", "zvm", "--cpus", "2")
    assert ran(machine) == [("s390-lazy", "zvm")]
    assert len(machine.calls[0][2].programs) == 2


@pytest.mark.usefixtures("capture")
def test_as_many_cpus_as_were_recorded(machine, emu):
    emu("replay", "run.trace")
    assert len(machine.calls[0][2].programs) == machine.calls[0][0].machine.cpus == 3


@pytest.mark.usefixtures("capture")
@pytest.mark.parametrize(("options", "real_time"), [((), False), (("--speed", "real"), True)])
def test_speed_is_the_recorded_one_on_request(machine, emu, options, real_time):
    emu("replay", "run.trace", *options)
    assert machine.calls[0][3] is real_time


def test_counters_that_agree_are_fine(emu, capture):
    capture(S390, "DMA-FQ")
    code, out, _ = emu("replay", "run.trace")
    assert code == 0
    table = out[out.index("Kernel 6.12.1") :].splitlines()[1:7]
    rows = {name: line.split()[-3:] for line in table for name in COUNTERS if line.startswith(name)}
    assert rows["Mapped pages"] == ["2", "2", "="]
    assert rows["Global RPCITs"] == ["18", "0", "-18"]
    assert "not comparable" in " ".join(out.split())


@pytest.mark.parametrize("name", ["Mapped pages", "Unmapped pages", "Sync Map RPCITs", "Sync RPCITs"])
def test_a_counter_that_must_agree_and_does_not_is_exit_code_1(machine, emu, capture, name):
    capture(S390, "DMA-FQ")
    machine.runs["DMA-SQ"]["counters"][name] += 7
    code, out, _ = emu("replay", "run.trace")
    assert code == 1
    assert "+7" in out
    assert f"{name} must agree and do not" in " ".join(out.split())


@pytest.fixture
def old_capture(machine):
    """A capture of Linux 6.1 with one map, which the kernel unmapped lazily; the test says what was run."""
    where = "(zpci_refresh_trans+0x0/0x1d8) fn=0x100000000 addr=0x100000000 range=0x1000"
    Path("run.trace").write_text(f"  kw-182  [000] .....  25.000000: rpcit: {where}\n")
    settled = {"dev": {"Mapped pages": 1, "Unmapped pages": 1, "Refresh operations": 1}}
    description = {
        "kernel_version": "Linux version 6.1.0-50-s390x (gcc)",
        "domain_type": ["unknown"],
        "cmdline": "quiet",
        "phases": {"p": {"counters_settled": settled}},
    }
    Path("run.json").write_text(json.dumps(description))
    counted = {"Mapped pages": 1, "Unmapped pages": 1, "Global RPCITs": 0, "Sync Map RPCITs": 1, "Sync RPCITs": 0}
    for domain in ("s390-lazy", "s390-strict"):
        machine.runs[domain] = {"counters": dict(counted)}
    return machine.runs


def rpcits_in_all(out):
    return next(line.split()[-3:] for line in out.splitlines() if line.startswith("RPCITs in all"))


@pytest.mark.usefixtures("old_capture")
def test_before_linux_6_7_the_hypervisors_count_of_rpcits_is_compared(machine, emu):
    code, out, _ = emu("replay", "run.trace")
    assert (code, ran(machine)) == (0, [("s390-lazy", "kvm")])
    assert rpcits_in_all(out) == ["1", "1", "="]
    assert "taken from rpcit probes" in machine.calls[0][2].notes[0]
    assert "not comparable" not in " ".join(out.split())


@pytest.mark.parametrize("kind", ["Global RPCITs", "Sync Map RPCITs", "Sync RPCITs"])
def test_any_rpcit_too_many_is_exit_code_1(old_capture, emu, kind):
    old_capture["s390-lazy"]["counters"][kind] += 2
    code, out, _ = emu("replay", "run.trace")
    assert code == 1
    assert rpcits_in_all(out) == ["1", "3", "+2"]
    assert "RPCITs in all must agree and do not" in " ".join(out.split())


def test_rpcits_of_another_domain_than_the_kernel_had_may_differ(old_capture, emu):
    old_capture["s390-strict"]["counters"]["Sync RPCITs"] = 1
    code, out, _ = emu("replay", "run.trace", "--domain", "s390-strict")
    assert code == 0
    assert rpcits_in_all(out) == ["1", "2", "+1"]


def test_another_domain_than_the_kernel_had_may_differ_in_what_it_flushes(machine, emu, capture):
    capture(S390, "DMA-FQ")
    machine.runs["DMA"]["counters"]["Sync RPCITs"] = 1
    code, out, _ = emu("replay", "run.trace", "--domain", "DMA")
    assert code == 0
    assert "Sync RPCITs need not agree" in " ".join(out.split())


SWITCHED = {"at_s": 0.1, "type": "DMA-SQ", "driver": None, "errno": None, "reason": None, "by": "timeline"}
UNBOUND = SWITCHED | {"type": None, "driver": "unbind"}
REFUSED = SWITCHED | {"errno": "EPERM", "reason": "a driver is bound"}


@pytest.mark.parametrize(
    ("switch", "counter", "expected"),
    [
        (SWITCHED, "Sync RPCITs", 0),
        (SWITCHED, "Mapped pages", 1),
        (UNBOUND, "Mapped pages", 0),
        (REFUSED, "Sync RPCITs", 1),
    ],
)
def test_a_replay_that_is_switched_may_differ_in_what_that_changes(machine, emu, capture, switch, counter, expected):
    capture(S390, "DMA-FQ")
    machine.runs["DMA-SQ"] |= {"switches": [switch], "type_at_end": "DMA-SQ"}
    machine.runs["DMA-SQ"]["counters"][counter] += 7
    assert emu("replay", "run.trace")[0] == expected


def test_a_flawed_capture_may_differ(machine, emu, capture):
    capture(S390, "DMA-FQ")
    Path("run.trace").write_text(trace() + "CPU:0 [LOST 5 EVENTS]\n")
    machine.runs["DMA-SQ"]["counters"]["Mapped pages"] = 1
    assert emu("replay", "run.trace")[0] == 0


def test_an_interrupted_replay_is_not_blamed_for_its_counters(machine, emu, capture):
    capture(S390, "DMA-FQ")
    machine.outcomes["DMA-SQ"] = {"interrupted": True}
    machine.runs["DMA-SQ"]["counters"]["Mapped pages"] = 1
    assert emu("replay", "run.trace")[0] == 130


def test_json_holds_both_sides(emu, capture):
    capture(S390, "DMA-FQ")
    summary = json.loads(emu("replay", "run.trace", "--json")[1])
    assert summary["capture"]["report"]["map_events"] == 2
    assert summary["kernel"]["release"] == "6.12.1-s390x"
    (comparison,) = summary["kernel"]["comparisons"]
    assert comparison["domain"] == "DMA-SQ"
    assert comparison["counters"]["Global RPCITs"] == {"kernel": 18, "emu": 0}
    assert [phase["name"] for phase in comparison["phases"]] == ["p"]


@pytest.mark.usefixtures("capture")
def test_the_capture_is_told_in_counts(emu):
    out = " ".join(emu("replay", "run.trace")[1].split())
    assert "Capture run: 3 lines, 3 CPUs, 2.00 µs, 2 map and 1 unmap events, 2 mappings" in out


def test_a_broken_description_is_one_line(machine, emu, capture):
    capture(S390, "DMA")
    Path("run.json").write_text("{")
    code, out, err = emu("replay", "run.trace")
    assert (code, out) == (2, "")
    assert "run.json" in err
    assert not machine.calls
