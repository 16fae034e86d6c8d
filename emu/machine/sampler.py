"""Looks at the running machine at equal intervals, for the log: how far it is, and what waits where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.machine.layout import Layout

_SAMPLES = 100
_LEAST_S = 0.02
_UNTIMED_S = 0.05


class Sampler:
    """Tells `on_event` of a `sample` now and then; reads the segment without any lock, so sums may be a little off.

    Args:
        layout: the machine.
        on_event: told the event and its values.
        seconds: how long the load is to run, or None where that is not known.
    """

    def __init__(self, layout: Layout, on_event: Callable[[str, dict[str, Any]], None], seconds: float | None) -> None:
        self._layout = layout
        self._on_event = on_event
        every_s = _UNTIMED_S if seconds is None else seconds / _SAMPLES
        self._every_s = every_s if layout.is_virtual else max(every_s, _LEAST_S)
        self._next_s = self._every_s

    def work(self, now_s: float) -> float:
        """Take a sample if one is due at `now_s` since the start of the load; returns seconds until the next one."""
        if now_s >= self._next_s:
            self._on_event("sample", {"at_ns": round(now_s * 1e9), **self._sample()})
            # Those that were missed, as the supervisor had no core, are not made up for.
            self._next_s += self._every_s * max(1.0, (now_s - self._next_s) // self._every_s + 1)
        return max(self._next_s - now_s, 0.0)

    def _sample(self) -> dict[str, int]:
        segment = self._layout.segment
        ctrs, servers = segment["contexts"]["ctrs"], segment["servers"]
        hypervisor = segment["hypervisor"][0]
        return {
            "pairs": int(ctrs["unmaps"].sum()),
            "mapped_pages": int(ctrs["mapped_pages"].sum()) - int(ctrs["unmapped_pages"].sum()),
            "queued": self._queued(),
            "requests": int(servers["requests"].sum()),
            "busy_ns": int(servers["busy_ns"].sum()),
            "waiting": max(int(hypervisor.tail) - int(hypervisor.head), 0),
        }

    def _queued(self) -> int:
        """IOVAs that have been unmapped and wait for a flush."""
        queued = 0
        for number, domain in enumerate(self._layout.segment["domain"]):
            cookie = domain.cookie
            if not cookie.fq_domain:
                queued += int(domain.zdev.lazy_iovas)
                continue
            first = self._layout.first_ring(number)
            rings = self._layout.segment["rings"][first : first + int(cookie.fq_rings)]
            queued += int(((rings["tail"] - rings["head"]) & rings["mod_mask"]).sum())
        return queued
