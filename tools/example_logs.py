"""A question of one's own to exported logs: who waited behind a flush of everything, and how long.

    emu logs RUN --export tables
    python tools/example_logs.py tables

A request to the hypervisor that is posted while a flush of everything is served waits for its end; so every flush is
put beside the requests of others that were posted between its beginning and its end. Needs a run with --record.
"""

from __future__ import annotations

import sys

import duckdb

QUERY = """\
SELECT f.run, f.domain, f.cause, count(DISTINCT (f.role, f.started_ns)) AS flushes,
       count(*) AS requests_behind, round(sum(r.wait_ns) / 1e6, 3) AS waited_ms
FROM read_parquet(getvariable('folder') || '/flushes.parquet') f
JOIN read_parquet(getvariable('folder') || '/requests.parquet') r
  ON r.run = f.run AND r.domain = f.domain AND r.role != f.role
 AND r.posted_ns BETWEEN f.started_ns AND f.finished_ns
GROUP BY ALL ORDER BY ALL"""


def main() -> int:
    """Ask, and print."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with duckdb.connect() as connection:
        connection.execute("SET VARIABLE folder = ?", [sys.argv[1]])
        try:
            print(connection.execute(QUERY).df().to_string(index=False))
        except duckdb.IOException as error:
            print(f"example_logs.py: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
