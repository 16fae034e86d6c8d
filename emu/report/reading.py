"""The table read aloud: one or two sentences on what was gained and what it exposes, and what stands out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from emu.report.quantity import amount, duration, times
from emu.report.table import STRICT, baseline_of, lock_share

Run = dict[str, Any]

_WHAT_HAPPENED = {
    "handed_out_twice": "an IOVA was handed out while still in use",
    "given_back_twice": "an IOVA was given back that was free",
    "given_back_while_mapped": "an IOVA was given back while it was mapped",
    "given_back_unflushed": "an IOVA became allocatable before a flush that began after its unmap had ended",
    "mapped_over": "a page was mapped that was mapped already",
    "unmapped_twice": "a page was unmapped that was not mapped",
    "changed_unseen": "the hypervisor found another mapping where it had never seen the old one end",
    "shadow_differs": "the shadow table of a live mapping was not as the guest's",
    "stale_after_flush": "a device reached a page after the flush that ended its reach",
    "stale_after_reuse": "a device reached by an old entry what had been handed out again",
    "no_such_ring": "the policy put an IOVA on a ring that there is not",
    "no_such_timeout": "the policy armed the timer for a time that cannot be",
    "books_of_pages": "pages mapped, less pages unmapped, are not what is live",
    "books_of_iovas": "IOVAs queued, reclaimed and overrun are not those unmapped",
    "books_of_tables": "pages translated after the last unmap",
    "books_of_ranges": "ranges were left in the allocator",
    "lost_iovas": "a range was given back that the allocator does not know",
    "queued_while_strict": "an unmap was queued while the domain's type said DMA",
    "queues_of_another_type": "the domain had another kind of queue than its type says",
    "flushes_not_done": "a flush was taken for done that had not begun",
}
_SWITCHES = "switch from DMA to DMA-FQ under load"
_OCCASIONS = {
    "init-fq-before-type": _SWITCHES,
    "queue-before-type": _SWITCHES,
    "reuse-unflushed": "run s390-lazy on several CPUs where the host runs out of resources",
}
"""When each bug on purpose shows."""
_LAZY = (("DMA-FQ", "DMA-SQ"), ("s390-lazy",))
"""What a user can choose today, then what there was up to Linux 6.6."""
_WORTH_NAMING = 0.005
"""Part of the CPUs' time from which on a lock is named."""


def gain_and_exposure(runs: Sequence[Run]) -> list[str]:
    """What the fastest lazy domain gains over strict and exposes, and how the two flush queues differ."""
    by_name = {run["domain"]: run for run in runs}
    for names in _LAZY:
        lazy = [by_name[name] for name in names if name in by_name and by_name[name]["ops"]]
        if lazy:
            fastest = max(lazy, key=lambda run: float(run["pairs_per_s"]))
            return [_gain(fastest, baseline_of(runs)), *_queues_compared(by_name)]
    return []


def most_waited_for_locks(runs: Sequence[Run]) -> list[str]:
    """For each run the lock that cost most, where any cost something."""
    named = []
    for run in runs:
        lock = max(run["locks"], key=lambda lock: float(lock["total_wait_ns"]), default=None)
        share = lock_share(run, lock["total_wait_ns"]) if lock else None
        if lock and share and share >= _WORTH_NAMING:
            named.append(f"{run['domain']} {lock['name']} {share * 100:.0f} %")
    return [f"Most waited-for lock, of CPU time: {', '.join(named)}"] if named else []


def remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader of the table must not overlook."""
    return [sentence for run in runs for sentence in _remarks(run)]


def _gain(run: Run, baseline: Run) -> str:
    if not run["exposure"].get("windows"):
        left = amount(run["exposure"].get("still_open"))
        return f"{run['domain']}: no flush ended in this time; {left} unmapped IOVAs were reachable to the end."
    parts = []
    if baseline["domain"] in STRICT and baseline["pairs_per_s"]:
        parts.append(f"{times(run['pairs_per_s'] / baseline['pairs_per_s'])} the pairs of {baseline['domain']}")
    parts.append(f"a device could reach unmapped pages for up to {duration(run['exposure']['max_ns'])}")
    return f"{run['domain']}: {', but '.join(parts)}."


def _queues_compared(by_name: dict[str, Run]) -> list[str]:
    if "DMA-FQ" not in by_name or "DMA-SQ" not in by_name:
        return []
    each, single = (_unmaps_per_flush(by_name[name]) for name in ("DMA-FQ", "DMA-SQ"))
    if not each or not single:
        return []
    counts = f"DMA-FQ flushed everything once in {amount(round(each))} unmaps, DMA-SQ once in {amount(round(single))}"
    return [f"{counts}: {times(single / each)} as rarely."]


def _unmaps_per_flush(run: Run) -> float | None:
    flushes = run["counters"]["Global RPCITs"]
    return run["ops"] / flushes if flushes else None


def _policy(run: Run) -> Iterator[str]:
    policy = run.get("policy")
    if policy and run["queue"]:
        yield f"the policy {policy['name']} ({policy['key']}) decides about the queue."


def _switches(run: Run) -> Iterator[str]:
    switches = run.get("switches")
    if switches:
        refused = sum(1 for switch in switches if switch["errno"])
        yield f"writes to sysfs under load: {len(switches)}, refused: {refused}; ended as {run['type_at_end']}."


def _violations(run: Run) -> Iterator[str]:
    if not run["violations"]:
        if run.get("bugs"):
            occasions = dict.fromkeys(_OCCASIONS[bug] for bug in run["bugs"])
            yield f"{' and '.join(run['bugs'])} had no occasion to show: {'; '.join(occasions)}."
        return
    kinds = run.get("violations_by_kind", {"handed_out_twice": run["violations"]})
    if run.get("bugs"):
        whose = f"That is {' and '.join(run['bugs'])}, on purpose."
    elif run.get("policy"):
        whose = f"Linux's own policy does not do that: look at {run['policy']['name']}, with emu explore --policy."
    else:
        whose = "This is a bug."
    for kind, count in kinds.items():
        if count:
            yield f"{count} violations: {_WHAT_HAPPENED.get(kind, kind)}. {whose}"
    for own in run.get("functions", ()):
        if own["violations"]:
            yield f"{own['violations']} of them in {own['name']}."
    for first in run.get("first_violations", ()):
        yield f"at {first['at_s']:.6f} s, {first['by']}, IOVA {first['iova']}: {first['what']}."


def _remarks(run: Run) -> Iterator[str]:
    name = run["domain"]
    yield from (f"{name}: {sentence}" for sentence in (*_policy(run), *_switches(run), *_violations(run)))
    if run["overruns"]:
        yield (
            f"{name}: {run['overruns']} ring overruns lost {run.get('overrun_iovas', 0)} IOVAs, as they do in Linux; "
            "--on-overrun wait avoids it."
        )
    if run.get("map_failures"):
        reason = "because the device was in error" if run.get("device_error") else "for want of IOVAs or host resources"
        yield f"{name}: {run['map_failures']} maps failed {reason}."
