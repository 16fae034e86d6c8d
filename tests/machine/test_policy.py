"""Policies of the user's: asked where the queue decides, on every engine, and caught when they are wrong."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from numba.core import config as numba_config

from emu.config import ConfigError, load
from emu.experiment import MachineError
from emu.iommu.domain import iommu_domain
from emu.iommu.flush_queue import iova_fq_entry
from emu.iommu.policy import flush_at_once, may_free, ring_of, timeout_ns
from emu.machine.context import cpu_t
from emu.machine.layout import Layout
from emu.machine.policy import entry_for, policy_of
from emu.native.atomics import interpreted
from emu.native.compile import compile_entries, entry
from emu.native.record import deref, element
from emu.oracle.findings import VIOLATION_KINDS
from emu.workload.program import Program, Workload, op_t
from tests.machine.machines import run

pytestmark = pytest.mark.interpreted
only_interpreted = pytest.mark.skipif(not interpreted, reason="compiling each takes half a minute; docs/policies.md")
only_compiled = pytest.mark.skipif(interpreted, reason="nothing is compiled")

MINE = """
from typing import Any

from emu.native.record import deref, struct

ring_state = struct(asked="i8")
shared_state = struct(rings="i8", times="i8")


def rings(cpus: int) -> int:
    return 2


def _twice(number: int) -> int:
    return 2 * number


def ring_of(cpu: Any, cookie: Any, iova_pfn: int, pages: int) -> int:
    deref(shared_state, cookie.policy).rings += 1
    return iova_pfn


def timeout_ns(cpu: Any, cookie: Any) -> int:
    state = deref(shared_state, cookie.policy)
    state.times += 1
    return _twice(cookie.fq_timeout_ns) - state.times
"""


@entry
def ask(context: int, number: int) -> int:
    """What is built in, or a policy, answers: ring 0…9, whether to free or to flush at once, and the time."""
    cpu = deref(cpu_t, context)
    domain = deref(iommu_domain, cpu.domain)
    cookie = domain.cookie
    said = ring_of(cpu, cookie, number, 1)
    if flush_at_once(cpu, cookie, number, 1):
        said += 100
    entry_of_ring = element(iova_fq_entry, domain.ring_entries, 0)
    if may_free(cpu, cookie, entry_of_ring, number):
        said += 10
    return said + 1000 * timeout_ns(cpu, cookie)


class Asked:
    """A machine of four CPUs that is never started, of which questions are asked."""

    def __init__(self, policy=None):
        overrides = [("machine", "cpus", 4), ("domain", "types", ["DMA-FQ"]), ("domain", "fq_timeout_ms", 1.0)]
        config = load(overrides=[*overrides, ("domain", "policy", policy and str(policy))])
        self.policy = policy_of(config)
        self.entry = entry_for(self.policy, ask)
        with self.policy.blamed() if self.policy else nullcontext():
            compile_entries([self.entry])
        workload = Workload("asked", [Program(np.zeros(0, op_t), 0)] * 4, 1)
        self.layout = Layout(config, "DMA-FQ", workload, real_time=False, policy=self.policy)
        segment = self.layout.segment
        segment["domain"][0].cookie.fq_rings = segment["domain"][0].percpu_options.rings
        segment["domain"][0].cookie.fq_timeout_ns = 1_000_000

    def ask(self, number, cpu=3):
        return int(self.entry(self.layout.segment.address("contexts", cpu), number))

    def found(self, kind):
        return int(self.layout.segment["findings"]["counts"][:, VIOLATION_KINDS.index(kind)].sum())


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def machines():
    made = []

    def make(policy=None):
        made.append(Asked(policy))
        return made[-1]

    yield make
    for machine in made:
        machine.layout.segment.unlink()


def test_linux_and_two_policies_answer_beside_each_other(machines, mine):
    linux, other, node = machines(), machines(mine), machines("per_node_queues")
    usual = 1_000_000 * 1000
    assert linux.ask(0) == usual + 3
    assert linux.ask(1) == usual + 3 + 10  # stamped 0, and one flush has finished
    assert other.ask(1) == 2 * usual - 1000 + 1 + 10
    assert other.ask(0) == 2 * usual - 2000
    assert node.ask(0) == usual + 0
    assert linux.ask(0) == usual + 3


def test_a_policy_has_as_many_rings_as_it_says_and_memory_of_its_own_for_each(machines, mine):
    segment = machines(mine).layout.segment
    assert len(segment["rings"]) == 2
    addresses = segment["rings"]["policy"]
    assert addresses[1] - addresses[0] == 64
    assert segment["domain"][0].cookie.policy == segment.address("policy_of_all")


def test_a_ring_that_there_is_not_is_a_violation_and_never_written_to(machines, mine):
    other = machines(mine)
    assert other.ask(7) % 10 == 3 % 2
    assert other.ask(-1) % 10 == 3 % 2
    assert other.found("no_such_ring") == 2
    kept = other.layout.segment["findings"][3]["records"][0]
    assert (kept["expected"], kept["found"]) == (2, 7)


def test_a_time_that_cannot_be_is_a_violation(machines, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("def timeout_ns(cpu, cookie):\n    return -5\n")
    wrong = machines(path)
    assert wrong.ask(0) // 1000 == 1_000_000
    assert wrong.found("no_such_timeout") == 1


@only_compiled
def test_what_is_compiled_of_a_policy_is_kept_under_its_text(machines, mine):
    first = machines(mine)
    kept = Path(numba_config.CACHE_DIR) / first.policy.mark
    assert any(path.suffix == ".nbi" for path in kept.rglob("*"))
    mine.write_text(MINE.replace("return 2 * number", "return 3 * number"))
    assert first.ask(0) == 2 * 10**9 - 1000
    edited = machines(mine)
    assert edited.policy.mark != first.policy.mark
    assert edited.ask(0) == 3 * 10**9 - 1000


@only_compiled
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("cpu.no_such_field", "there is no field no_such_field in that record"),
        ("no_such_name", "name 'no_such_name' is not defined"),
        ('"a" + 1', "add(Literal[str](a), Literal[int](1))"),
        ("cookie", "which is no whole number"),
    ],
)
def test_what_cannot_be_compiled_is_said_with_its_line(machines, tmp_path, answer, said):
    path = tmp_path / "wrong.py"
    path.write_text(f"def timeout_ns(cpu, cookie):\n    return {answer}\n")
    with pytest.raises(ConfigError) as error:
        machines(path)
    # numba does not always say more than in which function.
    assert re.match(rf"{re.escape(str(path))}:[12]: timeout_ns cannot be compiled: ", str(error.value))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def rings(cpus):\n    return 0\n", "rings(2) is 0; it must be a whole number from 1 to 4096"),
        ("def rings(cpus):\n    return 1 // 0\n", ":2: ZeroDivisionError"),
        ("from emu.native.record import no_such\n\n\ndef rings(cpus):\n    return 1\n", ":1: ImportError"),
        ("ring_state = 5\n\n\ndef rings(cpus):\n    return 1\n", "ring_state must be a record of 64-bit words"),
    ],
)
def test_a_machine_of_a_wrong_policy_is_not_started(tmp_path, text, said, monkeypatch):
    monkeypatch.setattr("emu.machine.supervisor.compile_machine", lambda *_arguments: None)
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(MachineError) as error:
        run("DMA-FQ", machine_cpus=2, domain_policy=str(path))
    assert said in str(error.value)


SMALL = {"machine_cpus": 3, "machine_ops": 45, "workload_queue_depth": 2, "domain_aperture_mb": 64}
SMALL |= {"domain_iova_ranges": 4096, "domain_fq_size": 8, "domain_on_overrun": "wait"}


@only_interpreted
@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
@pytest.mark.parametrize("policy", ["adaptive_timeout", "batching", "per_node_queues"])
def test_the_examples_run_on_every_engine_and_nothing_is_wrong(policy, engine):
    found = run("DMA-FQ", machine_engine=engine, domain_policy=policy, **SMALL).run
    assert found["violations"] == 0
    assert found["conservation"]["holds"], found["conservation"]
    assert found["policy"]["name"] == policy
    assert found["queue"]["rings"] == (1 if policy == "per_node_queues" else 3)
    if policy == "batching":
        assert found["counters"]["Global RPCITs"] == 0 < found["counters"]["Sync RPCITs"]


@only_interpreted
def test_one_as_linux_is_the_same_to_the_last_digit_on_virtual_clocks():
    usual, asked = (
        run("DMA-FQ", machine_engine="sim", domain_policy=policy, **SMALL).run for policy in (None, "kernel")
    )
    assert usual.pop("policy") is None
    assert asked.pop("policy")["name"] == "kernel"
    assert asked == usual


@only_interpreted
def test_the_oracle_finds_one_that_frees_too_early():
    found = run("DMA-FQ", machine_engine="sim", domain_policy="free_too_early", **SMALL | {"machine_ops": 150}).run
    assert found["violations_by_kind"]["given_back_unflushed"] > 0


@only_interpreted
def test_an_unmap_can_be_strict_and_a_ring_flushed_early(tmp_path):
    path = tmp_path / "mixed.py"
    path.write_text(
        "def flush_at_once(cpu, cookie, iova_pfn, pages):\n    return pages > 1\n\n\n"
        "def flush_before(cpu, cookie, fq, iova_pfn, pages):\n    return fq.tail != fq.head\n"
    )
    found = run("DMA-FQ", machine_engine="sim", domain_policy=str(path), **SMALL).run
    assert found["violations"] == 0
    assert found["conservation"]["holds"], found["conservation"]
    assert found["counters"]["Sync RPCITs"] > 0
    assert found["flushes"]["early"] > 0 == found["flushes"]["full"]
