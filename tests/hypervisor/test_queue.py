"""Requests wait in FIFO order for k servers, which are processes; what they wait for is told apart."""

import os
import signal
import threading
import time
from errno import EIO

import pytest

from emu.hypervisor.rpcit import RPCIT_BUSY, RPCIT_NOT_SERVED
from emu.hypervisor.server import take_request
from emu.hypervisor.state import REQUEST_DONE, REQUEST_IDLE, RPCIT_OK, hypervisor_t, server_t
from emu.iommu import pci_insn
from emu.machine.context import cpu_t
from emu.machine.hypervisor import hypervisor_main
from emu.native.atomics import interpreted
from emu.native.compile import compile_entries, entry
from emu.native.lock import SLOT_MASK, owner_word
from emu.native.record import deref
from tests.hypervisor.harness import counted, entries, served, stopped_machine, valid
from tests.iommu.harness import REFRESH, RPCIT, History, history_call
from tests.native.harness import eventually

MS = 1e6


@entry
def take(context):
    cpu = deref(cpu_t, context)
    return take_request(deref(hypervisor_t, cpu.hypervisor), deref(server_t, cpu.server)) & SLOT_MASK


class Guest:
    """CPUs that trap, each in a thread of its own, and no server until it is asked for."""

    def __init__(self, cpus, servers=1, **hypervisor):
        compile_entries([take, hypervisor_main])
        options = {"service": "process", "servers": servers, **hypervisor}
        self.history = History("DMA", cpus=cpus, aperture_mb=16, hypervisor=options)
        self.layout = self.history.layout
        self.hv = self.history.hypervisor
        self.hv.guest_spins = self.hv.poll_ns = 0
        self.served_order = []
        self._threads = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        control = self.layout.segment["control"][0]
        control.abort = control.timer_retired = 1
        for thread in self._threads:
            thread.join(5)
        self.history.close()
        assert not any(thread.is_alive() for thread in self._threads)

    def _start(self, run):
        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def execute(self, cpu, call=RPCIT):
        """CPU `cpu` executes RPCIT, or REFRESH: as its kernel does, again and again while it is answered busy."""

        def run():
            status = history_call(self.layout.segment.address("contexts", cpu), cpu, call, 1 << 20, 1, 0)
            self.served_order.append((cpu, status))

        self._start(run)

    def trap(self, cpu):
        """CPU `cpu` executes RPCIT; returns when its request is queued."""
        before = int(self.hv.tail)
        self.execute(cpu)
        assert eventually(lambda: self.hv.tail > before)
        time.sleep(0.002)

    def serve(self):
        """Start the servers."""
        self.layout.segment["control"][0].go = 1
        for slot in range(self.layout.first_server, self.layout.supervisor):
            self._start(lambda slot=slot: hypervisor_main(self.layout.segment.address("contexts", slot)))

    def server(self, number):
        return self.layout.segment["servers"][self.layout.first_server + number]


# The queue.


@pytest.mark.interpreted
def test_requests_are_served_in_the_order_in_which_they_came():
    with Guest(4, intercept_ns=10 * MS) as guest:
        for cpu in (2, 0, 3, 1):
            guest.trap(cpu)
        guest.serve()
        assert eventually(lambda: len(guest.served_order) == 4)
        assert guest.served_order == [(2, 0), (0, 0), (3, 0), (1, 0)]


@pytest.mark.interpreted
def test_a_request_is_taken_once_and_an_empty_queue_gives_none():
    with Guest(2) as guest:
        context = guest.layout.segment.address("contexts", guest.layout.first_server)
        assert take(context) == 0
        guest.trap(1)
        assert take(context) == 2
        assert take(context) == 0


@pytest.mark.interpreted
def test_places_in_the_queue_are_used_again_and_again():
    with Guest(1) as guest:
        context = guest.layout.segment.address("contexts", guest.layout.first_server)
        request = guest.layout.segment["requests"][0]
        for _ in range(2 * guest.layout.ring_size + 3):
            guest.trap(0)
            assert take(context) == 1
            assert take(context) == 0
            request.state = REQUEST_DONE


@pytest.mark.interpreted
def test_two_servers_serve_two_requests_at_once():
    with Guest(2, servers=2, intercept_ns=100 * MS) as guest:
        guest.trap(0)
        guest.trap(1)
        guest.serve()
        assert eventually(lambda: len(guest.served_order) == 2)
        servers = [guest.server(0), guest.server(1)]
        assert [int(server.requests) for server in servers] == [1, 1]
        assert max(s.free_at_ns - s.busy_ns for s in servers) < min(s.free_at_ns for s in servers)


@pytest.mark.interpreted
def test_requests_found_waiting_are_counted():
    with Guest(3) as guest:
        for cpu in range(3):
            guest.trap(cpu)
        guest.serve()
        assert eventually(lambda: len(guest.served_order) == 3)
        assert (guest.server(0).total_queued, guest.server(0).max_queued) == (2 + 1 + 0, 2)


@pytest.mark.interpreted
def test_what_is_posted_before_the_machine_retires_is_served():
    with Guest(2) as guest:
        guest.trap(0)
        guest.trap(1)
        guest.layout.segment["control"][0].timer_retired = 1
        guest.serve()
        assert eventually(lambda: len(guest.served_order) == 2)
        assert {status for _, status in guest.served_order} == {0}


@pytest.mark.interpreted
def test_without_a_server_a_cpu_is_released_when_the_machine_is_stopped():
    with Guest(1) as guest:
        guest.trap(0)
        guest.layout.segment["control"][0].abort = 1
        assert eventually(lambda: guest.served_order == [(0, RPCIT_NOT_SERVED)])


# A limit to the queue.


@pytest.mark.interpreted
def test_as_many_wait_as_may_and_another_is_answered_busy_without_being_queued():
    with Guest(4, queue_limit=2) as guest:
        guest.trap(0)
        guest.trap(1)
        guest.execute(2)
        assert eventually(lambda: guest.served_order == [(2, RPCIT_BUSY)])
        assert guest.hv.tail == 2
        assert guest.layout.segment["requests"][2].state == REQUEST_IDLE
        take(guest.layout.segment.address("contexts", guest.layout.first_server))
        guest.trap(2)
        assert guest.hv.tail == 3


@pytest.mark.interpreted
def test_inline_those_who_wait_for_the_lock_are_the_queue():
    with Guest(4, service="inline", queue_limit=2) as guest:
        lock = guest.hv.lock
        lock.val = guest.layout.segment["contexts"][guest.layout.supervisor].owner
        guest.trap(0)
        guest.trap(1)
        guest.execute(2)
        assert eventually(lambda: guest.served_order == [(2, RPCIT_BUSY)])
        lock.val = 0
        assert eventually(lambda: len(guest.served_order) == 3)
        guest.execute(2)
        assert eventually(lambda: guest.served_order[3:] == [(2, RPCIT_OK)])
        assert guest.hv.head == guest.hv.tail == 3


# Inline: CPUs that serve themselves, one at a time.


@pytest.mark.interpreted
def test_inline_those_who_wait_serve_themselves_in_the_order_of_coming():
    with Guest(4, service="inline") as guest:
        guest.hv.lock.val = guest.layout.segment["contexts"][guest.layout.supervisor].owner
        for cpu in (2, 0, 3, 1):
            guest.trap(cpu)
        posted_ns = guest.layout.segment["requests"]["posted_ns"][[2, 0, 3, 1]]
        assert (posted_ns[:-1] < posted_ns[1:]).all()
        guest.hv.lock.val = 0
        assert eventually(lambda: len(guest.served_order) == 4)
        free_ns = guest.layout.segment["servers"]["free_at_ns"][[2, 0, 3, 1]]
        assert (free_ns[:-1] < free_ns[1:]).all()
        assert guest.hv.head == guest.hv.tail == 4


@pytest.mark.interpreted
def test_inline_one_that_died_while_it_waited_is_passed_by_those_behind_it():
    with Guest(3, service="inline") as guest:
        guest.hv.tail = 1
        guest.layout.segment["request_ring"][0] = owner_word(1, 0)
        guest.trap(0)
        guest.trap(2)
        time.sleep(0.02)
        assert guest.served_order == []
        guest.layout.segment["dead_generation"][1] = 1
        assert eventually(lambda: sorted(guest.served_order) == [(0, RPCIT_OK), (2, RPCIT_OK)])


@pytest.mark.interpreted
def test_inline_nobody_waits_any_longer_when_the_machine_is_aborted():
    with Guest(2, service="inline") as guest:
        guest.hv.tail = 1
        guest.layout.segment["request_ring"][0] = owner_word(1, 0)
        guest.trap(0)
        guest.layout.segment["control"][0].abort = 1
        assert eventually(lambda: guest.served_order == [(0, RPCIT_NOT_SERVED)])


@pytest.mark.interpreted
def test_a_guest_answered_busy_tries_again_until_it_is_served():
    with Guest(3, queue_limit=1) as guest:
        retries = guest.layout.segment["contexts"]["ctrs"]["busy_retries"]
        guest.trap(0)
        for cpu in (1, 2):
            guest.execute(cpu, REFRESH)
        assert eventually(lambda: retries[1] > 5 and retries[2] > 5)
        assert retries[0] == 0
        guest.serve()
        assert eventually(lambda: sorted(guest.served_order) == [(0, 0), (1, 0), (2, 0)])
        assert guest.hv.head == guest.hv.tail == 3


@pytest.mark.interpreted
@pytest.mark.skipif(not interpreted, reason="compiled code has no seam to look through")
@pytest.mark.parametrize("service", ["process", "inline"])
def test_between_two_tries_a_microsecond_passes(service, monkeypatch):
    waits_ns = []
    monkeypatch.setattr(pci_insn, "now_ns", lambda _cpu: 5000)
    monkeypatch.setattr(pci_insn, "spend_until", lambda _cpu, deadline_ns: waits_ns.append(deadline_ns - 5000))
    with Guest(1, service=service, queue_limit=1) as guest:
        guest.hv.tail = 1
        guest.execute(0, REFRESH)
        assert eventually(lambda: len(waits_ns) > 3)
        guest.hv.tail = 0
        if service == "process":
            guest.serve()
        assert eventually(lambda: guest.served_order == [(0, 0)])
    assert set(waits_ns) == {1000}


@pytest.mark.interpreted
def test_a_guest_answered_busy_gives_up_when_the_machine_is_aborted():
    with Guest(2, queue_limit=1) as guest:
        guest.trap(0)
        guest.execute(1, REFRESH)
        assert eventually(lambda: guest.layout.segment["contexts"][1].ctrs.busy_retries > 0)
        guest.layout.segment["control"][0].abort = 1
        assert eventually(lambda: sorted(guest.served_order) == [(0, RPCIT_NOT_SERVED), (1, -EIO)])


# Waiting for a server, and waiting for this machine to run it.


@pytest.mark.interpreted
def test_the_second_request_waits_for_the_first_and_the_first_for_nobody():
    with Guest(2, intercept_ns=30 * MS) as guest:
        guest.serve()
        time.sleep(0.05)
        guest.trap(0)
        assert guest.server(0).total_wait_ns == 0
        guest.trap(1)
        assert eventually(lambda: len(guest.served_order) == 2)
        assert 0 < guest.server(0).total_wait_ns < 2 * 30 * MS
        assert guest.server(0).max_wait_ns == guest.server(0).total_wait_ns


def test_one_cpu_never_waits_in_the_emulated_queue():
    with stopped_machine(cpus=1, pairs=300) as (machine, layout):
        assert machine.died is None
        assert served(layout, "requests") == 600
        assert served(layout, "total_wait_ns") == 0
        assert served(layout, "total_schedule_ns") > 0


def test_cpus_wait_for_each_other_where_one_server_is_slow():
    with stopped_machine(cpus=3, pairs=30, hypervisor={"intercept_ns": 1 * MS}) as (_, layout):
        # Of three that want a server all the time, each waits for two others, less what they do besides.
        assert served(layout, "total_wait_ns") > 30 * 2 * MS * 0.5
        assert served(layout, "max_wait_ns") < 40 * MS


def test_a_server_is_busy_for_at_least_what_it_emulates():
    cost = {"intercept_ns": 0.2 * MS, "walk_ns": 1000.0, "change_ns": 1000.0}
    with stopped_machine(cpus=2, pairs=50, hypervisor=cost) as (_, layout):
        # Each pair: one page entered, one taken out.
        assert served(layout, "emulated_ns") == 100 * (200_000 + 1000 + 1000)
        assert served(layout, "busy_ns") >= served(layout, "emulated_ns")


# Processes.


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_any_number_of_servers_serves_everything_exactly_once(servers):
    with stopped_machine(cpus=3, pairs=3000, hypervisor={"servers": servers}) as (machine, layout):
        assert machine.died is None
        assert counted(layout, "unmaps") == 3000
        assert served(layout, "requests") == 6000
        assert served(layout, "changed") == 6000
        hv = layout.segment["hypervisor"][0]
        assert hv.head == hv.tail == 6000


@pytest.mark.parametrize("service", [{"servers": 1}, {"servers": 3}, {"service": "inline"}])
@pytest.mark.parametrize("queue_limit", [1, 2])
def test_with_a_limit_to_the_queue_everything_is_served_exactly_once(service, queue_limit):
    hypervisor = {"intercept_ns": 20_000.0, "queue_limit": queue_limit, **service}
    with stopped_machine(cpus=8, pairs=2000, hypervisor=hypervisor) as (machine, layout):
        assert machine.died is None
        assert counted(layout, "unmaps") == 2000
        assert counted(layout, "busy_retries") > 0
        assert served(layout, "requests") == 4000
        assert layout.segment["servers"]["max_queued"].max() <= queue_limit
        hv = layout.segment["hypervisor"][0]
        assert hv.head == hv.tail == 4000


def test_two_servers_do_in_less_time_what_one_cannot():
    emulated_ns = 60 * 2 * MS
    took_ns = {}
    for servers in (1, 2):
        cost = {"intercept_ns": 2 * MS, "servers": servers}
        with stopped_machine(cpus=2, pairs=30, hypervisor=cost) as (_, layout):
            cpus = layout.segment["contexts"][: layout.cpus]
            took_ns[servers] = int(cpus["stopped_ns"].max() - cpus["started_ns"].min())
            assert served(layout, "emulated_ns") == emulated_ns
    assert took_ns[1] >= emulated_ns
    assert took_ns[2] < emulated_ns


@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ"])
def test_servers_that_work_at_once_keep_one_shadow_table(domain):
    options = {"fq_size": 8, "on_overrun": "wait"}
    with stopped_machine(domain, cpus=4, pairs=20_000, hypervisor={"servers": 3}, **options) as (machine, layout):
        assert machine.died is None
        assert layout.segment["hypervisor"][0].mapped == valid(layout, "shadow")
        guest = layout.segment["domain"][0].s390.pgtable
        assert valid(layout, "guest") == 0
        assert guest.page_tables_used >= 1


def test_at_the_end_of_a_strict_run_both_tables_are_empty():
    with stopped_machine("DMA", cpus=3, pairs=1000, hypervisor={"servers": 2}) as (_, layout):
        assert valid(layout, "guest") == valid(layout, "shadow") == 0
        assert len(entries(layout, "shadow")) > 0


COUNTERS = ["maps", "unmaps", "mapped_pages", "unmapped_pages", "global_rpcits", "sync_map_rpcits", "sync_rpcits"]


@pytest.mark.parametrize(("domain", "options"), [("DMA", {}), ("DMA-SQ", {"fq_size": 64, "fq_timeout_ms": 6e5})])
def test_who_serves_makes_no_difference_to_what_is_counted(domain, options):
    totals = []
    for service in ("inline", "process"):
        hypervisor = {"service": service, "intercept_ns": 100.0}
        with stopped_machine(domain, cpus=1, pairs=500, hypervisor=hypervisor, **options) as (_, layout):
            figures = {name: counted(layout, name) for name in COUNTERS}
            figures |= {name: served(layout, name) for name in ("requests", "walked", "changed", "emulated_ns")}
            totals.append(figures)
    assert totals[0] == totals[1]
    assert totals[0]["requests"] > 500


@pytest.mark.parametrize("queue_limit", [0, 1])
@pytest.mark.parametrize("servers", [1, 2])
def test_a_killed_hypervisor_ends_the_machine_which_says_so(servers, queue_limit):
    killed_at = []

    def kill_the_last_server(machine):
        if not killed_at:
            os.kill(int(machine.members[-1].context.pid), signal.SIGKILL)
            killed_at.append(time.monotonic())

    hypervisor = {"intercept_ns": 0.2 * MS, "servers": servers, "queue_limit": queue_limit}
    with stopped_machine(cpus=2, pairs=10**7, hypervisor=hypervisor, on_beat=kill_the_last_server) as (machine, _):
        assert time.monotonic() - killed_at[0] < 2
        assert machine.died.startswith("hypervisor (pid " if servers == 1 else "hypervisor 1 (pid ")
        assert machine.died.endswith("was killed by SIGKILL")
