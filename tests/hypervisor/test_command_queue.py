"""The SMMUv3's command queue: places, owners, what they gather, and waiting for a sync; before and with the patches."""

import pytest

from emu.hypervisor.rpcit import RPCIT_NOT_SERVED
from emu.hypervisor.state import RPCIT_OK
from emu.native.lock import SLOT_BITS
from tests.hypervisor.test_queue import Guest
from tests.native.harness import eventually

pytestmark = pytest.mark.interpreted

TLBI, SYNC = 0x12, 0x46
both = pytest.mark.parametrize("patched", [False, True], ids=["cmpxchg", "patched"])


class Queue(Guest):
    """CPUs that flush by commands, each in a thread of its own, and no hardware until it is asked for."""

    def __init__(self, cpus, entries=16, *, patched=False, **hypervisor):
        super().__init__(cpus, service="cmdq", cmdq_entries=entries, cmdq_patched=patched, **hypervisor)
        self.cmdq = self.layout.segment["cmdq"][0]
        self.cmds = self.layout.segment["cmds"]
        self.ctrs = self.layout.segment["contexts"]["ctrs"]
        self.patched = patched

    @property
    def reserved(self):
        """Up to which position places are reserved."""
        val = int(self.cmdq.val)
        return (val >> 32 if self.patched else val & 0x7FFFFFFF) & (2 * int(self.cmdq.entries) - 1)

    @property
    def known_cons(self):
        return int(self.cmdq.cons) if self.patched else int(self.cmdq.val) >> 32

    @property
    def is_owned(self):
        return (int(self.cmdq.val) >> (16 if self.patched else 31)) & 1 != 0

    def reserve(self, places):
        """What another CPU does that has reserved places and has not written there yet; it is gathered by an owner."""
        self.cmdq.val += (places << 32 | 1 << 16) if self.patched else places

    def have_consumed(self, places, *, known=0):
        """As if so many commands of the first lap had been consumed, of which the software knows `known`."""
        self.cmdq.val = places << 32 if self.patched else known << 32 | places
        self.cmdq.cons = known
        self.cmdq.prod_reg = self.cmdq.cons_reg = self.cmdq.owner_prod = places
        for place in range(places):
            self.layout.segment["valid_map"][place // 8] |= 1 << place % 8

    def have_previous_owner(self):
        """As if an earlier owner had not come to its end."""
        self.cmdq.owner_prod = -1

    def let_previous_owner_end(self):
        self.cmdq.owner_prod = 0


@both
def test_a_flush_is_a_tlbi_and_a_sync_and_returns_when_the_hardware_has_consumed_both(patched):
    with Queue(2, patched=patched) as queue:
        queue.execute(1)
        assert eventually(lambda: queue.cmdq.prod_reg == 2)
        assert queue.cmds["op"][:3].tolist() == [TLBI, SYNC, 0]
        assert queue.cmds["slot"][:2].tolist() == [1, 1]
        assert queue.served_order == []
        assert queue.cmdq.lock == 1
        queue.serve()
        assert eventually(lambda: queue.served_order == [(1, RPCIT_OK)])
        assert (queue.cmdq.cons_reg, queue.known_cons, queue.cmdq.lock) == (2, 2, 0)
        assert not queue.is_owned


@both
def test_places_are_used_again_lap_after_lap(patched):
    with Queue(1, entries=4, patched=patched) as queue:
        queue.serve()
        for count in range(1, 12):
            queue.execute(0)
            assert eventually(lambda count=count: len(queue.served_order) == count)
        assert set(queue.served_order) == {(0, RPCIT_OK)}
        assert queue.cmdq.cons_reg == queue.cmdq.prod_reg == queue.known_cons == 22 % 8


@both
def test_commands_of_one_cpu_stay_together(patched):
    with Queue(5, patched=patched) as queue:
        for cpu in range(5):
            queue.execute(cpu)
        assert eventually(lambda: queue.cmdq.prod_reg == 10)
        assert queue.cmds["op"][:10].tolist() == [TLBI, SYNC] * 5
        slots = queue.cmds["slot"][:10].tolist()
        assert slots[::2] == slots[1::2]
        assert sorted(slots[::2]) == list(range(5))
        queue.serve()
        assert eventually(lambda: len(queue.served_order) == 5)
        # Two that are the last at once do not note it.
        assert queue.cmdq.cons_reg == 10 >= queue.known_cons


@both
def test_an_owner_publishes_what_others_have_reserved_meanwhile(patched):
    with Queue(3, patched=patched) as queue:
        queue.have_previous_owner()
        queue.execute(0)
        assert eventually(lambda: queue.is_owned)
        for cpu in (1, 2):
            queue.execute(cpu)
        assert eventually(lambda: queue.reserved == 6 and int(queue.layout.segment["valid_map"][0]) == 0x3F)
        assert queue.cmdq.prod_reg == 0
        queue.let_previous_owner_end()
        assert eventually(lambda: queue.cmdq.prod_reg == 6)
        assert (queue.cmdq.owner_prod, queue.is_owned, queue.cmdq.lock) == (6, False, 3)
        queue.serve()
        assert eventually(lambda: len(queue.served_order) == 3)


@both
def test_an_owner_waits_until_those_that_it_has_gathered_have_written(patched):
    with Queue(1, patched=patched) as queue:
        queue.have_previous_owner()
        queue.execute(0)
        assert eventually(lambda: queue.is_owned)
        queue.reserve(2)
        queue.let_previous_owner_end()
        assert eventually(lambda: not queue.is_owned)
        assert queue.cmdq.prod_reg == 0
        queue.layout.segment["valid_map"][0] |= 0b1100
        assert eventually(lambda: queue.cmdq.prod_reg == 4)


@both
def test_who_finds_no_room_waits_for_it(patched):
    with Queue(4, entries=16, patched=patched) as queue:
        queue.have_consumed(14)
        for cpu in range(2):
            queue.execute(cpu)
        # One has room; what it waits for keeps the other from moving on.
        assert eventually(lambda: queue.ctrs["cmdq_full"].sum() > 0)
        assert queue.cmdq.prod_reg == 16
        queue.serve()
        assert eventually(lambda: len(queue.served_order) == 2)
        assert queue.cmdq.cons_reg == 18 >= queue.known_cons


@both
def test_room_is_found_by_asking_the_hardware_where_nobody_waits_for_a_sync(patched):
    with Queue(1, entries=4, patched=patched) as queue:
        queue.have_consumed(4)
        queue.serve()
        queue.execute(0)
        assert eventually(lambda: queue.served_order == [(0, RPCIT_OK)])
        assert queue.ctrs["cmdq_full"][0] == 1
        assert queue.known_cons == 6


@both
@pytest.mark.parametrize("where", ["sync", "owner", "room"])
def test_nobody_waits_any_longer_when_the_machine_is_aborted(patched, where):
    with Queue(1, entries=4, patched=patched) as queue:
        if where == "owner":
            queue.have_previous_owner()
        elif where == "room":
            queue.cmdq.val = 4 << 32 if patched else 4
        queue.execute(0)
        waits = {"sync": lambda: queue.cmdq.prod_reg == 2, "owner": lambda: queue.is_owned}
        assert eventually(waits.get(where, lambda: queue.ctrs["cmdq_full"][0] > 2))
        queue.layout.segment["control"][0].abort = 1
        assert eventually(lambda: queue.served_order == [(0, RPCIT_NOT_SERVED)])


def test_an_exchange_that_fails_is_tried_again_with_what_was_found():
    with Queue(8) as queue:
        queue.serve()
        for _ in range(20):
            for cpu in range(8):
                queue.execute(cpu)
        assert eventually(lambda: len(queue.served_order) == 160)
        assert {status for _, status in queue.served_order} == {RPCIT_OK}
        assert queue.ctrs["cmdq_attempts"].sum() >= 160
        assert queue.reserved == queue.cmdq.cons_reg == 2 * 160 % 32


# Hardware that another process takes the place of.


@both
def test_a_sync_that_was_consumed_and_not_written_over_is_so_by_the_successor(patched):
    with Queue(1, patched=patched) as queue:
        queue.execute(0)
        assert eventually(lambda: queue.cmdq.prod_reg == 2)
        # Its predecessor had moved on.
        queue.cmdq.cons_reg = 2
        queue.server(0).serving = 1 << SLOT_BITS | 1
        queue.layout.segment["requests"][0].status = RPCIT_OK
        queue.serve()
        assert eventually(lambda: queue.served_order == [(0, RPCIT_OK)])
        assert queue.server(0).requests == 0


def test_a_tlbi_that_was_being_done_is_done_once_more():
    with Queue(1) as queue:
        queue.execute(0)
        assert eventually(lambda: queue.cmdq.prod_reg == 2)
        queue.server(0).serving = 0 << SLOT_BITS | 1
        queue.serve()
        assert eventually(lambda: queue.served_order == [(0, RPCIT_OK)])
        assert (queue.server(0).served_again, queue.server(0).requests) == (1, 1)
