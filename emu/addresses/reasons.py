"""What is said of an allocation: that it got the kernel's address, or why it did not, and how sure that is."""

from __future__ import annotations

IDENTICAL = "identical"

SWAPPED = "another CPU's allocation, logged in the other order"
FLUSHING = "during another CPU's flush"
WORKER = "depot worker at another moment"
VERIFIED = (SWAPPED, FLUSHING, WORKER)
"""With one event moved, our own allocator gives the kernel's address."""

INTERRUPTED = "interrupted between allocation and line"
FREED_OTHERWISE = "freed by two CPUs, logged in the other order"
QUEUED_OTHERWISE = "queued before the flush, logged after it"
INFERRED = (INTERRUPTED, FREED_OTHERWISE, QUEUED_OTHERWISE)
"""The log has the events whose exchange would do it, near enough to each other; that was not replayed."""

QUEUED = "unexplained: still queued"
DEEPER = "unexplained: deeper in this CPU's magazine"
SHIFTED = "unexplained: this CPU's magazine filled from another place on"
MAGAZINE = "unexplained: another magazine"
ELSEWHERE = "unexplained: alone in another magazine"
RAN_OUT = "unexplained: this CPU's magazines ran out"
IN_TREE = "unexplained: free in the tree"
IN_USE = "unexplained: not free"
UNEXPLAINED = (QUEUED, DEEPER, SHIFTED, MAGAZINE, ELSEWHERE, RAN_OUT, IN_TREE, IN_USE)
"""Only put right; named after where the kernel's address was here."""
