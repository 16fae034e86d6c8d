"""What the steps of `emu.native` mean to a CPU that is explored: everything goes through its world.

Interpreted primitives are called through `Primitive.plain`, and steps with a meaning for each engine through
`Step.meanings`; both are set here while a world is explored, and as they were afterwards. Nothing in `emu.iommu` or
`emu.hypervisor` changes or knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from emu.explore.memory import Record, Records
from emu.explore.world import World
from emu.hypervisor import turns
from emu.native import atomics, lines, lock, record, time, wait
from emu.native.engine import Step

NOW_NS = 1_000_000_000
"""Clocks stand: in which order things happen is the search's affair."""

FOR_EVER_NS = 1 << 40
"""A time-out that never comes."""

EXPLORED = "explored"
"""First field of the contexts."""


def _primitives(world: World, records: Records) -> dict[Any, Callable[..., Any]]:
    def where(of: Record, field: str) -> tuple[int, str, int]:
        offset, code = of.places[field]
        address = of.address + offset
        return address, code, records.kind_of(address)

    def read(of: Record, field: str) -> int:
        return int(getattr(of, field))

    def write(of: Record, field: str, value: int) -> None:
        setattr(of, field, value)

    def release(of: Record, field: str, value: int) -> None:
        world.release(*where(of, field), int(value))

    def exchange(of: Record, field: str, value: int) -> int:
        return world.change(*where(of, field), lambda _old: int(value))

    def compare_and_exchange(of: Record, field: str, old: int, value: int) -> int:
        return world.change(*where(of, field), lambda found: int(value) if found == old else found)

    return {
        record.deref: lambda dtype, address: records.at(dtype, int(address)),
        record.element: lambda dtype, address, index: records.at(dtype, int(address) + int(index) * dtype.itemsize),
        record.address_of: lambda of, field: of.address + of.dtype.fields[field][1],
        record.pointer_to: lambda of: of.address,
        atomics.read_once: read,
        atomics.smp_load_acquire: read,
        atomics.write_once: write,
        atomics.smp_store_release: release,
        atomics.fetch_add: lambda of, field, value: world.change(*where(of, field), lambda old: old + value),
        atomics.fetch_or: lambda of, field, value: world.change(*where(of, field), lambda old: old | value),
        atomics.fetch_and: lambda of, field, value: world.change(*where(of, field), lambda old: old & value),
        atomics.xchg: exchange,
        atomics.cmpxchg: compare_and_exchange,
        atomics.smp_mb: world.drain,
        atomics.smp_wmb: world.order_stores,
    }


def _meanings(world: World) -> dict[Step, Callable[..., Any]]:
    def sleep(_cpu: Any, address: int, expected: int, timeout_ns: int) -> None:
        # Who knows when to wake up will do so, however long that is; who does not must be woken.
        if timeout_ns >= FOR_EVER_NS:
            world.sleep(address, expected)

    def nothing(*_arguments: Any) -> None:
        pass

    return {
        lock.spin_lock: lambda _cpu, of: world.lock(of),
        lock.spin_lock_polling: lambda _cpu, of: world.lock(of),
        lock.spin_unlock: lambda _cpu, of: world.unlock(of),
        # In which order CPUs get the lock is the search's affair too.
        turns.take_turn: lambda _cpu, _hv: 0,
        turns.let_next_try: nothing,
        time.now_ns: lambda _cpu: NOW_NS,
        time.now_ticks: lambda _cpu: NOW_NS,
        time.spend_until: nothing,
        time.charge: nothing,
        time.begin_operation: nothing,
        time.relax: lambda _cpu: world.idle(),
        time.yield_core: lambda _cpu: world.idle(),
        wait.wait_on: sleep,
        wait.wake_up: nothing,
        lines.write_lines: nothing,
    }


@contextmanager
def explored(world: World, records: Records) -> Iterator[None]:
    """Have interpreted code run in this world."""
    primitives, meanings = _primitives(world, records), _meanings(world)
    plain = {primitive: primitive.plain for primitive in primitives}
    for primitive, meaning in primitives.items():
        primitive.plain = meaning
    for step, meaning in meanings.items():
        step.meanings[EXPLORED] = meaning
    try:
        yield
    finally:
        for primitive, meaning in plain.items():
            primitive.plain = meaning
        for step in meanings:
            del step.meanings[EXPLORED]
