"""Where the time of a map or an unmap goes: one clock for each stage, of which one runs at a time.

Stages nest: whoever enters one stops the clock of the one around it until it leaves. So their sum is the time of the
whole, and none counts twice. Nothing is measured, and no clock read, unless the context has a place for it
(`stages`, see machine.breakdown).
"""

from __future__ import annotations

from typing import Any

from emu.native.compile import inline, slow
from emu.native.record import element, int64_t
from emu.native.time import now_ticks

STAGE_CALL, STAGE_ALLOCATOR, STAGE_TABLES, STAGE_QUEUE, STAGE_QUEUE_LOCK, STAGE_FLUSH, STAGE_REQUEST = range(7)
"""In turn: the call itself; addresses; page tables; appending to the queue and giving back what has been flushed;
waiting for the ring's lock; a flush, but for its request; a request to the hypervisor. In ticks."""

STAGE_REQUEST_WAIT, STAGE_REQUEST_SERVICE = 7, 8
"""Of a request: until a server was free, and while it was served. In ns, and parts of STAGE_REQUEST."""

STAGES = 9
STAGES_OF_MAP, STAGES_OF_UNMAP = 0, 1
"""A context's `stages` is the address of STAGES int64 for maps, then as many for unmaps."""


@slow
def _switch(cpu: Any, stage: int, now: int) -> None:
    element(int64_t, cpu.stages, cpu.stage).value += now - cpu.stage_since
    cpu.stage = stage
    cpu.stage_since = now


@inline
def begin_stages(cpu: Any, operation: int, since: int) -> None:
    """A map or an unmap (STAGES_OF_*) has begun."""
    if cpu.stages:
        cpu.stage = operation * STAGES
        cpu.stage_since = since


@inline
def end_stages(cpu: Any, until: int) -> None:
    """It has ended."""
    if cpu.stages:
        _switch(cpu, 0, until)


@inline
def enter_stage(cpu: Any, stage: int) -> int:
    """Another stage begins; returns what leave_stage() wants."""
    around = cpu.stage
    if cpu.stages:
        _switch(cpu, around - around % STAGES + stage, now_ticks(cpu))
    return around


@inline
def leave_stage(cpu: Any, around: int) -> None:
    """The stage has ended, and that around it goes on."""
    if cpu.stages:
        _switch(cpu, around, now_ticks(cpu))


@inline
def note_request(cpu: Any, wait_ns: int, service_ns: int) -> None:
    """What a request that is over consisted of."""
    if cpu.stages:
        first = cpu.stage - cpu.stage % STAGES
        element(int64_t, cpu.stages, first + STAGE_REQUEST_WAIT).value += wait_ns
        element(int64_t, cpu.stages, first + STAGE_REQUEST_SERVICE).value += service_ns
