#!/usr/bin/env python3
"""How deep the queues of a run's domains were over time, as bars: `queue_depth.py RUN`. Needs nothing but Python."""

import json
import sys
from collections import defaultdict
from pathlib import Path

BARS = 20
WIDTH = 50

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    depths = defaultdict(list)
    with (Path(sys.argv[1]) / "events.jsonl").open(encoding="utf-8") as log:
        for entry in map(json.loads, log):
            if entry["event"] == "sample":
                depths[entry["domain"]].append((entry["at_ns"], entry["queued"]))
    for domain, samples in depths.items():
        most = max(depth for _, depth in samples)
        print(f"{domain}: at most {most} IOVAs waited for a flush")
        for at_ns, depth in samples[:: max(len(samples) // BARS, 1)]:
            print(f"{at_ns / 1e6:10.1f} ms {depth:8d} {'#' * (depth * WIDTH // max(most, 1))}")
