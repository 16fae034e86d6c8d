"""How a fault is written: every form is understood, and what makes no sense is one line that says what would."""

import pytest

from emu.config import ConfigError, load
from emu.fault import LOCKS, FaultError, parse_fault


@pytest.mark.parametrize(
    "text",
    [
        "fq-alloc",
        "kill:cpu1@0.3s",
        "kill:cpu*@random",
        "kill:any@20ms",
        "kill:timer@random",
        "kill:hypervisor1@0s",
        *(f"kill:cpu*@holding:{lock}" for lock in LOCKS),
        "stop:timer@0.2s+0.5s",
        "stop:cpu0@0.2s",
        "stop:any@random",
        "stop:hypervisor@random+20ms",
        "stop:cpu*@holding:iova_fq.lock",
        "stop:cpu0@holding:iova_rbtree_lock+20ms",
        "slow:hypervisor×10",
        "slow:hypervisor:10@0.1s+0.2s",
        "jitter:hypervisor:50us",
        "dead:hypervisor@0.3s",
        "dead:hypervisor@0.3s+10ms",
        "drop:completion@0.1s",
        "duplicate:completion:1/1000",
        "reorder:completion:1/3",
        "late:timer:+20ms",
        "early:timer:5ms",
        "disk-full:log",
        "disk-full:log@0.2s",
        "small-event-ring",
        "small-event-ring:64",
    ],
)
def test_every_form_is_understood(text):
    assert parse_fault(text).text == text


def test_what_is_written_is_what_is_meant():
    fault = parse_fault("stop:cpu3@200ms+0.5s")
    assert (fault.kind, fault.role, fault.number, fault.at_s, fault.for_s) == ("stop", "cpu", 3, 0.2, 0.5)
    assert parse_fault("kill:cpu*@holding:iova_fq.lock").holding == "iova_fq.lock"
    fault = parse_fault("stop:cpu*@holding:iova_fq.lock+20ms")
    assert (fault.at_s, fault.holding, fault.for_s) == (None, "iova_fq.lock", 0.02)
    assert parse_fault("slow:hypervisor×10").factor == 10
    assert parse_fault("late:timer:+20ms").time_s == 0.02
    assert parse_fault("drop:completion:1/50").factor == 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quake", "there is no fault 'quake'"),
        ("kill", "kill is done to cpu or timer"),
        ("kill:cpu@1s", "say which CPU"),
        ("kill:cpu1", "say when, as in kill:cpu1@0.3s"),
        ("kill:disk@1s", "not to 'disk'"),
        ("kill:timer1@1s", "there is one timer"),
        ("kill:cpu1@soon", "must be kill:ROLE@TIME"),
        ("kill:cpu1@1s+1s", "must be kill:ROLE@TIME"),
        ("kill:cpu1@holding:breath", "there is no lock 'breath'"),
        ("kill:cpu1@random+1s", "must be kill:ROLE@TIME"),
        ("stop:cpu1@holding:breath+1s", "there is no lock 'breath'"),
        ("stop:cpu1@random+long", "must be stop:ROLE@TIME"),
        ("slow:hypervisor", "must be slow:hypervisor×N"),
        ("slow:timer×3", "slow is done to hypervisor"),
        ("late:timer", "must be late:timer:TIME"),
        ("late:timer:9000s", "is too long"),
        ("drop:completion", "say when"),
        ("drop:completion:2/3", "must be drop:completion:1/N"),
        ("small-event-ring:3", "a power of two"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text, said):
    with pytest.raises(FaultError, match=r"^[^\n]*$") as caught:
        parse_fault(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("kill:cpu0@0.1s", [("machine", "engine", "sim")], "there is no process to kill with engine = sim"),
        ("stop:cpu0@0.1s", [("machine", "engine", "threads")], "there is no process to stop with engine = threads"),
        ("kill:cpu7@0.1s", [("machine", "cpus", 2)], "there are 2 of them"),
        ("kill:hypervisor@0.1s", [("hypervisor", "service", "inline")], "every CPU serves itself"),
        ("drop:completion@0.1s", [("hypervisor", "service", "inline")], "every CPU serves itself"),
        ("kill:cpu0@3s", [("machine", "seconds", 1.0)], "the load ends before that, after 1 s"),
    ],
)
def test_what_cannot_happen_on_a_machine_is_refused(fault, options, said):
    with pytest.raises(ConfigError) as caught:
        load(overrides=[("machine", "faults", [fault]), *options])
    assert said in str(caught.value)


@pytest.mark.parametrize("options", [{"on_death": "continue"}, {"restart": ["hypervisor"]}])
def test_only_processes_can_be_recovered(options):
    with pytest.raises(ConfigError, match="about processes that die"):
        load(overrides=[("machine", "engine", "sim"), *(("machine", *item) for item in options.items())])
