"""An SMMUv3 as hardware: it consumes the commands of its queue in their order, one at a time.

A TLBI is a flush, and costs what one costs; a CMD_SYNC then says that everything before it has been done, by writing
over itself. What it is about to do is noted in its record, so that another process can go on in its place.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.arm_smmu_v3 import CMDQ_OP_CMD_SYNC, CMDS_OF_A_FLUSH, queue_ent, queue_inc_prod_n, queue_len
from emu.hypervisor.doorbell import has_commands, wait_for_work
from emu.hypervisor.service import end_of_flush, take_flush_up
from emu.hypervisor.state import arm_smmu_cmdq, request_t, server_t, smmu_cmd
from emu.native.atomics import int64_t, read_once, smp_store_release, write_once
from emu.native.compile import slow
from emu.native.lines import write_lines
from emu.native.lock import SLOT_BITS, SLOT_MASK
from emu.native.record import address_of, deref, element
from emu.native.wait import wake_pollers

_CMD_BYTES = smmu_cmd.itemsize


@slow
def _note_queue(hv: Any, server: Any, cmdq: Any) -> None:
    """How many flushes wait behind this one, for those who watch: here nobody takes a place by `tail` and `head`."""
    queued = (queue_len(cmdq, read_once(cmdq, "prod_reg"), cmdq.cons_reg) - 1) // CMDS_OF_A_FLUSH
    hv.head += 1
    write_once(hv, "tail", hv.head + queued)
    server.total_queued += queued
    server.max_queued = max(server.max_queued, queued)


@slow
def _write_msi(cpu: Any, cmd: Any) -> None:
    write_lines(cpu, address_of(cmd, "op"), _CMD_BYTES)
    # Release: the answer is there. Pairs with the acquire in arm_smmu_cmdq_poll_until_msi().
    smp_store_release(cmd, "op", 0)
    wake_pollers(cpu, address_of(cmd, "op"))


@slow
def _consume(cpu: Any, hv: Any, server: Any, cmdq: Any) -> None:
    cons = cmdq.cons_reg
    cmd = queue_ent(cmdq, cons)
    request = element(request_t, hv.requests, cmd.slot)
    following = queue_inc_prod_n(cmdq, cons, 1)
    write_once(server, "serving", cons << SLOT_BITS | (cmd.slot + 1))
    if read_once(cmd, "op") != CMDQ_OP_CMD_SYNC:
        _note_queue(hv, server, cmdq)
        take_flush_up(cpu, hv, request)
        smp_store_release(cmdq, "cons_reg", following)
        return
    end_of_flush(request)
    # Release: commands are read before their places are free. Pairs with the acquire where the queue was full. It is
    # moved first: whoever sees its sync done takes it for consumed.
    smp_store_release(cmdq, "cons_reg", following)
    _write_msi(cpu, cmd)
    write_once(server, "serving", 0)


@slow
def _go_on(cpu: Any, server: Any, cmdq: Any) -> None:
    """A predecessor has died: had it moved on, but not written over the CMD_SYNC yet, that is still to be done.

    A TLBI that it was at work on is still in the queue, and is done once more.
    """
    if server.serving == 0:
        return
    cons = server.serving >> SLOT_BITS
    cmd = queue_ent(cmdq, cons)
    if cmdq.cons_reg == cons:
        server.served_again += 1
    is_there = cmd.place == cons and cmd.slot == (server.serving & SLOT_MASK) - 1
    if cmdq.cons_reg == queue_inc_prod_n(cmdq, cons, 1) and is_there and read_once(cmd, "op") == CMDQ_OP_CMD_SYNC:
        _write_msi(cpu, cmd)
    write_once(server, "serving", 0)


@slow
def consume_commands(cpu: Any, hv: Any) -> None:
    """Consume commands until the machine has stopped; all that were published before that are."""
    server = deref(server_t, cpu.server)
    cmdq = deref(arm_smmu_cmdq, hv.cmdq)
    retired = deref(int64_t, cpu.retired)
    _go_on(cpu, server, cmdq)
    while True:
        last_round = read_once(retired, "value") != 0
        if has_commands(cmdq) and not read_once(hv, "is_dead"):
            _consume(cpu, hv, server, cmdq)
        elif last_round:
            return
        else:
            wait_for_work(cpu, hv)
