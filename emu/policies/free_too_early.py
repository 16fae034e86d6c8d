"""Wrong on purpose, by one word: what `emu explore` and the oracle are there to find.

An entry is stamped with how many flushes had started when it was queued, and may be freed once more than that have
finished. Here it is freed once more have started: of the two counters that look alike, the other.
"""

from typing import Any

from emu.native.atomics import read_once


def may_free(cpu: Any, cookie: Any, entry: Any, counter: int) -> bool:
    """While the flush that would make it reusable may still be under way."""
    return entry.counter < read_once(cookie.fq_flush_start_cnt, "counter")
