"""What a policy in Python costs on the hot path: the loops of bench_hot_path.py, with a policy's file and without.

    python tools/bench_policy.py [--quick] [--only CASE:POLICY] [--json]

The two sides work in turn on the same memory, in this one process, bound to one core: the code built in, and the same
compiled once more for a policy's contexts. What counts is the median of the differences of neighbouring turns; times by
themselves say little on a shared machine. Turns are whole fillings of the ring, on DMA-FQ, where every function of a
policy is asked.

ring   `queue_iova` on a ring of 256, with what it frees, and the flush of every 255th.
pair   `dma_map` + `dma_unmap` of one page.

itself           the code built in, compiled once more under another name: what two compilations of the same code, at
                 other addresses, differ by. Below that nothing can be seen.
kernel           a file with every function, each as it is built in; it has the limit.
per_node_queues, adaptive_timeout
                 of one CPU: they decide otherwise only where there are more, or when the timer is armed.

Exit code 0: `kernel` costs at most 2 ns more than nothing, both ways; 1: more; 2: the sides do not do the same.
"""

# ruff: noqa: E402 - this checkout's emu must be found first

from __future__ import annotations

import argparse
import json
import mmap
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

from bench_hot_path import Bench, Side, bench_pair, bench_ring
from numba.core import config as numba_config
from paired import middle_half, ratio_of, ratio_text

from emu.analysis.environment import environment
from emu.machine.calibration import bound_to_one_core
from emu.machine.lifecycle import init_machine
from emu.machine.policy import entry_for
from emu.native.compile import compile_entries

MOST_NS = 2.0
LIMITED = "kernel"
ITSELF = "itself"
MEASURED = [
    (case, policy) for policy in (ITSELF, LIMITED, "per_node_queues", "adaptive_timeout") for case in ("ring", "pair")
]
_RING = 256
_BATCH = 8 * (_RING - 1)
_ITSELF = '"""Asks for nothing."""\n\n\ndef rings(cpus: int) -> int:\n    return cpus\n'


def _bench_of(policy: str, intercept: list[tuple[str, str, Any]]) -> Bench:
    return Bench([("domain", "policy", policy), ("domain", "fq_size", _RING), *intercept], "DMA-FQ")


def _side(case: str, entry: Any, bench: Bench, pfns: Any) -> Side:
    """A loop over a machine, and the operations of its turn."""
    if case == "ring":
        return Side(lambda count: entry(bench.context, pfns.ctypes.data, _BATCH, count // _BATCH), 4 * _BATCH)
    return Side(lambda count: entry(bench.context, count), 32 * (_RING - 1))


def _turns(built_in: Side, asked: Side, repetitions: int) -> Iterator[tuple[float, float]]:
    """What an operation took, in ns, in neighbouring turns; who is first alternates."""
    for side in (built_in, asked):
        side.turn()
    for repetition in range(repetitions):
        if repetition % 2:
            asked_ns, built_in_ns = asked.turn(), built_in.turn()
        else:
            built_in_ns, asked_ns = built_in.turn(), asked.turn()
        yield built_in_ns, asked_ns


def _same(bench: Bench, built_in: Side, asked: Side) -> bool:
    """Whether both leave the same behind when they begin from the same."""
    before = bench.save()
    built_in.turn()
    left = bench.digest()
    bench.restore(before)
    asked.turn()
    return left == bench.digest()


def measure(blocks: int, repetitions: int, measured: list[tuple[str, str]]) -> dict[str, Any]:
    """Everything, as printed by --json; each block has memory at other addresses."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    differ: list[str] = []
    spacers = []
    pfns = np.zeros(_BATCH, np.int64)
    before = environment()
    with tempfile.TemporaryDirectory(prefix="emu-bench-") as folder, bound_to_one_core():
        own = Path(folder) / "itself.py"
        own.write_text(_ITSELF)
        for block in range(blocks):
            spacers.append(mmap.mmap(-1, (block + 1) * 17 * mmap.PAGESIZE))
            for case, name in measured:
                is_same, turns = _measure_one(case, str(own) if name == ITSELF else name, pfns, repetitions)
                found.setdefault((case, name), []).extend(turns)
                if name in (ITSELF, LIMITED) and not is_same:
                    differ.append(f"{case} of {name}")
    rows = [_row(case, policy, turns) for (case, policy), turns in found.items()]
    judged = [row["difference_ns"] for row in rows if row["policy"] == LIMITED]
    passed = max(judged, default=0.0) <= MOST_NS
    return {"environment": before, "limit_ns": MOST_NS, "cases": rows, "differ": sorted(set(differ)), "passed": passed}


def _measure_one(case: str, policy_name: str, pfns: Any, repetitions: int) -> tuple[bool, list[tuple[float, float]]]:
    """Whether both sides do the same to a machine, and their turns on it."""
    usual = {"ring": bench_ring, "pair": bench_pair}[case]
    bench = _bench_of(policy_name, [("hypervisor", "intercept_ns", 0.0), ("domain", "aperture_mb", 16)])
    try:
        asking = entry_for(bench.policy, usual)
        compile_entries((init_machine, usual, asking))
        built_in, asked = _side(case, usual, bench, pfns), _side(case, asking, bench, pfns)
        # Rings full, ranges and tables made, the timer armed.
        built_in.run(2 * built_in.operations)
        is_same = _same(bench, built_in, asked)
        return is_same, list(_turns(built_in, asked, repetitions))
    finally:
        bench.segment.unlink()


def _row(case: str, policy: str, turns: list[tuple[float, float]]) -> dict[str, Any]:
    built_in, asked = zip(*turns, strict=True)
    differences = [one - other for other, one in turns]
    return {
        "case": case,
        "policy": policy,
        "built_in_ns": median(built_in),
        "asked_ns": median(asked),
        "difference_ns": median(differences),
        "middle_half_ns": middle_half(differences),
        "ratio": ratio_of(asked, built_in),
        "turns": len(turns),
    }


def report(found: dict[str, Any]) -> Iterator[str]:
    """What was found, in lines."""
    place = found["environment"]
    yield f"{place['cpu']}, {place['cores_usable']} cores, load {place['load'][0]}"
    yield ""
    yield f"{'':5}{'policy':18}{'built in':>9}{'asked':>9}{'more':>9}  {'middle half':18}{'ratio':>8}"
    for row in found["cases"]:
        low, high = row["middle_half_ns"]
        half = f"{low:+.2f} to {high:+.2f}"
        yield (
            f"{row['case']:5}{row['policy']:18}{row['built_in_ns']:6.1f} ns{row['asked_ns']:6.1f} ns"
            f"{row['difference_ns']:+6.2f} ns  {half:18}  {ratio_text(row['ratio'])}"
        )
    verdict = "ok" if found["passed"] else "FAILED"
    yield f"Medians over {found['cases'][0]['turns']} pairs of turns; {LIMITED}: at most {MOST_NS:g} ns more: {verdict}"


def main() -> int:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description="Measure what a policy costs on the hot path.")
    parser.add_argument("--quick", action="store_true", help="a few turns only: shows that it works, times mean little")
    parser.add_argument(
        "--only", action="append", choices=[":".join(one) for one in MEASURED], help="measure this alone; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if numba_config.DISABLE_JIT:
        print("skipped: NUMBA_DISABLE_JIT is set, so nothing is compiled")
        return 0
    measured = [one for one in MEASURED if not options.only or ":".join(one) in options.only]
    found = measure(*((1, 3) if options.quick else (8, 24)), measured)
    print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else "\n".join(report(found)))
    if found["differ"]:
        print(f"bench_policy: not the same is done by {', '.join(found['differ'])}", file=sys.stderr)
        return 2
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
