"""What each CPU counts; the machine's figures are the sums over its processes.

The first five are the kernel's, under the names of debugfs/pci/<device>/statistics. The kernel keeps them in one record
for each domain and adds atomically; here each process has its own, which costs nothing.
"""

from __future__ import annotations

from emu.native.record import struct

iommu_ctrs = struct(
    mapped_pages="i8",
    unmapped_pages="i8",
    global_rpcits="i8",
    sync_map_rpcits="i8",
    sync_rpcits="i8",
    maps="i8",
    unmaps="i8",
    map_failures="i8",
    flushes_full="i8",
    flushes_timeout="i8",
    flushes_early="i8",
    timeout_ticks="i8",
    timeout_max_ticks="i8",
    flushes_no_resources="i8",
    flushes_wrap="i8",
    reclaimed="i8",
    overruns="i8",
    overrun_iovas="i8",
    rcache_flushes="i8",
    lost_iovas="i8",
    busy_retries="i8",
    cmdq_attempts="i8",
    cmdq_full="i8",
    requests="i8",
    request_wait_ns="i8",
    request_service_ns="i8",
    exposures="i8",
    exposure_page_ticks="i8",
    exposure_max_ticks="i8",
    queued_while_strict="i8",
    queues_of_another_type="i8",
)
"""`maps`, `unmaps`: calls of the DMA API that succeeded; `reclaimed`: IOVAs given back to the allocator after a flush;
`timeout_ticks`: how long the timer's flushes took, with all that they made free, and `timeout_max_ticks` the longest;
`overruns`: appends that wrapped onto the head of a full ring, `overrun_iovas` what was lost by them; `lost_iovas`:
frees of a range the allocator does not know; `busy_retries`: RPCITs that were answered busy and tried again;
`cmdq_attempts`: tries to reserve places in the command queue, `cmdq_full`: looks for room in it where there was none;
`requests`: RPCITs in all, `request_wait_ns` until a server was free for them and `request_service_ns` while they were
served;
`exposures`: windows between unmap and flush that have closed, of IOVAs, or of single pages in the old lazy scheme;
`flushes_early`: a policy asked for before its ring was full; `queued_while_strict`: unmaps that were queued while the
domain's type said strict; `queues_of_another_type`: domains that had another kind of queue than their type says."""

KERNEL_NAMES = {
    "Mapped pages": "mapped_pages",
    "Unmapped pages": "unmapped_pages",
    "Global RPCITs": "global_rpcits",
    "Sync Map RPCITs": "sync_map_rpcits",
    "Sync RPCITs": "sync_rpcits",
}
"""The kernel's name of each counter it has, in its order."""
