"""What the oracle costs: the throughput of a run that is watched, as a part of that of one that is not.

    python tools/bench_oracle.py [--cpus 2] [--repeat 15] [--seconds 0.4] [--json]

The default load on lazy domains, on real processes. Watched and unwatched runs take turns, which of the two is first
changes every time, and each pair of neighbours gives one ratio; the median of the ratios is shown with the range of
the middle half. What other programs do to a pair, they do to both.

Exit code 0: no row that is judged costs more than 15 %; 1: one does; 2: a machine could not be run.
"""

# ruff: noqa: E402 - this checkout's emu must be found first

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from paired import ratio_of, ratio_text

from emu.config import DomainType, load
from emu.experiment import MachineError, run_machine
from emu.workload.build import build_workload

DOMAINS: tuple[DomainType, ...] = ("DMA-FQ", "DMA-SQ")
PRESETS = ("kvm", "lpar")
MOST_COST = 0.15


def pairs_per_s(preset: str, domain: DomainType, cpus: int, seconds: float, *, check: bool) -> float:
    """One run's throughput.

    Raises:
        MachineError: it could not be started, or a process of it died.
    """
    overrides = [
        ("machine", "cpus", cpus),
        ("machine", "seconds", seconds),
        ("machine", "check", check),
        ("domain", "types", [domain]),
    ]
    config = load(None, preset, overrides)
    outcome = run_machine(config, domain, build_workload(config))
    if outcome.died:
        raise MachineError(outcome.died)
    return float(outcome.run["pairs_per_s"])


def main() -> int:
    """Print a row for each preset and domain; 1 when one costs too much."""
    parser = argparse.ArgumentParser(description="throughput with the oracle on, as a part of that without it")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    try:
        for preset in PRESETS:
            for domain in DOMAINS:
                # The first run compiles.
                pairs_per_s(preset, domain, arguments.cpus, 0.05, check=True)
                both = []
                for i in range(arguments.repeat):
                    order = (True, False) if i % 2 else (False, True)
                    found = {
                        check: pairs_per_s(preset, domain, arguments.cpus, arguments.seconds, check=check)
                        for check in order
                    }
                    both.append((found[True], found[False]))
                watched, unwatched = zip(*both, strict=True)
                row = {
                    "preset": preset,
                    "domain": domain,
                    "unwatched_pairs_per_s": median(unwatched),
                    "watched_pairs_per_s": median(watched),
                    **ratio_of(watched, unwatched),
                }
                rows.append(row)
                if not arguments.json:
                    counts = f"{row['unwatched_pairs_per_s']:>12.0f}{row['watched_pairs_per_s']:>12.0f}"
                    print(f"{preset:<6}{domain:<8}{counts} pairs/s, ratio {ratio_text(row)}", flush=True)
    except MachineError as error:
        print(f"bench_oracle: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(rows))
    return int(any(row["ratio"] < 1 - MOST_COST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
