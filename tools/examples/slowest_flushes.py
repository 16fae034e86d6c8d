#!/usr/bin/env python3
"""The slowest flushes of a run, from its event log: `slowest_flushes.py RUN [COUNT]`. Needs duckdb."""

import sys
from pathlib import Path

import duckdb

COLUMNS = dict.fromkeys(("event", "domain", "role", "cause"), "VARCHAR")
COLUMNS |= dict.fromkeys(("at_ns", "entries", "took_ns", "wait_ns", "service_ns", "changed"), "BIGINT")

QUESTION = """
    SELECT domain, role, cause, at_ns / 1e9 AS ended_s, took_ns / 1e3 AS took_us, wait_ns / 1e3 AS wait_us,
           service_ns / 1e3 AS service_us, entries, changed
    FROM read_json(?, format = 'newline_delimited', columns = ?)
    WHERE event = 'flush_finished'
    ORDER BY took_ns DESC, at_ns
    LIMIT ?
"""

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    log = str(Path(sys.argv[1]) / "events.jsonl")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    found = duckdb.execute(QUESTION, [log, COLUMNS, count])
    print(*(column[0] for column in found.description), sep="\t")
    for row in found.fetchall():
        print(*(f"{value:.3f}" if isinstance(value, float) else value for value in row), sep="\t")
