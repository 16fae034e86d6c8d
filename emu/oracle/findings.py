"""What a watched run has found: how many violations of each kind, and the first few of them in detail."""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.native.compile import slow
from emu.native.record import address_of, element, int64_t, struct
from emu.native.time import now_ns

VIOLATION_KINDS = (
    "handed_out_twice",
    "given_back_twice",
    "given_back_while_mapped",
    "given_back_unflushed",
    "mapped_over",
    "unmapped_twice",
    "changed_unseen",
    "shadow_differs",
    "stale_after_flush",
    "stale_after_reuse",
    "no_such_ring",
    "no_such_timeout",
)
"""Names of the kinds that are found while a machine runs, by their numbers; docs/oracle.md explains them."""
(
    HANDED_OUT_TWICE,
    GIVEN_BACK_TWICE,
    GIVEN_BACK_WHILE_MAPPED,
    GIVEN_BACK_UNFLUSHED,
    MAPPED_OVER,
    UNMAPPED_TWICE,
    CHANGED_UNSEEN,
    SHADOW_DIFFERS,
    STALE_AFTER_FLUSH,
    STALE_AFTER_REUSE,
    NO_SUCH_RING,
    NO_SUCH_TIMEOUT,
) = range(len(VIOLATION_KINDS))

KEPT_OF_EACH_KIND = 3
"""By each process of the machine."""

violation_t = struct(kind="i8", pfn="i8", cpu="i8", at_ns="i8", expected="i8", found="i8")
"""`cpu`: slot of the process that found it; `at_ns` by its clock; what the two values are depends on the kind."""

findings_t = struct(
    lines=("counts",),
    counts=(np.int64, (len(VIOLATION_KINDS),)),
    kept="i8",
    closed="i8",
    records=(violation_t, (len(VIOLATION_KINDS) * KEPT_OF_EACH_KIND,)),
)
"""Of one process at work for one function; only it writes here, but for `closed`. `kept` of the records are filled;
once it is `closed`, no further violation counts."""
_FINDINGS_BYTES = findings_t.itemsize


@slow
def note_violation(cpu: Any, kind: int, pfn: int, expected: int, found: int) -> None:
    """Count a violation, and keep it if it is one of this process's first of its kind.

    Args:
        cpu: whoever found it.
        kind: its number.
        pfn: the page that it is about.
        expected: what should have been there; what it is depends on the kind.
        found: what was there.
    """
    findings = element(findings_t, cpu.findings, cpu.function)
    if findings.closed:
        return
    count = element(int64_t, address_of(findings, "counts"), kind)
    count.value += 1
    if count.value > KEPT_OF_EACH_KIND:
        return
    record = element(violation_t, address_of(findings, "records"), findings.kept)
    record.kind = kind
    record.pfn = pfn
    record.cpu = cpu.slot
    record.at_ns = now_ns(cpu)
    record.expected = expected
    record.found = found
    findings.kept += 1


@slow
def close_findings(supervisor: Any, functions: int) -> None:
    """Count no further violation, of any process: what is found from here on is not the emulated kernel's doing."""
    first = supervisor.findings - supervisor.slot * functions * _FINDINGS_BYTES
    for i in range((supervisor.slot + 1) * functions):
        element(findings_t, first, i).closed = 1
