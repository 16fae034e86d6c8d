"""What a watched run has found, for readers: the sums that do not balance, and the first violations in sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emu.oracle.findings import KEPT_OF_EACH_KIND, VIOLATION_KINDS

if TYPE_CHECKING:
    from emu.machine.recording import Recording

BOOKS = ("books_of_pages", "books_of_iovas", "books_of_tables", "books_of_ranges", "lost_iovas")
"""Kinds of violation that are seen when all has stopped."""
_PAGE_STATES = ("free", "in use", "unmapped")


def books_out_of_balance(sums: dict[str, Any] | None, most_pages: int) -> dict[str, int]:
    """By how much each of the sums is wrong that must balance, beyond what the dead can have had in hand.

    Args:
        sums: None where nothing is known of them, then all is 0.
        most_pages: of one mapping.
    """
    if sums is None:
        return dict.fromkeys(BOOKS, 0)
    in_hand = sums["in_hand_of_the_dead"]
    in_hand_pages = in_hand * most_pages
    pages = abs(sums["mapped_pages"] - sums["unmapped_pages"] - sums["live_pages"])
    iovas = abs(sums["queued"] + sums["reclaimed"] + sums["overrun"] - sums["unmapped"])
    return {
        "books_of_pages": max(pages - in_hand_pages, 0),
        "books_of_iovas": max(iovas - in_hand, 0),
        "books_of_tables": max(sums["table_pages_left"] - in_hand_pages, 0),
        "books_of_ranges": max(abs(sums["ranges_left"] - sums["overrun"]) - in_hand, 0),
        "lost_iovas": sums["lost_iovas"],
    }


def first_violations(recording: Recording) -> list[dict[str, Any]]:
    """The first violations of each kind, the earliest first: when, who, which page, and a sentence that says what."""
    names = [*recording.names, "supervisor"]
    start_ns = min((int(at) for at in recording.contexts["started_ns"] if at), default=0)
    records = [record for own in recording.findings for record in own["records"][: own["kept"]]]
    records.sort(key=lambda record: int(record["at_ns"]))
    kept = [0] * len(VIOLATION_KINDS)
    first = []
    for record in records:
        kept[record["kind"]] += 1
        if kept[record["kind"]] > KEPT_OF_EACH_KIND:
            continue
        kind = VIOLATION_KINDS[record["kind"]]
        first.append(
            {
                "kind": kind,
                "at_s": round((int(record["at_ns"]) - start_ns) / 1e9, 9),
                "by": names[int(record["cpu"])],
                "iova": f"{int(record['pfn']) << 12:#x}",
                "what": _SENTENCES[kind](int(record["expected"]), int(record["found"])),
            }
        )
    return first


def _entry(pte: int) -> str:
    return "an invalid entry" if pte & 0x400 else f"{pte:#x}"


_SENTENCES: dict[str, Callable[[int, int], str]] = {
    "handed_out_twice": lambda _expected, found: f"handed out while it was {_PAGE_STATES[found]}",
    "given_back_twice": lambda _expected, _found: "given back while it was free",
    "given_back_while_mapped": lambda _expected, found: f"given back while its entry was {found:#x}",
    "given_back_unflushed": lambda expected, found: (
        f"allocatable before a flush that began after its unmap had ended: flush {expected} or a later one was needed, "
        f"the latest that had ended was {found}"
    ),
    "mapped_over": lambda _expected, found: f"mapped while its entry was {found:#x}",
    "unmapped_twice": lambda _expected, _found: "unmapped while its entry was invalid",
    "changed_unseen": lambda expected, found: (
        f"the hypervisor found {found:#x} where it had shadowed {expected:#x}, and never saw it invalid between"
    ),
    "shadow_differs": lambda expected, found: (
        f"live, its entry is {_entry(expected)}, but the hypervisor shadows {_entry(found)}"
    ),
    "stale_after_flush": lambda expected, found: (
        f"a device reached {found:#x} although "
        + (
            f"flush {expected}, which began after its unmap, had ended"
            if expected
            else "the address had been given back"
        )
    ),
    "stale_after_reuse": lambda expected, found: (
        f"a device reached {found:#x} by an old entry after the address had been handed out for {_entry(expected)}"
    ),
    "no_such_ring": lambda expected, found: (
        f"the policy put it on ring {found}, but there are {expected}, counted from 0; another was taken"
    ),
    "no_such_timeout": lambda expected, found: (
        f"the policy armed the timer for {found} ns, which is not in 1 to {expected}; the usual time was taken"
    ),
}
"""From what was expected and found to a sentence, for each kind."""
