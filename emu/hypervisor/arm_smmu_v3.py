"""The command queue of an SMMUv3, as its driver fills it (drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c).

All CPUs share one ring of commands, and no lock stands before it. A CPU reserves places by compare-and-exchange on one
64-bit word, which holds how far commands have been reserved (`prod`) and how far they have been consumed, as far as is
known (`cons`). It writes its commands there and marks them valid. Whoever found the queue without an owner is the owner
of all that is reserved until it looks again: it waits until that is valid too and tells the hardware. A flush is two
commands, a TLBI and a CMD_SYNC, and its CPU polls the CMD_SYNC until the hardware has written over it. Meanwhile it
holds the queue's lock as a reader, and the last reader updates `cons`; as in the kernel, two at once do not.

A series of patches that was never merged ("iommu/arm-smmu-v3: Improve cmdq lock efficiency", v2, August 2020, mail
1598018062-175608-1) reserves by an addition instead, which cannot fail, and looks for room afterwards; an owner is told
by a count in the same word, and holds the lock for those whom it has gathered. `is_patched` chooses it. So that no
place is reserved twice, all CPUs together must not be able to reserve more than the queue has.

What is awaited is waited for awake, as in the kernel; every wait also ends when the machine is being stopped, and then
the request is not served.
"""

from __future__ import annotations

from typing import Any

from emu.hypervisor.doorbell import ring_doorbell
from emu.hypervisor.state import (
    REQUEST_IDLE,
    REQUEST_POSTED,
    RPCIT_NOT_SERVED,
    arm_smmu_cmdq,
    smmu_cmd,
)
from emu.native.atomics import (
    cmpxchg,
    fetch_add,
    fetch_and,
    fetch_xor,
    read_once,
    smp_load_acquire,
    smp_store_release,
    write_once,
)
from emu.native.bitmap import WORD_BITS, word_t
from emu.native.compile import inline, slow
from emu.native.cost import COST_REQUEST
from emu.native.lines import take_line, write_lines
from emu.native.record import address_of, deref, element
from emu.native.time import charge, yield_core
from emu.native.wait import is_aborted, poll, wake_pollers

CMDQ_OP_CMD_SYNC = 0x46
CMDQ_OP_TLBI = 0x12
"""CMDQ_OP_TLBI_NH_VA, and where everything is flushed CMDQ_OP_TLBI_NH_ASID: the hardware finds in the request which."""

CMDS_OF_A_FLUSH = 2

CMDQ_PROD_OWNED_FLAG = 1 << 31
_CONS_SHIFT = 32
_HALF = (1 << 32) - 1
_EXCLUSIVE = -(1 << 31)

_PROD_SHIFT = 32
_COUNT_SHIFT = 16
_QUARTER = (1 << 16) - 1
"""Patched: `prod` is the word's upper half; below it is how many are gathered, and how many of them wait for a sync."""

_CMD_BYTES = smmu_cmd.itemsize
_WORD_BYTES = word_t.itemsize


# --- the ring -------------------------------------------------------------------------------------------------------


@inline
def q_idx(cmdq: Any, prod: int) -> int:
    """Which entry a position is (Q_IDX); the bit above says in which lap (Q_WRP)."""
    return prod & (cmdq.entries - 1)


@inline
def queue_inc_prod_n(cmdq: Any, prod: int, n: int) -> int:
    """The position n further."""
    return (prod + n) & (2 * cmdq.entries - 1)


@inline
def queue_ent(cmdq: Any, prod: int) -> Any:
    """The command at a position."""
    return element(smmu_cmd, cmdq.cmds, q_idx(cmdq, prod))


@inline
def queue_len(cmdq: Any, prod: int, cons: int) -> int:
    """Commands from `cons` to `prod`; more than there are entries where `prod` has gone past it, as patched it may."""
    return (prod - cons) & (2 * cmdq.entries - 1)


@inline
def queue_has_space(cmdq: Any, prod: int, cons: int, n: int) -> bool:
    """Whether n commands can be written at `prod`."""
    return queue_len(cmdq, prod, cons) + n <= cmdq.entries


# --- the lock: readers wait for a CMD_SYNC, a writer updates what is known of the hardware's cons -------------------


@slow
def _shared_lock(cpu: Any, cmdq: Any, count: int) -> None:
    """Take the lock as so many readers; a writer does nothing long."""
    take_line(cpu, address_of(cmdq, "lock"))
    if fetch_add(cmdq, "lock", count) >= 0:
        return
    looks = 0
    while not is_aborted(cpu):
        take_line(cpu, address_of(cmdq, "lock"))
        held = read_once(cmdq, "lock")
        if held >= 0 and cmpxchg(cmdq, "lock", held, held + count) == held:
            return
        looks += 1
        if held < 0:
            poll(cpu, address_of(cmdq, "lock"), looks)


@slow
def _shared_unlock(cpu: Any, cmdq: Any) -> None:
    take_line(cpu, address_of(cmdq, "lock"))
    # Full barrier: what the sync has brought is used before; pairs with the exchange in _exclusive_trylock().
    fetch_add(cmdq, "lock", -1)


@slow
def _exclusive_trylock(cpu: Any, cmdq: Any) -> bool:
    take_line(cpu, address_of(cmdq, "lock"))
    return bool(cmpxchg(cmdq, "lock", 0, _EXCLUSIVE) == 0)


@slow
def _exclusive_unlock(cpu: Any, cmdq: Any) -> None:
    take_line(cpu, address_of(cmdq, "lock"))
    # Release: pairs with the exchange of readers that wait. Those that have counted themselves do so again.
    smp_store_release(cmdq, "lock", 0)
    wake_pollers(cpu, address_of(cmdq, "lock"))


# --- what is known of the hardware's cons ---------------------------------------------------------------------------


@inline
def _known_cons(cmdq: Any) -> int:
    """The software's copy: in the word by which places are reserved, or patched in one of its own."""
    return read_once(cmdq, "cons") if cmdq.is_patched else read_once(cmdq, "val") >> _CONS_SHIFT


@inline
def _place_of_cons(cmdq: Any) -> int:
    return address_of(cmdq, "cons") if cmdq.is_patched else address_of(cmdq, "val")


@slow
def _update_cons(cpu: Any, cmdq: Any, cons: int) -> None:
    """Note how far commands have been consumed; only the last reader does so, or the writer."""
    take_line(cpu, _place_of_cons(cmdq))
    if cmdq.is_patched:
        write_once(cmdq, "cons", cons)
    else:
        # Nobody else writes this half, so it is exchanged by an addition that leaves the other alone.
        fetch_add(cmdq, "val", (cons - _known_cons(cmdq)) << _CONS_SHIFT)
    wake_pollers(cpu, _place_of_cons(cmdq))


@slow
def arm_smmu_cmdq_poll_until_not_full(cpu: Any, cmdq: Any, prod: int, n: int, looks: int) -> None:
    """Look at the hardware's own cons, or where others wait for a sync let them do so; once, and not for long."""
    cpu.ctrs.cmdq_full += 1
    if _exclusive_trylock(cpu, cmdq):
        # Acquire: pairs with the release by which the hardware moves on; what it has consumed may be written over.
        _update_cons(cpu, cmdq, smp_load_acquire(cmdq, "cons_reg"))
        _exclusive_unlock(cpu, cmdq)
        # To ask the hardware takes its time, and who has reserved what is in the way may need this core.
        yield_core(cpu)
        return
    take_line(cpu, _place_of_cons(cmdq))
    if not queue_has_space(cmdq, prod, _known_cons(cmdq), n):
        poll(cpu, _place_of_cons(cmdq), looks)


# --- reserving places -----------------------------------------------------------------------------------------------

_ABORTED = -1


@slow
def _reserve_by_cmpxchg(cpu: Any, cmdq: Any, n: int) -> int:
    """Reserve n places. Returns the first position << 1 | whether the queue had no owner, or -1 when all is stopped."""
    take_line(cpu, address_of(cmdq, "val"))
    val = read_once(cmdq, "val")
    looks = 0
    while not is_aborted(cpu):
        prod, cons = val & (CMDQ_PROD_OWNED_FLAG - 1), val >> _CONS_SHIFT
        if not queue_has_space(cmdq, prod, cons, n):
            looks += 1
            arm_smmu_cmdq_poll_until_not_full(cpu, cmdq, prod, n, looks)
            take_line(cpu, address_of(cmdq, "val"))
            val = read_once(cmdq, "val")
            continue
        head = cons << _CONS_SHIFT | queue_inc_prod_n(cmdq, prod, n) | CMDQ_PROD_OWNED_FLAG
        take_line(cpu, address_of(cmdq, "val"))
        cpu.ctrs.cmdq_attempts += 1
        found = cmpxchg(cmdq, "val", val, head)
        if found == val:
            return prod << 1 | ((val & CMDQ_PROD_OWNED_FLAG) == 0)
        val = found
    return _ABORTED


@slow
def _reserve_by_addition(cpu: Any, cmdq: Any, n: int) -> int:
    """The same, patched: the places are one's own at once, but there may be no room in them yet."""
    take_line(cpu, address_of(cmdq, "val"))
    cpu.ctrs.cmdq_attempts += 1
    before = fetch_add(cmdq, "val", n << _PROD_SHIFT | 1 << _COUNT_SHIFT | 1)
    prod = before >> _PROD_SHIFT & (2 * cmdq.entries - 1)
    is_owner = before >> _COUNT_SHIFT & _QUARTER == 0
    looks = 0
    take_line(cpu, address_of(cmdq, "cons"))
    while not queue_has_space(cmdq, prod, _known_cons(cmdq), n):
        if is_aborted(cpu):
            return _ABORTED
        looks += 1
        arm_smmu_cmdq_poll_until_not_full(cpu, cmdq, prod, n, looks)
        take_line(cpu, address_of(cmdq, "cons"))
    return prod << 1 | is_owner


# --- which commands are valid ---------------------------------------------------------------------------------------


@inline
def _run_in_word(cmdq: Any, prod: int, end: int) -> int:
    """How many of the places from `prod` to `end` have their bits in one word."""
    idx = q_idx(cmdq, prod)
    return min(WORD_BITS - idx % WORD_BITS, cmdq.entries - idx, queue_len(cmdq, end, prod))


@inline
def _bits(cmdq: Any, prod: int, run: int) -> int:
    return ((1 << run) - 1) << q_idx(cmdq, prod) % WORD_BITS


@inline
def _word_of(cmdq: Any, prod: int) -> int:
    return cmdq.valid_map + q_idx(cmdq, prod) // WORD_BITS * _WORD_BYTES


@slow
def arm_smmu_cmdq_set_valid_map(cpu: Any, cmdq: Any, prod: int, end: int) -> None:
    """Say that the commands from `prod` to `end` are there. A bit says so by being the inverse of its lap's bit."""
    while prod != end:
        run = _run_in_word(cmdq, prod, end)
        word = _word_of(cmdq, prod)
        take_line(cpu, word)
        # Full barrier: commands are written before. Pairs with the acquire in arm_smmu_cmdq_poll_valid_map().
        fetch_xor(deref(word_t, word), "bits", _bits(cmdq, prod, run))
        wake_pollers(cpu, word)
        prod = queue_inc_prod_n(cmdq, prod, run)


@slow
def arm_smmu_cmdq_poll_valid_map(cpu: Any, cmdq: Any, prod: int, end: int) -> bool:
    """Wait until the commands from `prod` to `end` are there; False when all is stopped before."""
    looks = 0
    while prod != end:
        run = _run_in_word(cmdq, prod, end)
        bits = _bits(cmdq, prod, run)
        word = _word_of(cmdq, prod)
        take_line(cpu, word)
        # Acquire: the commands are seen by the hardware that is told of them. Pairs with the exclusive or above.
        if smp_load_acquire(deref(word_t, word), "bits") & bits == (0 if prod & cmdq.entries else bits):
            prod = queue_inc_prod_n(cmdq, prod, run)
        elif is_aborted(cpu):
            return False
        else:
            looks += 1
            poll(cpu, word, looks)
    return True


# --- the owner ------------------------------------------------------------------------------------------------------


@slow
def _wait_for_previous_owner(cpu: Any, cmdq: Any, prod: int) -> bool:
    looks = 0
    while True:
        take_line(cpu, address_of(cmdq, "owner_prod"))
        # Acquire: pairs with the release in _publish(), so that the hardware's prod never goes back.
        if smp_load_acquire(cmdq, "owner_prod") == prod:
            return True
        if is_aborted(cpu):
            return False
        looks += 1
        poll(cpu, address_of(cmdq, "owner_prod"), looks)


@slow
def _stop_gathering(cpu: Any, cmdq: Any) -> int:
    """Leave the queue without an owner. Returns up to where all is this one's << 32 | how many wait for a sync."""
    take_line(cpu, address_of(cmdq, "val"))
    if cmdq.is_patched:
        before = fetch_and(cmdq, "val", (2 * cmdq.entries - 1) << _PROD_SHIFT)
        return (before >> _PROD_SHIFT & (2 * cmdq.entries - 1)) << 32 | (before & _QUARTER)
    before = fetch_and(cmdq, "val", ~CMDQ_PROD_OWNED_FLAG)
    # Those who were gathered hold the lock already.
    return (before & (CMDQ_PROD_OWNED_FLAG - 1)) << 32


@slow
def _publish(cpu: Any, hv: Any, cmdq: Any, prod: int) -> None:
    """Tell the hardware how far commands are there, and the next owner that it may."""
    # Release: pairs with the acquire by which the hardware reads it.
    smp_store_release(cmdq, "prod_reg", prod)
    ring_doorbell(cpu, hv)
    take_line(cpu, address_of(cmdq, "owner_prod"))
    # Release: the hardware has been told before. Pairs with the acquire in _wait_for_previous_owner().
    smp_store_release(cmdq, "owner_prod", prod)
    wake_pollers(cpu, address_of(cmdq, "owner_prod"))


@slow
def _act_as_owner(cpu: Any, hv: Any, cmdq: Any, prod: int) -> bool:
    """Publish all that has been reserved since `prod`; False when all is stopped before."""
    if not _wait_for_previous_owner(cpu, cmdq, prod):
        return False
    gathered = _stop_gathering(cpu, cmdq)
    if not arm_smmu_cmdq_poll_valid_map(cpu, cmdq, prod, gathered >> 32):
        return False
    if cmdq.is_patched:
        # For all of them: were each to do so for itself, one might keep another from the room that it waits for.
        _shared_lock(cpu, cmdq, gathered & _HALF)
    _publish(cpu, hv, cmdq, gathered >> 32)
    return True


# --- a flush --------------------------------------------------------------------------------------------------------


@slow
def _write_flush(cpu: Any, cmdq: Any, prod: int) -> None:
    """Write a TLBI, and a CMD_SYNC that the hardware is to write over when it is there."""
    for i in range(CMDS_OF_A_FLUSH):
        at = queue_inc_prod_n(cmdq, prod, i)
        cmd = queue_ent(cmdq, at)
        write_lines(cpu, address_of(cmd, "op"), _CMD_BYTES)
        cmd.slot = cpu.slot
        cmd.place = at
        write_once(cmd, "op", CMDQ_OP_TLBI if i == 0 else CMDQ_OP_CMD_SYNC)


@slow
def arm_smmu_cmdq_poll_until_msi(cpu: Any, cmdq: Any, prod: int) -> bool:
    """Wait until the CMD_SYNC at `prod` has been written over; False when all is stopped before."""
    cmd = queue_ent(cmdq, prod)
    looks = 0
    while True:
        take_line(cpu, address_of(cmd, "op"))
        # Acquire: pairs with the release by which the hardware writes it, once all before it has been done.
        if smp_load_acquire(cmd, "op") == 0:
            return True
        if is_aborted(cpu):
            return False
        looks += 1
        poll(cpu, address_of(cmd, "op"), looks)


@slow
def _let_lock_go(cpu: Any, cmdq: Any, prod: int) -> None:
    """A reader less; the last one says how far commands have been consumed, at least up to `prod`."""
    take_line(cpu, address_of(cmdq, "lock"))
    if read_once(cmdq, "lock") == 1:
        _update_cons(cpu, cmdq, prod)
    _shared_unlock(cpu, cmdq)


@slow
def arm_smmu_cmdq_issue_cmdlist(cpu: Any, hv: Any) -> bool:
    """Have the hardware do this CPU's request, and wait until it has; False when all is stopped before."""
    cmdq = deref(arm_smmu_cmdq, hv.cmdq)
    if cmdq.is_patched:
        reserved = _reserve_by_addition(cpu, cmdq, CMDS_OF_A_FLUSH)
    else:
        reserved = _reserve_by_cmpxchg(cpu, cmdq, CMDS_OF_A_FLUSH)
    if reserved == _ABORTED:
        return False
    prod = reserved >> 1
    end = queue_inc_prod_n(cmdq, prod, CMDS_OF_A_FLUSH)
    _write_flush(cpu, cmdq, prod)
    if not cmdq.is_patched:
        # Before the commands are valid: the queue cannot wrap twice while this CPU waits for its sync.
        _shared_lock(cpu, cmdq, 1)
    arm_smmu_cmdq_set_valid_map(cpu, cmdq, prod, end)
    if reserved & 1 and not _act_as_owner(cpu, hv, cmdq, prod):
        return False
    if not arm_smmu_cmdq_poll_until_msi(cpu, cmdq, queue_inc_prod_n(cmdq, prod, 1)):
        return False
    _let_lock_go(cpu, cmdq, end)
    return True


@slow
def flush_by_commands(cpu: Any, hv: Any, request: Any) -> int:
    """Have a request served by way of the command queue.

    Returns:
        An answer, RPCIT_*; RPCIT_NOT_SERVED when the machine stops.
    """
    charge(cpu, COST_REQUEST, 1)
    # Whether this process was in the queue, should it die: what it has reserved nobody else can fill.
    write_once(request, "state", REQUEST_POSTED)
    done = arm_smmu_cmdq_issue_cmdlist(cpu, hv)
    write_once(request, "state", REQUEST_IDLE)
    return request.status if done else RPCIT_NOT_SERVED
