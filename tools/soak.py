"""Very many operations across all schemes with the oracle on, and how many violations it found: there must be none.

    python tools/soak.py [--ops 1000000000] [--devices 1] [--seed 1] [--json]

An operation is a map or an unmap. Every scheme that translates runs on real processes, most of the operations where
flushes are cheap (lpar, bare-metal), a smaller part where a hypervisor shadows the table (kvm, and kvm with little
room in the host, so that it runs out of resources). The work is cut into slices, each a machine of its own with
another seed, load, number of CPUs, size of queue and way of completion, all from the seed given; devices do DMA
meanwhile. On a terminal it shows how far it is.

Exit code 0: no violation; 1: at least one, said in a line each; 2: a machine could not be run, or its process died;
130: interrupted, with what was done so far.
"""

# ruff: noqa: E402 - this checkout's emu must be found first

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from emu.config import Config, DomainType, load
from emu.experiment import MachineError, run_machine
from emu.workload.build import build_workload

Override = tuple[str, str, Any]

NO_ROOM: list[Override] = [("hypervisor", "mapping_limit", 4000)]
SHARES: dict[tuple[str, DomainType], float] = {
    ("lpar", "DMA-FQ"): 0.40,
    ("lpar", "DMA-SQ"): 0.20,
    ("lpar", "s390-lazy"): 0.10,
    ("lpar", "DMA"): 0.015,
    ("lpar", "s390-strict"): 0.015,
    ("bare-metal", "DMA-FQ"): 0.175,
    ("bare-metal", "DMA-SQ"): 0.075,
    ("bare-metal", "DMA"): 0.01,
    ("kvm", "DMA-FQ"): 0.001,
    ("kvm", "DMA-SQ"): 0.003,
    ("kvm", "s390-lazy"): 0.003,
    ("kvm", "DMA"): 0.001,
    ("kvm", "s390-strict"): 0.001,
    ("kvm, no room", "DMA-SQ"): 0.0005,
    ("kvm, no room", "s390-lazy"): 0.0005,
}
"""Part of all operations that each preset and scheme gets: about the same time for most of them."""
MOST_PAIRS = 5_000_000
"""Of one slice."""
_CPUS = (2, 2, 3, 4)


@dataclass(slots=True)
class Row:
    """One preset and scheme.

    Attributes:
        preset, domain: what it is. wanted: operations to do.
        operations, seconds: done so far. accesses, stale: of the devices.
        violations: found. first: the first of them in sentences.
    """

    preset: str
    domain: DomainType
    wanted: int
    operations: int = 0
    seconds: float = 0.0
    accesses: int = 0
    stale: int = 0
    violations: int = 0
    first: list[str] = field(default_factory=list)


def slice_of(row: Row, pairs: int, devices: int, chance: random.Random) -> Config:
    """The description of a machine that does so many pairs."""
    queue = row.domain in ("DMA-FQ", "DMA-SQ")
    overrides: list[Override] = [
        ("machine", "cpus", chance.choice(_CPUS)),
        ("machine", "ops", pairs),
        ("machine", "seed", chance.randrange(1 << 31)),
        ("machine", "check", True),
        ("machine", "devices", devices),
        ("domain", "types", [row.domain]),
        # A large queue must not hold all addresses there are: then the load waits for its timer.
        ("domain", "aperture_mb", chance.choice((2048, 4096) if row.domain == "DMA-SQ" else (256, 1024, 4096))),
        ("workload", "name", chance.choice(("nvme", "nvme", "nic", "map_benchmark"))),
        ("workload", "completion", chance.choice(("same", "same", "other"))),
        ("workload", "granule", chance.choice((1, 3, 8))),
        *([("domain", "fq_size", chance.choice((64, 256, 4096)))] if queue and chance.random() < 0.5 else []),
        *([("domain", "on_overrun", chance.choice(("kernel", "wait")))] if queue else []),
        *(NO_ROOM if "no room" in row.preset else []),
    ]
    return load(None, row.preset.split(",")[0], overrides)


def soak(rows: list[Row], devices: int, seed: int) -> Iterator[Row]:
    """Slice after slice, rows in turns; yields the row that has just got on.

    Raises:
        MachineError: a machine could not be started, or a process of it died.
    """
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    left = list(rows)
    while left:
        for row in list(left):
            pairs = min(-(-(row.wanted - row.operations) // 2), MOST_PAIRS)
            config = slice_of(row, pairs, devices, chance)
            since = time.perf_counter()
            outcome = run_machine(config, row.domain, build_workload(config))
            row.seconds += time.perf_counter() - since
            _add(row, outcome.run, config)
            if outcome.died:
                raise MachineError(outcome.died)
            if outcome.interrupted:
                raise KeyboardInterrupt
            if row.operations >= row.wanted:
                left.remove(row)
            yield row


def _add(row: Row, run: dict[str, Any], config: Config) -> None:
    row.operations += run["maps"] + run["unmaps"]
    row.violations += run["violations"]
    devices = run["exposure"]["devices"]
    if devices:
        row.accesses += devices["accesses"]
        row.stale += devices["stale"]
    if run["violations"]:
        kinds = {kind: count for kind, count in run["violations_by_kind"].items() if count}
        where = f"{row.preset} {row.domain}, seed {config.machine.seed}, {config.machine.cpus} CPUs"
        row.first.append(f"{where}: {kinds}")
        row.first += [f"  {v['at_s']:.6f} s, {v['by']}, IOVA {v['iova']}: {v['what']}" for v in run["first_violations"]]


def _show(rows: list[Row], since: float) -> None:
    """How far it is, on a terminal."""
    if not sys.stderr.isatty():
        return
    done, wanted = sum(row.operations for row in rows), sum(row.wanted for row in rows)
    # Rows differ in speed, so what is left is counted row by row.
    left_s = sum((row.wanted - row.operations) / row.operations * row.seconds for row in rows if row.operations)
    found = sum(row.violations for row in rows)
    print(
        f"\r{done / 1e6:9.1f} of {wanted / 1e6:.0f} million operations, {found} violations, "
        f"{time.perf_counter() - since:.0f} s, {max(left_s, 0):.0f} s left   ",
        end="",
        file=sys.stderr,
        flush=True,
    )


def _print(rows: list[Row], seconds: float) -> None:
    print(f"{'preset':<14}{'domain':<13}{'operations':>13}{'s':>8}{'DMA':>11}{'stale':>10}{'violations':>12}")
    for row in rows:
        print(
            f"{row.preset:<14}{row.domain:<13}{row.operations:>13}{row.seconds:>8.1f}{row.accesses:>11}{row.stale:>10}"
            f"{row.violations:>12}"
        )
    operations, violations = sum(row.operations for row in rows), sum(row.violations for row in rows)
    print(f"{operations} operations in {seconds:.0f} s, {violations} violations")
    for row in rows:
        for line in row.first:
            print(line)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description="very many operations with the oracle on")
    parser.add_argument("--ops", type=int, default=1_000_000_000, help="maps and unmaps together")
    parser.add_argument("--devices", type=int, default=1, help="that do DMA meanwhile")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [Row(preset, domain, max(round(arguments.ops * share), 2)) for (preset, domain), share in SHARES.items()]
    since, code = time.perf_counter(), 0
    try:
        for _ in soak(rows, arguments.devices, arguments.seed):
            _show(rows, since)
    except KeyboardInterrupt:
        code = 130
    except MachineError as error:
        print(f"\nsoak: {error}", file=sys.stderr)
        code = 2
    seconds = time.perf_counter() - since
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if arguments.json:
        print(
            json.dumps(
                {"seconds": seconds, "rows": [{name: getattr(row, name) for name in Row.__slots__} for row in rows]}
            )
        )
    else:
        _print(rows, seconds)
    return code or int(any(row.violations for row in rows))


if __name__ == "__main__":
    sys.exit(main())
