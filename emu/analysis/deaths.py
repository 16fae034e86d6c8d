"""What the dead had in hand, and how long their locks took to find another owner."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

_MOST_IN_HAND = 3
"""Address ranges that a CPU or the timer can have in hand: its own, one of its ring, and one on the way to the tree."""


def most_in_hand(deaths: Sequence[dict[str, Any]]) -> int:
    """How many address ranges may be lost with the dead, at most; a hypervisor has none."""
    return sum(_MOST_IN_HAND for death in deaths if not death["role"].startswith("hypervisor"))


def handovers(deaths: Sequence[dict[str, Any]], tick_ns: float) -> dict[str, Any]:
    """How long those waited that took a dead one's lock over: from the death, or from when they came if that was later.

    Each death's `handovers` become {"lock", "ns"}. A kill by a fault is measured from the signal on; another death from
    when the supervisor noticed it.

    Returns:
        `count`, and `median` and `max` in ns, None where there was none.
    """
    for death in deaths:
        death["handovers"] = [
            {"lock": handover["lock"], "ns": round(handover["ticks"] * tick_ns) + handover["noticed_after_ns"]}
            for handover in death["handovers"]
        ]
    times = [handover["ns"] for death in deaths for handover in death["handovers"]]
    return {
        "count": len(times),
        "median": round(statistics.median(times)) if times else None,
        "max": max(times, default=None),
    }
