"""Looking at a machine that runs, from another process: its segment is mapped for reading, and copied now and then.

Nothing is locked and nobody is asked, so a look costs the machine no more than the cache lines that it reads. What
belongs together may have been copied at different moments; whoever makes figures of it must bear that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from emu.hypervisor.state import REQUEST_POSTED, REQUEST_WAITERS, hypervisor_t, request_t, server_t
from emu.iommu.domain import iommu_domain
from emu.iommu.flush_queue import iova_fq, iova_fq_entry
from emu.iommu.iova import iova_cpu_rcache, iova_rcache
from emu.machine.context import SLOT_WAITERS, control_t, cpu_t, slot_t
from emu.machine.ledger import ledger_t
from emu.machine.recording import locks_of
from emu.native.clock import ticks
from emu.native.compile import compile_entries, entry
from emu.native.segment import AttachError, Attachment, NamedArrays, SegmentGoneError, shared_segments
from emu.oracle.findings import findings_t

_ALWAYS = {
    "control": control_t,
    "contexts": cpu_t,
    "dead_generation": np.dtype(np.int64),
    "domain": iommu_domain,
    "findings": findings_t,
    "hypervisor": hypervisor_t,
    "ledgers": ledger_t,
    "requests": request_t,
    "request_ring": np.dtype(np.int64),
    "servers": server_t,
    "slots": slot_t,
}
_SOMETIMES = {
    "rings": iova_fq,
    "ring_entries": iova_fq_entry,
    "cpu_rcaches": iova_cpu_rcache,
    "rcaches": iova_rcache,
}
"""What a look reads, and as which types: a machine of another version of emu may have others."""

_MOST_SLOTS = 8192
"""Their states fill as many cache lines as a quarter of that; of more, too many would be taken from their CPUs."""


class LookError(Exception):
    """A machine cannot be looked at; the message is one line: what, where, what to do."""


class MachineGoneError(LookError):
    """There is no such machine, or no longer."""


@dataclass(frozen=True, slots=True)
class Look:
    """A machine at one moment.

    Attributes:
        at_ns, at_ticks: the moment, on CLOCK_MONOTONIC and in ticks.
        control, hypervisor: shape (1,). domain: of each function, shape (functions,).
        contexts: of every process, the supervisor's last; shape (n,), dtype cpu_t.
        dead_generation, requests, servers: of the same.
        request_ring: the hypervisor's queue.
        violations: found so far, by process (and function) and kind.
        rings: of the queues that the domains have, dtype iova_fq; none where they have none.
        rings_of: the number of the function that each ring belongs to.
        longest_ticks: the longest exposure that any process has seen.
        oldest_ticks: when the first entry of each ring was queued, 0 where there is none.
        locks: (name, records), dtype spinlock_t.
        slots_waited_for: mappings that a CPU waits for another to make or to undo; None where there are too many slots.
    """

    at_ns: int
    at_ticks: int
    control: npt.NDArray[Any]
    domain: npt.NDArray[Any]
    hypervisor: npt.NDArray[Any]
    contexts: npt.NDArray[Any]
    dead_generation: npt.NDArray[np.int64]
    requests: npt.NDArray[Any]
    request_ring: npt.NDArray[np.int64]
    servers: npt.NDArray[Any]
    violations: npt.NDArray[np.int64]
    rings: npt.NDArray[Any]
    oldest_ticks: npt.NDArray[np.int64]
    locks: list[tuple[str, npt.NDArray[Any]]]
    slots_waited_for: int | None
    rings_of: tuple[int, ...] = ()
    longest_ticks: int = 0

    @property
    def waits(self) -> npt.NDArray[np.bool_]:
        """Of each process, whether it has asked the hypervisor's process for something and has no answer yet."""
        return np.array((self.requests["state"] & ~REQUEST_WAITERS) == REQUEST_POSTED)


@entry
def ticks_now() -> int:
    """Now, in the ticks of the machines that run here."""
    return ticks()


class _Copies:
    """Each array of a segment copied once, when it is first asked for."""

    def __init__(self, segment: NamedArrays) -> None:
        self._segment = segment
        self._copies: dict[str, npt.NDArray[Any]] = {}

    def copy_of(self, name: str) -> npt.NDArray[Any]:
        if name not in self._copies:
            self._copies[name] = self._segment.copy_of(name)
        return self._copies[name]


class RunningMachine:
    """Another process's machine, attached to for reading.

    Args:
        path: the file of its segment.

    Attributes:
        about: what its supervisor said of it when it made it.

    Raises:
        MachineGoneError: there is none, or no longer.
        LookError: it is somebody else's, not ready yet, or of another version of emu.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._segment = Attachment(path)
        except SegmentGoneError as error:
            raise MachineGoneError(str(error)) from None
        except AttachError as error:
            raise LookError(str(error)) from None
        _check_types(self._segment)
        self.about = self._segment.about
        compile_entries([ticks_now])

    @property
    def name(self) -> str:
        """Of its segment, another for each machine."""
        return self._segment.name

    @property
    def supervisor(self) -> int:
        """Pid of its supervisor."""
        return self._segment.owner

    @property
    def has_ended(self) -> bool:
        """Whether it is no more; what it left can still be looked at."""
        return self._segment.has_ended

    def look(self) -> Look:
        """Copy what there is to see."""
        copies = _Copies(self._segment)
        domain, hypervisor = copies.copy_of("domain"), copies.copy_of("hypervisor")
        rings, rings_of = self._rings(copies, domain)
        longest = (copies.copy_of(name)["ctrs"]["exposure_max_ticks"].max() for name in ("contexts", "ledgers"))
        return Look(
            control=copies.copy_of("control"),
            domain=domain,
            hypervisor=hypervisor,
            contexts=copies.copy_of("contexts"),
            dead_generation=copies.copy_of("dead_generation"),
            requests=copies.copy_of("requests"),
            request_ring=copies.copy_of("request_ring"),
            servers=copies.copy_of("servers"),
            violations=np.array(self._segment["findings"]["counts"]),
            rings=rings,
            rings_of=rings_of,
            longest_ticks=int(max(longest)),
            oldest_ticks=self._oldest_ticks(rings),
            locks=locks_of(copies.copy_of, domain, hypervisor),
            slots_waited_for=self._slots_waited_for(),
            # Last, so that nothing seen is later.
            at_ticks=int(ticks_now()),
            at_ns=time.monotonic_ns(),
        )

    def _rings(self, copies: _Copies, domain: Any) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
        """The rings in use, and whose each is."""
        if "rings" not in self._segment:
            return np.zeros(0, iova_fq), ()
        chosen: list[int] = []
        numbers: list[int] = []
        for number, (first, cookie) in enumerate(zip(self.about["first_rings"], domain["cookie"], strict=True)):
            if cookie["fq_domain"]:
                count = int(cookie["fq_rings"])
                chosen += range(first, first + count)
                numbers += [number] * count
        return copies.copy_of("rings")[chosen], tuple(numbers)

    def _oldest_ticks(self, rings: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if not len(rings):
            return np.zeros(0, np.int64)
        queued_at = self._segment["ring_entries"]["queued_at"]
        first = (rings["entries"] - self._segment.address("ring_entries")) // iova_fq_entry.itemsize
        place = first + (rings["head"] & rings["mod_mask"])
        # A ring that has just been made, or unmade, may point anywhere.
        is_known = (rings["head"] != rings["tail"]) & (rings["entries"] != 0) & (place >= 0) & (place < len(queued_at))
        return np.where(is_known, queued_at[np.where(is_known, place, 0)], 0)

    def _slots_waited_for(self) -> int | None:
        states = self._segment["slots"]["state"]
        return int(np.count_nonzero(states & SLOT_WAITERS)) if len(states) <= _MOST_SLOTS else None


def _check_types(segment: Attachment) -> None:
    for name, form in (_ALWAYS | _SOMETIMES).items():
        is_same = segment.arrays[name][1] == form if name in segment else name in _SOMETIMES
        if not is_same:
            raise LookError(f"{segment.path} is of another version of emu ({name} differs); look at it with that one")


def running_machines() -> list[RunningMachine]:
    """This user's, the newest last; what cannot be looked at (yet) is left out."""
    found = []
    for path in shared_segments():
        try:
            found.append(RunningMachine(path))
        except LookError:
            continue
    return found


def machine_of_process(pid: int) -> RunningMachine:
    """The machine whose supervisor, or one of whose processes, that is.

    Raises:
        LookError: there is none, or it cannot be looked at.
    """
    try:
        pids = {pid, psutil.Process(pid).ppid()}
    except psutil.Error:
        raise MachineGoneError(f"there is no process {pid}") from None
    for path in reversed(shared_segments()):
        if int(path.name.split("-")[1]) in pids:
            return RunningMachine(path)
    raise MachineGoneError(
        f"process {pid} runs no machine that can be attached to: it has ended or not begun, or it is a simulation "
        "(--engine sim), whose segment is private"
    )


def machine_in_folder(folder: Path) -> RunningMachine:
    """The machine whose run has this folder.

    Raises:
        LookError: there is none, or it cannot be looked at.
    """
    for machine in reversed(running_machines()):
        if machine.about.get("folder") == str(folder.resolve()):
            return machine
    raise MachineGoneError(f"no machine is running in {folder}")
