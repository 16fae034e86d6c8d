"""The hypervisor's records: its cost model, the request queue, what each server did."""

from __future__ import annotations

from emu.iommu.io_pgtable import io_pgtable, table_spares
from emu.native.lock import spinlock_t
from emu.native.record import struct

REQUEST_IDLE, REQUEST_POSTED, REQUEST_DONE = 0, 1, 2
REQUEST_WAITERS = 4
NO_TICKET = -1
"""`request_t.ticket` of a request that has no place in the queue yet."""

ZPCI_CC_OK, ZPCI_CC_ERR, ZPCI_CC_BUSY, ZPCI_CC_INVAL_HANDLE = range(4)
"""Condition codes of PCI instructions."""
CC_SHIFT = 8

RPCIT_OK = ZPCI_CC_OK << CC_SHIFT
RPCIT_FUNC_IN_ERR = ZPCI_CC_ERR << CC_SHIFT | 8
RPCIT_INSUFFICIENT_RESOURCES = ZPCI_CC_ERR << CC_SHIFT | 16
RPCIT_ERROR_RECOVER = ZPCI_CC_ERR << CC_SHIFT | 40
RPCIT_BUSY = ZPCI_CC_BUSY << CC_SHIFT
RPCIT_NOT_SERVED = ZPCI_CC_INVAL_HANDLE << CC_SHIFT
"""Answers to an RPCIT: the condition code, and below it the status. In turn: done; the function goes into error; the
host cannot pin or track another mapping; the function is in error since earlier; too many requests wait;
there is no function of that handle, or the machine is being stopped and its hypervisor may be dead, so that it is
gone."""

request_t = struct(
    lines=("state",),
    state="i4",
    is_global="i4",
    status="i4",
    fh="i8",
    start_pfn="i8",
    pages="i8",
    posted_ns="i8",
    flush_number="i8",
    flushed="i8",
    ticket="i8",
    wait_ns="i8",
    service_ns="i8",
    walked="i8",
    changed="i8",
)
"""One for each process that can trap; it has at most one request under way. `fh`: handle of the function that it is
about; `flush_number`: the oracle's number of the flush that served it, 0 if none did, and `flushed` the address of the
oracle of the function whose table was looked at; `ticket`: its place in the queue; the last four: how long it waited
until a server was free and was served, entries inspected and brought up to date."""

smmu_cmd = struct(op="i4", slot="i4", place="i8")
"""A command to an SMMUv3: what is to be done, 0 once a CMD_SYNC is over; whose request it is part of; its position."""

arm_smmu_cmdq = struct(
    lines=("val", "cons", "owner_prod", "entries", "prod_reg", "cons_reg"),
    val="i8",
    cons="i8",
    owner_prod="i8",
    lock="i8",
    entries="i8",
    is_patched="i8",
    cmds="i8",
    valid_map="i8",
    prod_reg="i8",
    cons_reg="i8",
)
"""Its command queue, of `entries` smmu_cmd at `cmds`, a power of two. Positions count modulo twice that, so that the
bit above an index says in which lap it is. `val`: up to where places are reserved, whether somebody will publish them,
and how far commands have been consumed, as far as is known; patched, that has a word of its own, `cons`. `owner_prod`:
where the next owner's places begin; `lock`: how many wait for a sync, negative while somebody updates the known cons;
`valid_map`: a bit for each entry; `prod_reg`, `cons_reg`: the hardware's. As in the kernel, `val` has its own line."""

hypervisor_faults = struct(
    is_on="i8",
    salt="i8",
    jitter_ns="i8",
    drop_one_in="i8",
    duplicate_one_in="i8",
    reorder_one_in="i8",
    drop_next="i8",
    duplicate_next="i8",
    reorder_next="i8",
)
"""What goes wrong on purpose, see emu/hypervisor/faults.py: `is_on` when anything does; one request in so many, 0 for
none; `*_next`: the next one does. `salt` makes another seed another choice."""

function_t = struct(
    lines=("guest_table",),
    guest_table="i8",
    shadow=io_pgtable,
    mapped="i8",
    is_ism="i8",
    device_in_error="i8",
    devices="i8",
    iotlbs="i8",
    oracle="i8",
)
"""What the hypervisor knows of one PCI function. `mapped`: valid entries of its shadow table; `is_ism`: the device
looks into the guest's table itself, and a global flush over addresses in use puts it into error; `iotlbs`: of the
`devices` that do DMA as this function; `oracle`: address of what watches it, or 0."""

hypervisor_t = struct(
    lines=("lock", "tail", "head", "doorbell", "mapped", "intercept_ns"),
    lock=spinlock_t,
    tail="i8",
    head="i8",
    doorbell="i4",
    sleepers="i4",
    mapped="i8",
    intercept_ns="i8",
    mapping_limit="i8",
    queue_limit="i8",
    walk_ps="i8",
    change_ps="i8",
    absent_counts="i8",
    shadows="i8",
    is_inline="i8",
    servers="i8",
    poll_ns="i8",
    guest_spins="i8",
    ring="i8",
    ring_mask="i8",
    requests="i8",
    cmdq="i8",
    functions="i8",
    function_count="i8",
    free_at_ns="i8",
    is_dead="i8",
    faults=hypervisor_faults,
)
"""`mapped`: valid entries of all shadow tables, at most `mapping_limit` of them; `queue_limit`: requests that may wait,
0 for any number; `walk_ps` and `change_ps` in ps for each entry; `absent_counts`: entries of absent tables count as
inspected; `shadows`: there are shadow tables to update; `servers`: processes that serve, 0 when inline; `lock`: held
to serve inline, and by one of several servers to walk; `cmdq`: address of the command queue by which it is asked, 0
where there is none; `functions`: array of `function_count` function_t; `free_at_ns`: when the server served last became
free (inline service); `is_dead`: it lives but takes no requests, on purpose."""

server_t = struct(
    lines=("requests",),
    requests="i8",
    global_requests="i8",
    busy_ns="i8",
    emulated_ns="i8",
    walked="i8",
    changed="i8",
    refused="i8",
    total_wait_ns="i8",
    max_wait_ns="i8",
    total_schedule_ns="i8",
    max_schedule_ns="i8",
    total_queued="i8",
    max_queued="i8",
    free_at_ns="i8",
    wait_histogram="i8",
    schedule_histogram="i8",
    spares=table_spares,
    serving="i8",
    again="i8",
    held="i8",
    held_until_ns="i8",
    not_served="i8",
    served_again="i8",
    dropped="i8",
    duplicated="i8",
    reordered="i8",
)
"""What one server, or one CPU that serves itself, has done.

`wait` is the time in the emulated queue, until a server was free; `schedule` the time this machine took to get the
server running after that; `queued` the requests found waiting; `refused` the entries of the latest request that the
host had no room for. `serving` is the word of the queue that it is about to take or at work on, 0 when idle: whoever
takes its place after its death begins with that. `served_again`: requests that were; `not_served`: those whose guest
had gone on before their turn came, as only a wrong completion can bring about. `again` (slot + 1) has its completion
delivered a second time, `held` (the same) later than it should.
"""
