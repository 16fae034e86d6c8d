"""Two looks at a running machine become figures: what it has done in all, and what it did between the two.

The looks are copies that nobody held still, so figures of one moment may be a little off; none is negative, and no
state of a machine, whatever is half-written in it, makes this fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emu.analysis.flushes import CAUSES
from emu.analysis.run_result import COUNTED_VIOLATIONS
from emu.iommu.domain import DOMAIN_TYPES, S390_LAZY
from emu.iommu.flush_queue import FLUSH_NONE
from emu.machine.context import STOP, UNBOUND
from emu.native.lock import SLOT_BITS, SLOT_MASK
from emu.native.timer import TIMER_PENDING

if TYPE_CHECKING:
    from emu.machine.look import Look

SCHEMA = 1

STARTING, RUNNING, FLUSHING, QUEUED, SERVED, RESTING, FINISHED, DEAD = (
    "starting",
    "running",
    "flushing",
    "queued",
    "served",
    "resting",
    "finished",
    "dead",
)
"""What a process does: it has not begun; nothing that could be told; a flush of the queue; it waits for the hypervisor;
the hypervisor serves its request; it rests while no driver is bound; it has ended; it died."""

_TYPE_NAMES = {number: name for name, number in DOMAIN_TYPES.items()}


def live_figures(about: dict[str, Any], before: Look | None, now: Look) -> dict[str, Any]:
    """Everything that is said about a running machine; times are ns, rates are per second.

    Args:
        about: what the machine's supervisor has said of it.
        before: an earlier look; None for what it did since its start.
        now: the look that it is about.
    """
    cpus = int(about["cpus"])
    running_s = _running_s(now, cpus)
    interval_s = running_s if before is None else max(now.at_ns - before.at_ns, 0) / 1e9
    change = _Change(before, now, interval_s, _tick_ns(now, cpus))
    config = about["config"]
    return {
        "schema": SCHEMA,
        "machine": {
            "pid": about["pid"],
            "folder": about["folder"],
            "domain": about["domain"],
            "type": _TYPE_NAMES.get(int(now.domain["type"][0])),
            "engine": config["machine"]["engine"],
            "preset": config["hypervisor"]["preset"],
            "workload": about["workload"],
            "cpus": cpus,
            "state": _state_of_machine(now, cpus),
            "running_s": running_s,
            "seconds": about["seconds"],
        },
        "interval_s": interval_s,
        **change.of_counter("unmaps", "pairs"),
        "mapped_pages": max(change.total("mapped_pages") - change.total("unmapped_pages"), 0),
        "map_failures": change.total("map_failures"),
        "violations": _violations(now),
        "cpus": _cpus(change, cpus),
        "slots_waited_for": now.slots_waited_for,
        "others": _others(about, now, cpus),
        "queue": _queue(change),
        "flushes": {cause: change.of_counter(f"flushes_{cause}", "count") for cause in CAUSES},
        "overruns": change.of_counter("overruns", "count"),
        "hypervisor": _hypervisor(change, int(about["servers"]), running_s),
        "locks": _locks(change),
        "exposure": _exposure(change),
    }


class _Change:
    """What has been counted, in all and between two looks."""

    def __init__(self, before: Look | None, now: Look, interval_s: float, tick_ns: float) -> None:
        self.before = before
        self.now = now
        self.interval_s = interval_s
        self.tick_ns = tick_ns

    def grown(self, read: Callable[[Look], int]) -> tuple[int, int]:
        """A figure that only grows: as it is, and by how much it has grown since the look before.

        What it is the sum of may have been read at different moments, so it can seem to have shrunk.
        """
        total = read(self.now)
        return total, max(total - (read(self.before) if self.before else 0), 0)

    def total(self, counter: str) -> int:
        """Of a counter, over all processes."""
        return self.counted(counter)[0]

    def counted(self, counter: str) -> tuple[int, int]:
        """The same, and how much of it since the look before."""
        return self.grown(lambda look: int(look.contexts["ctrs"][counter].sum()))

    def of_servers(self, name: str) -> tuple[int, int]:
        """The same of the servers' counters."""
        return self.grown(lambda look: int(look.servers[name].sum()))

    def of_lock(self, lock: str, name: str) -> tuple[int, int]:
        """The same of the locks of one name."""
        return self.grown(lambda look: sum(int(records[name].sum()) for known, records in look.locks if known == lock))

    def of_counter(self, counter: str, name: str) -> dict[str, Any]:
        """How often in all, and per second."""
        total, new = self.counted(counter)
        return {name: total, f"{name}_per_s": self.per_s(new)}

    def per_s(self, count: float) -> float:
        """As a rate."""
        return count / self.interval_s if self.interval_s > 0 else 0.0


def _running_s(look: Look, cpus: int) -> float:
    """Seconds since the first CPU began, until the last one stopped."""
    began = look.contexts[:cpus]
    began = began[began["started_ns"] > 0]
    if not len(began):
        return 0.0
    until_ns = int(began["stopped_ns"].max()) if began["finished"].all() else look.at_ns
    return max(until_ns - int(began["started_ns"].min()), 0) / 1e9


def _tick_ns(look: Look, cpus: int) -> float:
    """Length of a tick: each CPU has noted both clocks when it began."""
    began = look.contexts[:cpus]
    began = began[(began["started_ns"] > 0) & (began["started_ticks"] > 0)]
    spans = look.at_ns - began["started_ns"], look.at_ticks - began["started_ticks"]
    known = (spans[0] > 0) & (spans[1] > 0)
    return float(np.median(spans[0][known] / spans[1][known])) if known.any() else 1.0


def _state_of_machine(look: Look, cpus: int) -> str:
    stop = int(look.control["stop"][0])
    if not look.control["go"][0]:
        return "starting"
    if stop == UNBOUND:
        return "unbound"
    if look.contexts["finished"][:cpus].all():
        return "finished"
    return "stopping" if stop == STOP else "running"


def _violations(look: Look) -> int:
    counted = sum(int(look.contexts["ctrs"][kind].sum()) for kind in COUNTED_VIOLATIONS)
    return int(look.violations.sum()) + counted + int(look.servers["not_served"].sum())


def _states(look: Look) -> list[str]:
    """What each process does, as far as it can be told."""
    contexts, slots = look.contexts, np.arange(len(look.contexts))
    states = np.full(len(contexts), RUNNING, dtype=object)
    states[contexts["flush_step"] != FLUSH_NONE] = FLUSHING
    states[look.waits | np.isin(slots, _queued(look))] = QUEUED
    states[np.isin(slots, _served(look)) & (look.waits | bool(look.hypervisor["is_inline"][0]))] = SERVED
    if look.control["stop"][0] == UNBOUND:
        states[contexts["rests"] == look.control["unbinds"][0]] = RESTING
    states[contexts["pid"] == 0] = STARTING
    states[contexts["finished"] != 0] = FINISHED
    states[(look.dead_generation != 0) & (look.dead_generation == contexts["generation"])] = DEAD
    return [str(state) for state in states]


def _queued(look: Look) -> npt.NDArray[np.int64]:
    """Whose requests are in the hypervisor's queue."""
    first, places = int(look.hypervisor["head"][0]), len(look.request_ring)
    # Read at different moments, there may seem to be more of them than there are places.
    tickets = first + np.arange(min(max(int(look.hypervisor["tail"][0]) - first, 0), places))
    words = look.request_ring[tickets & (places - 1)]
    queued: npt.NDArray[np.int64] = (words[words >> SLOT_BITS == tickets] & SLOT_MASK) - 1
    return queued


def _served(look: Look) -> npt.NDArray[np.int64]:
    """Whose requests are being served: inline, that of whoever holds the lock."""
    if look.hypervisor["is_inline"][0]:
        return np.array(look.hypervisor["lock"]["val"] & SLOT_MASK, np.int64) - 1
    return np.array(look.servers["serving"] & SLOT_MASK, np.int64) - 1


def _cpus(change: _Change, cpus: int) -> list[dict[str, Any]]:
    now = change.now.contexts[:cpus]
    pairs = now["ctrs"]["unmaps"]
    new = np.maximum(pairs - (change.before.contexts[:cpus]["ctrs"]["unmaps"] if change.before else 0), 0)
    states = _states(change.now)
    began = now["started_ns"] > 0
    return [
        {
            "cpu": number,
            "pid": int(now["pid"][number]),
            "state": states[number] if began[number] or states[number] == DEAD else STARTING,
            "in_flush": bool(now["flush_step"][number] != FLUSH_NONE),
            "pairs": int(pairs[number]),
            "pairs_per_s": change.per_s(float(new[number])),
        }
        for number in range(cpus)
    ]


def _others(about: dict[str, Any], look: Look, cpus: int) -> list[dict[str, Any]]:
    """The processes that are no CPUs."""
    states = _states(look)
    return [
        {"role": str(name), "pid": int(look.contexts["pid"][slot]), "state": states[slot]}
        for slot, name in enumerate(about["names"][: len(states)])
        if slot >= cpus
    ]


def _queue(change: _Change) -> dict[str, Any] | None:
    """The rings of the domains, or what the old lazy scheme has in place of them; None where there is neither."""
    look = change.now
    bitmaps = [_bitmap(look, number) for number, kind in enumerate(look.domain["type"]) if kind == S390_LAZY]
    if bitmaps:
        return {"rings": bitmaps, "timer_due_in_ns": None}
    if not len(look.rings):
        return None
    masks = look.rings["mod_mask"]
    entries = (look.rings["tail"] - look.rings["head"]) & masks
    ages = (look.at_ticks - look.oldest_ticks) * change.tick_ns
    oldest_ns = np.where(look.oldest_ticks > 0, np.maximum(ages, 0), np.nan)
    timers = look.domain["cookie"]["fq_timer"]
    due_ns = timers["due_ns"][timers["state"] == TIMER_PENDING] - look.at_ns
    return {
        "rings": [
            {
                "name": _name_of_ring(look, number),
                "entries": int(entries[number]),
                "size": int(masks[number]),
                "oldest_ns": None if np.isnan(oldest_ns[number]) else float(oldest_ns[number]),
                "fill": float(entries[number] / masks[number]) if masks[number] > 0 else 0.0,
            }
            for number in range(len(look.rings))
        ],
        "timer_due_in_ns": int(due_ns.min()) if len(due_ns) else None,
    }


def _bitmap(look: Look, number: int) -> dict[str, Any]:
    zdev = look.domain["zdev"][number]
    pages = int(zdev["iommu_pages"])
    used = min(max(int(zdev["next_bit"]), 0), pages)
    row = {"name": _name_of(look, number, "bitmap"), "entries": int(zdev["lazy_iovas"]), "size": None}
    return {**row, "oldest_ns": None, "fill": used / pages if pages else 0.0}


def _name_of_ring(look: Look, place: int) -> str:
    number = look.rings_of[place] if look.rings_of else 0
    first = look.rings_of.index(number) if look.rings_of else 0
    is_single = bool(look.domain["cookie"]["qt"][number])
    return _name_of(look, number, "single" if is_single else f"cpu {place - first}")


def _name_of(look: Look, number: int, name: str) -> str:
    """Of a ring: where there are several functions it begins with the number of its own."""
    return f"{number}: {name}" if len(look.domain) > 1 else name


def _hypervisor(change: _Change, servers: int, running_s: float) -> dict[str, Any]:
    requests, new_requests = change.of_servers("requests")
    busy_ns, new_busy_ns = change.of_servers("busy_ns")
    wait_ns, new_wait_ns = change.of_servers("total_wait_ns")
    hypervisor = change.now.hypervisor
    return {
        "servers": servers,
        "queue": max(int(hypervisor["tail"][0]) - int(hypervisor["head"][0]), 0),
        "requests": requests,
        "requests_per_s": change.per_s(new_requests),
        "utilisation": _share(new_busy_ns, change.interval_s * max(servers, 1)),
        "utilisation_in_all": _share(busy_ns, running_s * max(servers, 1)),
        "mean_service_ns": new_busy_ns / new_requests if new_requests else None,
        "mean_service_in_all_ns": busy_ns / requests if requests else None,
        "mean_wait_ns": new_wait_ns / new_requests if new_requests else None,
        "mean_wait_in_all_ns": wait_ns / requests if requests else None,
    }


def _share(busy_ns: float, seconds: float) -> float:
    # A request counts when it is over, so a long one fills more than the interval in which it ends.
    return min(busy_ns / (seconds * 1e9), 1.0) if seconds > 0 else 0.0


def _locks(change: _Change) -> list[dict[str, Any]]:
    """Those that were ever taken; the most waited for first."""
    rows = []
    for name, locks in change.now.locks:
        acquisitions = int(locks["acquisitions"].sum())
        if not acquisitions:
            continue
        contended, new_contended = change.of_lock(name, "contended")
        wait, new_wait = change.of_lock(name, "total_wait")
        rows.append(
            {
                "name": name,
                "acquisitions": acquisitions,
                "contended": contended,
                "contended_per_s": change.per_s(new_contended),
                "total_wait_ns": wait * change.tick_ns,
                "wait_ns_per_s": change.per_s(new_wait * change.tick_ns),
                "max_wait_ns": int(locks["max_wait"].max()) * change.tick_ns,
            }
        )
    return sorted(rows, key=lambda row: (-row["total_wait_ns"], row["name"]))


def _exposure(change: _Change) -> dict[str, Any]:
    queue = _queue(change)
    page_ticks, new_page_ticks = change.counted("exposure_page_ticks")
    tick_s = change.tick_ns / 1e9
    return {
        **change.of_counter("exposures", "windows"),
        "page_seconds": page_ticks * tick_s,
        "page_seconds_per_s": change.per_s(new_page_ticks * tick_s),
        "longest_ns": change.now.longest_ticks * change.tick_ns,
        "open": sum(ring["entries"] for ring in queue["rings"]) if queue else 0,
    }
