"""How often a replay of attempts ran out of addresses, beside the kernel: failing calls, roll-backs, the first one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.capture.attempts import Attempts
from emu.capture.ftrace import Capture
from emu.iommu.tracepoints import EVENT_MAP
from emu.native.virtual import PS, START_PS


@dataclass(slots=True)
class _Outcome:
    """What became of an attempt in the replay: maps made before one failed, which one did, and when in the run."""

    mapped: int = 0
    failed_ns: int | None = None
    was_refused: bool = False


def compare_attempts(capture: Capture, attempts: Attempts, events: npt.NDArray[np.void]) -> dict[str, Any]:
    """Put a replay's failures beside the kernel's.

    Args:
        capture: what was replayed.
        attempts: its attempts.
        events: what happened in a run of `attempts_workload()` of both on virtual clocks, see `EventCollector`.

    Returns:
        `failures` (map calls that failed), `roll_backs` (unmaps of what had been mapped before one), `first_failure_s`
        (on the trace's clock; the kernel's is when the map before it was made; None where nothing failed) and
        `first_failed_attempt` (its place in `attempts`), each {"kernel", "emu"}. `matched`, `extra` and `missed`:
        calls that failed in both, only here, and only there.

    Raises:
        ValueError: the events are not those of such a run, from its beginning to its end.
    """
    outcomes, others_failed = _outcomes(capture, attempts, events)
    failures = [(o.failed_ns, number, o) for number, o in enumerate(outcomes) if o.failed_ns is not None]
    emu_ns, emu_first, _ = min(failures, default=(None, None, None), key=lambda failure: failure[:2])
    kernel_first = int(np.argmax(attempts.attempts["failed"])) if attempts.failed else None
    start_ns = int(capture.events["time_ns"][0]) - START_PS // PS
    matched = sum(outcome.was_refused for outcome in outcomes)
    return {
        "failures": {"kernel": attempts.failed, "emu": len(failures) + others_failed},
        "roll_backs": {"kernel": attempts.roll_backs, "emu": sum(outcome.mapped for *_, outcome in failures)},
        "first_failure_s": {
            "kernel": None if kernel_first is None else _last_map_ns(capture, attempts, kernel_first) / 1e9,
            "emu": None if emu_ns is None else (emu_ns + start_ns) / 1e9,
        },
        "first_failed_attempt": {"kernel": kernel_first, "emu": emu_first},
        "matched": matched,
        "extra": len(failures) + others_failed - matched,
        "missed": sum(o.failed_ns is None for o, row in zip(outcomes, attempts.attempts, strict=True) if row["failed"]),
    }


def median_of(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several replays of the same attempts as one: what `compare_attempts` returns, each number the median of them.

    Each {"kernel", "emu"} also has the `least` and the `most` of the replays (None where nothing failed).
    """
    first = compared[0]
    return {
        name: {"kernel": said["kernel"], **_spread([each[name]["emu"] for each in compared])}
        if isinstance(said, dict)
        else median_low([each[name] for each in compared])
        for name, said in first.items()
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"emu": None, "least": None, "most": None}
    return {"emu": median_low(known), "least": min(known), "most": max(known)}


def _last_map_ns(capture: Capture, attempts: Attempts, attempt: int) -> int:
    return int(capture.events["time_ns"][capture.mappings["map_event"][attempts.maps_of(attempt)[-1]]])


def _outcomes(capture: Capture, attempts: Attempts, events: npt.NDArray[np.void]) -> tuple[list[_Outcome], int]:
    """What became of each attempt, and how many maps failed that belong to none."""
    outcomes = [_Outcome() for _ in attempts.attempts]
    others_failed = 0
    for cpu in range(capture.cpus):
        made = events[(events["code"] == EVENT_MAP) & (events["cpu"] == cpu)]
        calls = iter(zip(made["a"].tolist(), made["ticks"].tolist(), strict=True))
        try:
            for attempt, is_refused in _maps_tried(capture, attempts, cpu):
                outcome = outcomes[attempt] if attempt >= 0 else _Outcome()
                if outcome.failed_ns is not None:
                    continue
                pfn, ended_ns = next(calls)
                if pfn:
                    outcome.mapped += not is_refused
                    continue
                outcome.failed_ns, outcome.was_refused = ended_ns, is_refused
                others_failed += attempt < 0
        except StopIteration:
            raise ValueError(f"map events of CPU {cpu} are missing") from None
        if next(calls, None) is not None:
            raise ValueError(f"CPU {cpu} has more map events than the attempts explain")
    return outcomes, others_failed


def _maps_tried(capture: Capture, attempts: Attempts, cpu: int) -> Iterator[tuple[int, bool]]:
    """The maps in a CPU's program, in order: each one's attempt (-1: none), and whether it is the one refused there."""
    rows = attempts.attempts
    attempt_of = np.full(len(capture.mappings), -1, np.int64)
    attempt_of[attempts.mappings] = np.repeat(np.arange(len(rows)), rows["count"])
    ends_with = {int(attempts.maps_of(n)[-1]) for n in np.flatnonzero(rows["wanted_pages"]).tolist()}
    mine = np.flatnonzero(capture.events["cpu"][capture.mappings["map_event"]] == cpu)
    for mapping, attempt in zip(mine.tolist(), attempt_of[mine].tolist(), strict=True):
        yield attempt, False
        if mapping in ends_with:
            yield attempt, True
