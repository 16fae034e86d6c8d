"""Block I/O as an NVMe driver does it: each CPU keeps a queue of requests under way, each a mapping of its own.

A request is mapped when it is submitted and unmapped when it completes. Where it completes is what the two programs
here differ in:

- On the CPU that submitted it, as with one interrupt for each queue. The queue is always full: one request completes,
  the next takes its slot. Completions overtake each other a little, as on a real drive.
- On the next CPU, as with fewer interrupts than CPUs. That CPU unmaps what it never mapped, so IOVAs wander from one
  CPU's cache to another's.

Why the second cannot deadlock. Number the requests of each CPU 0, 1, 2 … through all repetitions of the loop. Request k
takes slot k mod depth. After a prologue of depth - lag maps, step k of every CPU is: map the own request
k + depth - lag, then unmap request k of the CPU before. Sort the operations of all CPUs by their place in the program.
The map at step k needs the unmap at step k - lag of the next CPU (the slot's last tenant was request k - lag), and lag
is at least 1; the unmap at step k needs the map at step k - (depth - lag) of the CPU before, which stands ahead of it
even where that is the same step. So what an operation needs always stands at an earlier place. Of all operations not
yet done, one at the earliest place can thus run, whatever the others wait for; and when all CPUs stop at the same
place, they leave nobody waiting. With a depth of 2 or more, what an operation needs is even a whole step earlier, so
some CPUs may do one pair more than others. The loop is a multiple of `depth` steps long, so a repetition finds every
slot as the first one did.

With `think_ns` every request of the loop takes its CPU some time beyond its map and unmap, as block layer, driver and
interrupt do: then throughput is bounded by that too, and CPUs do not march in step. It waits for nobody, so all of the
above holds with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emu.config import Config
from emu.workload.program import OP_MAP, OP_UNMAP, OP_WAIT, Program, Workload, op_t

PAGE_KB = 4

_LISTS = 64
"""Scatter-gather lists drawn for each block size; requests pick among them."""
_SINGLE_PAGE = 0.9
_LONGEST_RUN = 32
"""A segment is a single page with probability 0.9, else a run of k = 2 … 32 adjoining pages with weight 1/k². In the
captures of requests up to 128 KiB on kernel 6.12, 90 % (s390x) and 96 % (x86) of the segments are single pages, and the
mean is 1.5 and 1.2 pages; here it is 1.4, less where the end of the request cuts a run short."""


def nvme_workload(config: Config, pairs: int) -> Workload:
    """Build the load of `queue_depth` block requests under way on each CPU.

    Args:
        config: the run; `block_kb`, `queue_depth`, `completion` and `think_ns` of its workload count.
        pairs: about how many map+unmap pairs the loop of each CPU should have. It has at least `queue_depth`.
    """
    load, cpus = config.workload, config.machine.cpus
    depth = load.queue_depth
    root = np.random.SeedSequence(config.machine.seed)
    mix = _block_mix(load.block_kb, np.random.default_rng(root.spawn(1)[0]))
    rounds = max(1, pairs // depth)
    completes_elsewhere = load.completion == "other" and cpus > 1
    workload = Workload("nvme", [], slots=cpus * depth, segments=mix.segments, max_pages=int(mix.pages.max()))
    for cpu, seed in enumerate(root.spawn(cpus)):
        rng = np.random.default_rng(seed)
        if completes_elsewhere:
            program = _completed_on_next_cpu(mix, rng, depth, rounds, cpu=cpu, cpus=cpus)
        else:
            program = _completed_here(mix, rng, depth, rounds, cpu)
        workload.programs.append(_with_thinking(program, load.think_ns, rng) if load.think_ns else program)
    if completes_elsewhere:
        under_way = depth - _lag(depth)
        workload.notes.append(
            f"Requests complete on another CPU: {under_way} to {under_way + 1} of {depth} are under way on average."
        )
    return workload


def _completed_here(mix: _BlockMix, rng: np.random.Generator, depth: int, rounds: int, cpu: int) -> Program:
    # Each round completes every request once, none more than `window` places early or late.
    window = min(depth, max(2, depth // 4))
    order = np.argsort(np.arange(depth) + window * rng.random((rounds, depth)), axis=1).ravel()
    ops = np.zeros(depth + 2 * len(order), op_t)
    prologue, completions, submissions = ops[:depth], ops[depth::2], ops[depth + 1 :: 2]
    mix.draw_into(prologue, rng)
    prologue["slot"] = np.arange(depth)
    completions["code"] = OP_UNMAP
    completions["slot"] = order
    mix.draw_into(submissions, rng)
    submissions["slot"] = order
    ops["slot"] += cpu * depth
    return Program(ops, loop_start=depth)


def _completed_on_next_cpu(
    mix: _BlockMix, rng: np.random.Generator, depth: int, rounds: int, *, cpu: int, cpus: int
) -> Program:
    prologue = depth - _lag(depth)
    steps = np.arange(rounds * depth)
    ops = np.zeros(prologue + 2 * len(steps), op_t)
    submissions, completions = ops[prologue::2], ops[prologue + 1 :: 2]
    mix.draw_into(ops[:prologue], rng)
    ops["slot"][:prologue] = cpu * depth + np.arange(prologue)
    mix.draw_into(submissions, rng)
    submissions["slot"] = cpu * depth + (steps + prologue) % depth
    completions["code"] = OP_UNMAP
    completions["slot"] = (cpu - 1) % cpus * depth + steps % depth
    return Program(ops, loop_start=prologue)


def _with_thinking(program: Program, think_ns: float, rng: np.random.Generator) -> Program:
    maps = program.loop_start + np.flatnonzero(program.ops["code"][program.loop_start :] == OP_MAP)
    waits = np.zeros(len(maps), op_t)
    waits["code"] = OP_WAIT
    # Evenly spaced quantiles, shuffled: every CPU has the same mean, whatever the seed.
    quantiles = (np.arange(len(maps)) + 0.5) / len(maps)
    drawn = -np.log1p(-quantiles)
    waits["arg"] = np.rint(rng.permutation(drawn) * (think_ns / drawn.mean()))
    return Program(np.insert(program.ops, maps, waits), program.loop_start)


def _lag(depth: int) -> int:
    # A CPU may be this many steps ahead of the next one, and depth - lag ahead of the one before. What is under way is
    # depth - lag on average (around the ring of CPUs the leads add up to 0), so a small lag makes for full queues and a
    # large one for CPUs that seldom wait for each other.
    return max(1, depth // 4)


@dataclass(frozen=True, slots=True)
class _BlockMix:
    # Of each block size: its pages, the sum of the shares up to it, and the beginnings and lengths of its lists.
    pages: npt.NDArray[np.int32]
    share_up_to: npt.NDArray[np.float64]
    first_segment: npt.NDArray[np.int64]
    nents: npt.NDArray[np.int32]
    segments: npt.NDArray[np.int32]

    def draw_into(self, maps: npt.NDArray[np.void], rng: np.random.Generator) -> None:
        # Evenly spaced points, shuffled, meet each share to within one request: the loop repeats whatever error it has.
        points = (np.arange(len(maps)) + rng.random()) / max(1, len(maps))
        size = rng.permutation(np.searchsorted(self.share_up_to[:-1], points, side="right"))
        chosen = rng.integers(_LISTS, size=len(maps))
        maps["code"] = OP_MAP
        maps["pages"] = self.pages[size]
        maps["nents"] = self.nents[size, chosen]
        maps["arg"] = self.first_segment[size, chosen]


def _block_mix(block_kb: dict[int, float], rng: np.random.Generator) -> _BlockMix:
    sizes = sorted(size for size, share in block_kb.items() if share > 0)
    pages = np.array([-(-size // PAGE_KB) for size in sizes], np.int32)
    share_up_to = np.cumsum([block_kb[size] for size in sizes])
    drawn = [_scatter_lists(int(count), rng) for count in pages]
    nents = np.stack([each for each, _ in drawn])
    ends = np.cumsum(nents).reshape(nents.shape)
    segments = np.concatenate([each for _, each in drawn])
    return _BlockMix(pages, share_up_to / share_up_to[-1], ends - nents, nents, segments)


def _scatter_lists(pages: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    # Lists of segments that add up to `pages`: the length of each list, and all segments, list after list.
    lengths = np.arange(2, _LONGEST_RUN + 1)
    weights = 1.0 / lengths**2
    runs = rng.choice(lengths, size=(_LISTS, pages), p=weights / weights.sum())
    runs[rng.random(runs.shape) < _SINGLE_PAGE] = 1
    ends = np.minimum(np.cumsum(runs, axis=1), pages)
    segments = np.diff(ends, axis=1, prepend=0)
    used = segments > 0
    return np.count_nonzero(used, axis=1).astype(np.int32), segments[used].astype(np.int32)
