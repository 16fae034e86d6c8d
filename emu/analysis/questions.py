"""Questions to runs that are asked again and again: `emu logs --ask`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A question.

    Attributes:
        about: what it finds out, in a few words.
        sql: over the tables of emu.analysis.run_tables.
    """

    about: str
    sql: str


QUESTIONS = {
    "slowest-flushes": Question(
        "the flushes of everything that took longest",
        """\
SELECT run, domain, started_ns, took_ns, role, cause, entries, walked, changed, wait_ns, service_ns
FROM flushes
WHERE took_ns IS NOT NULL
ORDER BY took_ns DESC, started_ns
LIMIT 20""",
    ),
    "lock-contention": Question(
        "what was waited for: every lock and the hypervisor's queue, in the columns of perf lock contention",
        """\
SELECT run, domain, contended, total_wait_ns, max_wait_ns, avg_wait_ns, type, lock, caller
FROM locks
ORDER BY run, domain, total_wait_ns DESC, lock""",
    ),
    "breakdown": Question(
        "where the time of maps and unmaps went, of runs with --breakdown",
        """\
SELECT run, domain, op, stage, stage_ns, calls, total_ns, measured_ns
FROM breakdown
ORDER BY run, domain, op, stage_ns DESC""",
    ),
    "flush-causes": Question(
        "why everything was flushed, how much each flush freed and cost",
        """\
SELECT run, domain, cause, count(*) AS flushes,
       100.0 * count(*) / sum(count(*)) OVER (PARTITION BY run, domain) AS percent,
       avg(entries) AS entries, avg(walked) AS walked, avg(changed) AS changed,
       CAST(median(took_ns) AS BIGINT) AS median_ns, max(took_ns) AS longest_ns,
       sum(wait_ns) AS waited_ns, sum(service_ns) AS served_ns
FROM flushes
GROUP BY run, domain, cause
ORDER BY run, domain, flushes DESC, cause""",
    ),
    "exposure": Question(
        "how long devices could reach what had been unmapped",
        """\
SELECT run, domain, exposure_windows AS windows, if(windows > 0, exposure_p50_ns, NULL) AS p50_ns,
       if(windows > 0, exposure_p99_ns, NULL) AS p99_ns, if(windows > 0, exposure_max_ns, NULL) AS longest_ns,
       exposure_page_seconds AS page_seconds, exposure_still_open AS still_open,
       iovas_per_flush, 1e9 / nullif(pairs_per_s, 0) AS pair_ns
FROM runs
ORDER BY run, exposure_page_seconds DESC, domain""",
    ),
    "timeline": Question(
        "what happened when: each run in twenty parts",
        """\
WITH whole AS (
    SELECT run, domain, seconds * 1e9 / 20 AS part_ns, ops, hypervisor_busy_ns FROM runs WHERE seconds > 0
), points AS (
    SELECT run, domain, at_ns, pairs, busy_ns FROM samples
    UNION ALL SELECT run, domain, 0, 0, 0 FROM whole
    UNION ALL SELECT run, domain, part_ns * 20, ops, hypervisor_busy_ns FROM whole
), bounds AS (
    SELECT run, domain, part, part * part_ns AS bound_ns FROM whole, (SELECT unnest(range(21)) AS part)
), sums AS (  -- at each bound, on the line between the sample before it and the one after it
    SELECT b.run, b.domain, part, coalesce((bound_ns - p.at_ns) / nullif(q.at_ns - p.at_ns, 0), 0) AS share,
           p.pairs + share * (q.pairs - p.pairs) AS pairs, p.busy_ns + share * (q.busy_ns - p.busy_ns) AS busy_ns
    FROM bounds b
    ASOF JOIN points p ON b.run = p.run AND b.domain = p.domain AND b.bound_ns >= p.at_ns
    ASOF JOIN points q ON b.run = q.run AND b.domain = q.domain AND b.bound_ns <= q.at_ns
), looked AS (
    SELECT run, domain, least(greatest(floor(at_ns / part_ns), 0), 19) AS part, max(queued) AS most_queued,
           max(mapped_pages) AS most_mapped_pages, max(waiting) AS most_waiting
    FROM samples JOIN whole USING (run, domain) GROUP BY ALL
), flushed AS (
    SELECT run, domain, least(greatest(floor(started_ns / part_ns), 0), 19) AS part, count(*) AS flushes,
           max(took_ns) AS longest_flush_ns
    FROM flushes JOIN whole USING (run, domain) GROUP BY ALL
)
SELECT sums.run, sums.domain, CAST(sums.part * part_ns AS BIGINT) AS from_ns,
       1e9 * (later.pairs - sums.pairs) / part_ns AS pairs_per_s, most_queued, most_mapped_pages,
       CAST(later.busy_ns - sums.busy_ns AS BIGINT) AS served_ns, most_waiting,
       coalesce(flushes, 0) AS flushes, longest_flush_ns
FROM sums
JOIN sums AS later ON later.run = sums.run AND later.domain = sums.domain AND later.part = sums.part + 1
JOIN whole ON whole.run = sums.run AND whole.domain = sums.domain
LEFT JOIN looked ON looked.run = sums.run AND looked.domain = sums.domain AND looked.part = sums.part
LEFT JOIN flushed ON flushed.run = sums.run AND flushed.domain = sums.domain AND flushed.part = sums.part
ORDER BY sums.run, sums.domain, from_ns""",
    ),
}
"""The questions by name."""
