"""Figures of a running machine: right where looks are whole, and harmless where they are not."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.analysis.live import live_figures
from emu.hypervisor.state import REQUEST_POSTED, hypervisor_t, request_t, server_t
from emu.iommu.domain import PERCPU_FQ, S390_LAZY, iommu_domain
from emu.iommu.flush_queue import FLUSH_UNDER_WAY, SINGLE_QUEUE, iova_fq
from emu.machine.context import STOP, UNBOUND, control_t, cpu_t
from emu.machine.look import Look
from emu.native.lock import SLOT_BITS, spinlock_t
from emu.native.timer import TIMER_PENDING
from emu.oracle.findings import VIOLATION_KINDS
from emu.report.live_table import ORDERS, plain_lines, sections

CPUS = 2
PROCESSES = 5
"""Two CPUs, the timer, the hypervisor, the supervisor."""
ABOUT = {
    "pid": 4711,
    "folder": "/runs/a",
    "domain": "DMA-FQ",
    "workload": "nvme",
    "cpus": CPUS,
    "servers": 1,
    "names": ["cpu 0", "cpu 1", "timer", "hypervisor"],
    "seconds": 30.0,
    "config": {"machine": {"engine": "processes"}, "hypervisor": {"preset": "kvm"}},
}
SECOND = 1_000_000_000


def look(at_s=10.0, tick_ns=0.5):
    """A machine that has just begun to run, 10 s ago, and has done nothing."""
    contexts = np.zeros(PROCESSES, cpu_t)
    contexts["started_ns"][:CPUS] = 5 * SECOND
    contexts["started_ticks"][:CPUS] = 1000
    contexts["pid"] = 100 + np.arange(PROCESSES)
    contexts["generation"] = 1
    control = np.zeros(1, control_t)
    control["go"] = 1
    domain = np.zeros(1, iommu_domain)
    domain["type"] = PERCPU_FQ
    rings = np.zeros(CPUS, iova_fq)
    rings["mod_mask"] = 255
    return Look(
        at_ns=5 * SECOND + round(at_s * SECOND),
        at_ticks=1000 + round(at_s * SECOND / tick_ns),
        control=control,
        domain=domain,
        hypervisor=np.zeros(1, hypervisor_t),
        contexts=contexts,
        dead_generation=np.zeros(PROCESSES, np.int64),
        requests=np.zeros(PROCESSES, request_t),
        request_ring=np.zeros(32, np.int64),
        servers=np.zeros(PROCESSES, server_t),
        violations=np.zeros((PROCESSES, len(VIOLATION_KINDS)), np.int64),
        rings=rings,
        oldest_ticks=np.zeros(CPUS, np.int64),
        locks=[("iova_fq.lock", np.zeros(CPUS, spinlock_t)), ("hypervisor lock", np.zeros(1, spinlock_t))],
        slots_waited_for=0,
    )


def states(now):
    return [cpu["state"] for cpu in live_figures(ABOUT, None, now)["cpus"]]


def test_rates_are_of_the_time_between_two_looks():
    before, now = look(10.0), look(12.0)
    before.contexts["ctrs"]["unmaps"][:CPUS] = (100, 1000)
    now.contexts["ctrs"]["unmaps"][:CPUS] = (300, 1050)
    now.contexts["ctrs"]["flushes_full"][1] = 6
    figures = live_figures(ABOUT, before, now)
    assert [cpu["pairs_per_s"] for cpu in figures["cpus"]] == [100.0, 25.0]
    assert (figures["pairs"], figures["pairs_per_s"]) == (1350, 125.0)
    assert figures["flushes"]["full"] == {"count": 6, "count_per_s": 3.0}
    assert (figures["interval_s"], figures["machine"]["running_s"]) == (2.0, 12.0)


def test_the_first_look_has_the_rates_since_the_start():
    now = look(10.0)
    now.contexts["ctrs"]["unmaps"][0] = 500
    assert live_figures(ABOUT, None, now)["pairs_per_s"] == 50.0


def test_counters_that_seem_to_shrink_give_no_negative_rate():
    before, now = look(10.0), look(11.0)
    before.contexts["ctrs"]["unmaps"][0] = before.servers["busy_ns"][3] = 1000
    figures = live_figures(ABOUT, before, now)
    assert figures["pairs_per_s"] == figures["cpus"][0]["pairs_per_s"] == figures["hypervisor"]["utilisation"] == 0


def test_the_hypervisor_is_busy_for_its_share_of_the_time():
    before, now = look(10.0), look(11.0)
    now.servers["requests"][3], now.servers["busy_ns"][3] = 5000, SECOND // 4
    now.servers["total_wait_ns"][3] = SECOND // 2
    now.hypervisor["head"], now.hypervisor["tail"] = 7, 9
    found = live_figures(ABOUT, before, now)["hypervisor"]
    assert (found["utilisation"], found["requests_per_s"], found["queue"]) == (0.25, 5000, 2)
    assert (found["mean_service_ns"], found["mean_wait_ns"]) == (50_000, 100_000)


def test_a_long_request_that_ends_now_makes_nobody_more_than_busy():
    now = look(11.0)
    now.servers["busy_ns"][3] = 3 * SECOND
    assert live_figures(ABOUT, look(10.0), now)["hypervisor"]["utilisation"] == 1.0


def test_ticks_are_measured_by_what_the_cpus_noted_when_they_began():
    now = look(10.0, tick_ns=0.25)
    now.locks[0][1]["acquisitions"] = 1
    now.locks[0][1]["total_wait"] = (4_000_000, 0)
    assert live_figures(ABOUT, None, now)["locks"][0]["total_wait_ns"] == pytest.approx(1_000_000)


def test_locks_stand_in_the_order_of_what_was_waited_for_them():
    now = look()
    for (_, records), wait in zip(now.locks, (4, 9), strict=True):
        records["acquisitions"], records["total_wait"] = 1, wait
    assert [lock["name"] for lock in live_figures(ABOUT, None, now)["locks"]] == ["hypervisor lock", "iova_fq.lock"]


def test_a_ring_wraps_round_and_has_an_oldest_entry():
    now = look(10.0, tick_ns=0.5)
    now.rings["head"], now.rings["tail"] = (250, 0), (4, 0)
    now.oldest_ticks[0] = now.at_ticks - 2_000_000
    rings = live_figures(ABOUT, None, now)["queue"]["rings"]
    assert [(ring["entries"], ring["size"]) for ring in rings] == [(10, 255), (0, 255)]
    assert rings[0]["oldest_ns"] == pytest.approx(1_000_000)
    assert rings[1]["oldest_ns"] is None
    assert live_figures(ABOUT, None, now)["exposure"]["open"] == 10


def test_the_timer_says_when_it_is_due():
    now = look()
    now.domain["cookie"]["fq_timer"]["due_ns"] = now.at_ns + 3_000_000
    assert live_figures(ABOUT, None, now)["queue"]["timer_due_in_ns"] is None
    now.domain["cookie"]["fq_timer"]["state"] = TIMER_PENDING
    assert live_figures(ABOUT, None, now)["queue"]["timer_due_in_ns"] == 3_000_000


def test_the_old_lazy_scheme_fills_its_addresses():
    now = look()
    now.domain["type"] = S390_LAZY
    now.domain["zdev"]["iommu_pages"], now.domain["zdev"]["next_bit"], now.domain["zdev"]["lazy_iovas"] = 400, 100, 33
    (ring,) = live_figures(ABOUT, None, now)["queue"]["rings"]
    assert (ring["entries"], ring["fill"]) == (33, 0.25)


def test_a_switch_between_two_looks_changes_the_number_of_rings():
    before, now = look(10.0), look(11.0)
    single = replace(now, rings=now.rings[:1], oldest_ticks=now.oldest_ticks[:1])
    single.domain["cookie"]["qt"] = SINGLE_QUEUE
    assert [ring["name"] for ring in live_figures(ABOUT, before, single)["queue"]["rings"]] == ["single"]
    strict = replace(now, rings=now.rings[:0], oldest_ticks=now.oldest_ticks[:0])
    assert live_figures(ABOUT, single, strict)["queue"] is None


def test_what_a_cpu_does_is_told_by_its_records():
    now = look()
    assert states(now) == ["running", "running"]
    now.contexts["flush_step"][0] = FLUSH_UNDER_WAY
    assert states(now) == ["flushing", "running"]
    now.requests["state"][0] = REQUEST_POSTED
    assert states(now) == ["queued", "running"]
    assert live_figures(ABOUT, None, now)["cpus"][0]["in_flush"]
    now.servers["serving"][3] = 12 << SLOT_BITS | 1
    assert states(now) == ["served", "running"]
    now.contexts["finished"][0] = 1
    assert states(now) == ["finished", "running"]


def test_served_inline_is_who_holds_the_hypervisors_lock_and_queued_who_has_a_ticket():
    now = look()
    now.hypervisor["is_inline"] = 1
    now.hypervisor["head"], now.hypervisor["tail"] = 40, 41
    now.request_ring[40 & 31] = 40 << SLOT_BITS | 2
    now.hypervisor["lock"]["val"] = 1 << SLOT_BITS | 1
    assert states(now) == ["served", "queued"]


def test_a_dead_cpu_is_dead_and_its_successor_is_not():
    now = look()
    now.dead_generation[1] = 1
    assert states(now) == ["running", "dead"]
    now.contexts["generation"][1] = 2
    assert states(now) == ["running", "running"]


def test_cpus_rest_once_they_have_seen_that_the_driver_is_unbound():
    now = look()
    now.control["stop"], now.control["unbinds"] = UNBOUND, 3
    now.contexts["rests"][:CPUS] = (2, 3)
    assert states(now) == ["running", "resting"]
    assert live_figures(ABOUT, None, now)["machine"]["state"] == "unbound"


def test_a_machine_starts_runs_stops_and_has_finished():
    now = look()

    def state():
        return live_figures(ABOUT, None, now)["machine"]["state"]

    assert state() == "running"
    now.control["stop"] = STOP
    assert state() == "stopping"
    now.contexts["finished"] = 1
    assert state() == "finished"
    now.control["go"] = now.contexts["finished"] = 0
    assert state() == "starting"


def test_a_machine_that_has_not_begun_has_figures_too():
    now = look()
    now.contexts[:] = np.zeros(1, cpu_t)
    figures = live_figures(ABOUT, None, now)
    assert figures["machine"]["running_s"] == figures["pairs_per_s"] == 0
    assert [cpu["state"] for cpu in figures["cpus"]] == ["starting", "starting"]


def test_violations_of_every_kind_count():
    now = look()
    now.violations[2, 1] = 4
    now.contexts["ctrs"]["queued_while_strict"][0] = 2
    now.servers["not_served"][3] = 1
    assert live_figures(ABOUT, None, now)["violations"] == 7


def torn(seed):
    """A look in which every byte may be anything."""
    chance = np.random.default_rng(seed)

    def of(array):
        noise = np.frombuffer(chance.bytes(array.nbytes), array.dtype).reshape(array.shape).copy()
        return noise if chance.random() < 0.7 else array

    whole = look(float(chance.integers(0, 100)))
    values = {field.name: getattr(whole, field.name) for field in fields(whole)}
    arrays = {name: of(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(whole, **arrays, locks=[(name, of(records)) for name, records in whole.locks])


def numbers(value):
    if isinstance(value, dict):
        for name, part in value.items():
            if name != "timer_due_in_ns":
                yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 1 << 32))
def test_nothing_that_is_half_written_makes_it_fail(first, second):
    for before in (None, torn(first)):
        with np.errstate(all="ignore"):
            figures = live_figures(ABOUT, before, torn(second))
        json.dumps(figures)
        for order in ORDERS:
            sections(figures, order)
        assert list(plain_lines(figures))
        rates = [value for name, value in figures.items() if name.endswith("_per_s")]
        rates += [cpu["pairs_per_s"] for cpu in figures["cpus"]]
        rates += [rate for flush in figures["flushes"].values() for rate in [flush["count_per_s"]]]
        assert min(rates) >= 0


def test_figures_of_a_whole_look_are_never_negative():
    assert min(numbers(live_figures(ABOUT, look(10.0), look(11.0)))) >= 0
