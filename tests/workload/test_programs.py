"""Statements about the op programs: what they map, and that no order of the CPUs can stop them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from emu.config import MAX_DMBS, Config, ConfigError, load
from emu.workload.build import build_workload
from emu.workload.ism import ism_workload
from emu.workload.map_benchmark import map_benchmark_workload
from emu.workload.nic import nic_workload
from emu.workload.nvme import nvme_workload
from emu.workload.program import OP_MAP, OP_UNMAP, OP_WAIT, Program, Workload, op_t

CPUS = [1, 2, 3, 4, 16, 64]
DEPTHS = [1, 2, 3, 8, 33]
REPETITIONS = 3


def config(*, cpus: int = 4, seed: int = 1, **workload: object) -> Config:
    values = [("machine", "cpus", cpus), ("machine", "seed", seed)]
    return load(overrides=[*values, *(("workload", key, value) for key, value in workload.items())])


def nvme(cpus: int, depth: int, completion: str) -> Workload:
    return nvme_workload(config(cpus=cpus, name="nvme", queue_depth=depth, completion=completion), pairs=2 * depth)


def nic(cpus: int, ring: int, batch: int) -> Workload:
    return nic_workload(config(cpus=cpus, name="nic", ring=ring, batch=batch), pairs=4 * ring)


def ism(cpus: int, dmbs: int) -> Workload:
    return ism_workload(config(cpus=cpus, name="ism", dmbs=dmbs), pairs=2 * dmbs)


def benchmark(cpus: int) -> Workload:
    return map_benchmark_workload(config(cpus=cpus, name="map_benchmark", granule=3, hold_ns=50), 1)


def loop_of(program: Program) -> npt.NDArray[np.void]:
    return program.ops[program.loop_start :]


def maps_of(ops: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    return ops[ops["code"] == OP_MAP]


def unrolled(program: Program, repetitions: int) -> npt.NDArray[np.void]:
    return np.concatenate([program.ops[: program.loop_start], *[loop_of(program)] * repetitions])


class Machine:
    """CPUs that execute a workload, one operation at a time, in whatever order a scheduler likes."""

    def __init__(self, workload: Workload, stops: list[int] | None = None) -> None:
        ops = [unrolled(program, REPETITIONS) for program in workload.programs]
        self.codes = [each["code"].tolist() for each in ops]
        self.slots = [each["slot"].tolist() for each in ops]
        self.stops = stops or [len(each) for each in ops]
        self.cpus = range(len(ops))
        self.place = [0] * len(ops)
        self.mapped_by: list[int | None] = [None] * workload.slots
        self.live = [0] * len(ops)
        self.most_live = 0
        self.waits = 0
        self.rng = np.random.default_rng(5)

    @property
    def is_done(self) -> bool:
        return self.place == self.stops

    def run(self, cpu: int, most: float = math.inf) -> int:
        """Let a CPU execute up to `most` operations, until it is done or must wait; how many it did."""
        steps = 0
        while steps < most and self.place[cpu] < self.stops[cpu] and self.step(cpu):
            steps += 1
        return steps

    def step(self, cpu: int) -> bool:
        """Execute the next operation, unless it must wait."""
        code, slot = self.codes[cpu][self.place[cpu]], self.slots[cpu][self.place[cpu]]
        owner = self.mapped_by[slot]
        if (code == OP_MAP and owner is not None) or (code == OP_UNMAP and owner is None):
            self.waits += 1
            return False
        if code == OP_MAP:
            self.mapped_by[slot] = cpu
            self.live[cpu] += 1
            self.most_live = max(self.most_live, self.live[cpu])
        elif code == OP_UNMAP:
            assert owner is not None
            self.mapped_by[slot] = None
            self.live[owner] -= 1
        self.place[cpu] += 1
        return True


def in_turn(machine: Machine) -> int:
    return sum(machine.run(cpu, 1) for cpu in machine.cpus)


def in_random_bursts(machine: Machine) -> int:
    cpus = machine.rng.integers(len(machine.cpus), size=64).tolist()
    bursts = machine.rng.geometric(0.1, size=64).tolist()
    return sum(map(machine.run, cpus, bursts))


def as_far_as_it_gets(machine: Machine) -> int:
    return sum(machine.run(cpu) for cpu in reversed(machine.cpus))


def starving_one_cpu(machine: Machine) -> int:
    """CPU 0 runs, one operation, only when no other one can."""
    steps = 0
    while others := sum(machine.run(cpu) for cpu in machine.cpus[1:]):
        steps += others
    return steps + machine.run(0, 1)


SCHEDULERS = [in_turn, in_random_bursts, as_far_as_it_gets, starving_one_cpu]


def finish(machine: Machine, scheduler: Callable[[Machine], int]) -> None:
    """Run to the end, or fail if no CPU can go on."""
    while not machine.is_done:
        assert scheduler(machine) or in_turn(machine), f"deadlock at {machine.place}"


def assert_needs_stand_earlier(workload: Workload) -> None:
    """Each slot is mapped and unmapped in turn, each time at a later place of the programs."""
    ops = [unrolled(program, REPETITIONS) for program in workload.programs]
    place = np.concatenate([np.arange(len(each)) for each in ops])
    slot = np.concatenate([each["slot"] for each in ops])
    code = np.concatenate([each["code"] for each in ops])
    cpu = np.repeat(np.arange(len(ops)), [len(each) for each in ops])
    order = np.lexsort((place, slot))
    order = order[np.isin(code[order], (OP_MAP, OP_UNMAP))]
    place, slot, code, cpu = place[order], slot[order], code[order], cpu[order]
    follows = slot[1:] == slot[:-1]
    first = np.append(True, ~follows)
    assert np.all(code[first] == OP_MAP)
    assert np.all(code[1:][follows] != code[:-1][follows])
    assert np.all(place[1:][follows] > place[:-1][follows])
    same_kind = slot[2:] == slot[:-2]
    assert np.all(cpu[2:][same_kind] == cpu[:-2][same_kind]), "one CPU maps a slot, one unmaps it"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("cpus", CPUS)
@pytest.mark.parametrize("completion", ["same", "other"])
def test_nvme_finishes_in_any_order_of_the_cpus_and_never_exceeds_its_depth(completion, cpus, depth, scheduler):
    machine = Machine(nvme(cpus, depth, completion))
    finish(machine, scheduler)
    assert machine.most_live <= depth


@pytest.mark.parametrize("depth", [2, 8, 33])
def test_nvme_fills_its_whole_depth_where_the_next_cpu_is_slow(depth):
    machine = Machine(nvme(3, depth, "other"))
    finish(machine, starving_one_cpu)
    assert machine.most_live == depth


@pytest.mark.parametrize("depth", [*DEPTHS, 256])
@pytest.mark.parametrize("cpus", CPUS)
@pytest.mark.parametrize("completion", ["same", "other"])
def test_what_an_operation_needs_stands_at_an_earlier_place(completion, cpus, depth):
    assert_needs_stand_earlier(nvme(cpus, depth, completion))


@pytest.mark.parametrize(("cpus", "depth"), [(4096, 1), (4096, 3), (4095, 2), (1, 65_536), (2, 65_536), (3, 65_535)])
def test_what_an_operation_needs_stands_at_an_earlier_place_at_the_limits(cpus, depth):
    assert_needs_stand_earlier(
        nvme_workload(config(cpus=cpus, queue_depth=depth, completion="other"), pairs=min(depth, 8))
    )


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("cpus", [2, 3, 16])
def test_cpus_that_stop_at_the_same_place_leave_nobody_waiting(cpus, depth):
    workload = nvme(cpus, depth, "other")
    whole = len(unrolled(workload.programs[0], REPETITIONS))
    for stop in np.random.default_rng(3).integers(whole, size=10).tolist():
        finish(Machine(workload, stops=[stop] * cpus), in_random_bursts)


@pytest.mark.parametrize("depth", [each for each in DEPTHS if each > 1])
@pytest.mark.parametrize("cpus", [2, 3, 16])
def test_some_cpus_may_do_one_pair_more_than_others(cpus, depth):
    workload = nvme(cpus, depth, "other")
    rng = np.random.default_rng(4)
    for pairs in rng.integers(3 * depth, size=10).tolist():
        share = workload.programs[0].loop_start + 2 * pairs
        stops = [share + 2 * extra for extra in rng.integers(2, size=cpus).tolist()]
        finish(Machine(workload, stops=stops), in_random_bursts)


@pytest.mark.parametrize("cpus", CPUS)
@pytest.mark.parametrize(
    "build",
    [benchmark, lambda cpus: nvme(cpus, 8, "same"), lambda cpus: nic(cpus, 16, 5), lambda cpus: ism(cpus, 8)],
)
def test_a_cpu_that_unmaps_its_own_mappings_never_waits(build, cpus):
    machine = Machine(build(cpus))
    finish(machine, as_far_as_it_gets)
    assert machine.waits == 0


@pytest.mark.parametrize(("ring", "batch"), [(1, 1), (1, 32), (7, 3), (32, 32), (256, 32), (33, 4096)])
@pytest.mark.parametrize("cpus", [1, 3])
def test_nic_never_exceeds_its_ring_and_one_batch_of_transmissions(cpus, ring, batch):
    machine = Machine(nic(cpus, ring, batch))
    finish(machine, in_turn)
    assert machine.most_live == ring + min(ring, batch)


def test_map_benchmark_has_one_mapping_on_each_cpu():
    machine = Machine(benchmark(4))
    finish(machine, in_turn)
    assert machine.most_live == 1


WORKLOADS = [
    {"name": "map_benchmark", "granule": 7, "hold_ns": 1000},
    {"name": "nvme"},
    {"name": "nvme", "completion": "other"},
    {"name": "nvme", "queue_depth": 1000, "block_kb": {4096: 1.0, 4: 1.0, 9: 0.1}},
    {"name": "nic"},
    {"name": "nic", "ring": 100, "batch": 7},
    {"name": "ism"},
    {"name": "ism", "dmbs": 7, "dmb_kb": {16: 1.0, 1024: 1.0}},
]


@pytest.mark.parametrize("options", WORKLOADS)
@pytest.mark.parametrize("cpus", [1, 4])
def test_every_slot_is_in_the_table_and_every_slot_is_used(options, cpus):
    workload = build_workload(config(cpus=cpus, **options))
    used = np.unique(np.concatenate([program.ops["slot"] for program in workload.programs]))
    apart = 4 if options["name"] == "map_benchmark" else 1
    assert used.tolist() == list(range(0, workload.slots, apart))


@pytest.mark.parametrize("options", WORKLOADS)
def test_the_segments_of_a_mapping_add_up_to_its_pages(options):
    workload = build_workload(config(**options))
    assert workload.segments.dtype == np.int32
    assert np.all(workload.segments >= 1)
    pages_before = np.append(0, np.cumsum(workload.segments, dtype=np.int64))
    for program in workload.programs:
        maps = maps_of(program.ops)
        assert np.all(maps["nents"] >= 1)
        lists = maps[maps["nents"] > 1]
        assert np.all(lists["arg"] >= 0)
        assert np.array_equal(pages_before[lists["arg"] + lists["nents"]] - pages_before[lists["arg"]], lists["pages"])


@pytest.mark.parametrize("options", WORKLOADS)
def test_max_pages_bounds_every_mapping(options):
    workload = build_workload(config(**options))
    pages = np.concatenate([maps_of(program.ops)["pages"] for program in workload.programs])
    assert pages.min() >= 1
    assert pages.max() == workload.max_pages


@pytest.mark.parametrize("options", WORKLOADS)
def test_the_same_seed_gives_the_same_programs(options):
    one, other = build_workload(config(**options)), build_workload(config(**options))
    assert one.segments.tobytes() == other.segments.tobytes()
    for program, again in zip(one.programs, other.programs, strict=True):
        assert program.ops.dtype == op_t
        assert program.loop_start == again.loop_start
        assert program.ops.tobytes() == again.ops.tobytes()


@pytest.mark.parametrize("options", [each for each in WORKLOADS if each["name"] != "map_benchmark"])
def test_another_seed_gives_other_programs(options):
    one, other = build_workload(config(seed=1, **options)), build_workload(config(seed=2, **options))
    assert one.programs[0].ops.tobytes() != other.programs[0].ops.tobytes()


@pytest.mark.parametrize("options", [each for each in WORKLOADS if each["name"] != "map_benchmark"])
def test_cpus_draw_independently(options):
    programs = build_workload(config(cpus=16, **options)).programs
    pages = np.stack([maps_of(loop_of(program))["pages"] for program in programs])
    of_mixed_sizes = pages.max(axis=0) > 1
    correlations = np.corrcoef(pages[:, of_mixed_sizes])
    assert np.all(np.abs(correlations[~np.eye(len(pages), dtype=bool)]) < 0.1)


def test_a_cpu_draws_the_same_whatever_the_number_of_cpus():
    few, many = build_workload(config(cpus=2)), build_workload(config(cpus=8))
    assert few.programs[1].ops.tobytes() == many.programs[1].ops.tobytes()


@pytest.mark.parametrize("completion", ["same", "other"])
@pytest.mark.parametrize(
    "block_kb", [{4: 0.7, 16: 0.15, 64: 0.1, 128: 0.05}, {4: 1.0}, {4: 3, 6: 1, 8: 2}, {512: 1, 4: 0, 1: 5}]
)
def test_the_loop_has_the_shares_of_the_block_mix(block_kb, completion):
    workload = build_workload(config(block_kb=block_kb, completion=completion))
    expected: dict[int, float] = {}
    for size, share in block_kb.items():
        pages = (size + 3) // 4
        expected[pages] = expected.get(pages, 0) + share / sum(block_kb.values())
    for program in workload.programs:
        pages = maps_of(loop_of(program))["pages"]
        assert set(pages.tolist()) == {each for each, share in expected.items() if share}
        for each, share in expected.items():
            assert np.mean(pages == each) == pytest.approx(share, abs=2 / len(pages))


def test_sizes_are_mixed_within_the_loop():
    pages = maps_of(loop_of(build_workload(config()).programs[0]))["pages"]
    parts = [np.mean(part == 1) for part in np.array_split(pages, 8)]
    assert np.std(parts) < 0.05


def test_segments_of_block_requests_are_mostly_single_pages_and_sometimes_runs():
    workload = build_workload(config(block_kb={128: 1.0}))
    assert 0.8 < np.mean(workload.segments == 1) < 0.95
    assert 1.1 < workload.segments.mean() < 1.6
    assert workload.segments.max() > 8


@pytest.mark.parametrize("depth", [2, 4, 32, 256])
def test_requests_complete_slightly_out_of_order(depth):
    [program] = nvme_workload(config(cpus=1, queue_depth=depth), pairs=64 * depth).programs
    ops = unrolled(program, REPETITIONS)
    mapped_at: dict[int, int] = {}
    ages = []
    maps = 0
    for code, slot in zip(ops["code"].tolist(), ops["slot"].tolist(), strict=True):
        if code == OP_MAP:
            mapped_at[slot] = maps
            maps += 1
        else:
            ages.append(maps - mapped_at.pop(slot))
    window = max(2, depth // 4)
    assert len(set(ages)) > 1
    assert depth - 2 * window < min(ages)
    assert max(ages) < depth + 2 * window


def test_other_completion_on_one_cpu_is_the_same():
    same, other = (build_workload(config(cpus=1, completion=each)) for each in ("same", "other"))
    assert same.programs[0].ops.tobytes() == other.programs[0].ops.tobytes()


def test_requests_are_unmapped_by_the_next_cpu():
    depth, workload = 8, nvme(3, 8, "other")
    for cpu, program in enumerate(workload.programs):
        mapper = program.ops["slot"] // depth
        assert np.all(mapper[program.ops["code"] == OP_MAP] == cpu)
        assert np.all(mapper[program.ops["code"] == OP_UNMAP] == (cpu - 1) % 3)


def test_receive_buffers_are_refilled_in_batches_round_the_ring():
    ring, batch = 7, 3
    program = nic(1, ring, batch).programs[0]
    ops = loop_of(program)
    received = ops[ops["slot"] < ring][: 2 * ring]
    assert list(zip(received["code"].tolist(), received["slot"].tolist(), strict=True)) == [
        (code, slot)
        for first in (0, 3, 6)
        for code in (OP_UNMAP, OP_MAP)
        for slot in range(first, min(first + batch, ring))
    ]
    assert np.all(maps_of(received)["pages"] == 1)


def test_transmissions_are_headers_and_payloads_up_to_64_kib():
    workload = build_workload(config(name="nic"))
    ring = config(name="nic").workload.ring
    sent = maps_of(loop_of(workload.programs[0]))
    sent = sent[sent["slot"] >= ring]
    assert set(sent["pages"].tolist()) == set(range(1, 17))
    assert np.mean(sent["pages"] == 1) == pytest.approx(0.5 + 0.5 / 16, abs=0.05)


def test_a_payload_is_one_segment_or_more_depending_on_where_its_block_ends():
    workload = build_workload(config(name="nic"))
    maps = np.concatenate([maps_of(program.ops) for program in workload.programs])
    assert set(maps["nents"][maps["pages"] == 8].tolist()) == {1, 2}
    assert set(maps["nents"][maps["pages"] == 16].tolist()) == {2, 3}
    assert workload.segments.max() == 8


def test_map_benchmark_maps_holds_and_unmaps():
    [program] = benchmark(1).programs
    assert program.loop_start == 0
    assert [(op["code"], op["pages"], op["arg"]) for op in program.ops] == [
        (OP_MAP, 3, 0),
        (OP_WAIT, 0, 50),
        (OP_UNMAP, 0, 0),
    ]


def test_map_benchmark_without_a_hold_does_not_wait():
    [program] = build_workload(config(cpus=1, name="map_benchmark")).programs
    assert program.ops["code"].tolist() == [OP_MAP, OP_UNMAP]


def test_an_ism_driver_maps_two_pages_of_its_own_before_all_and_keeps_them():
    workload = build_workload(config(name="ism", dmbs=5))
    program = workload.programs[0]
    assert [(op["code"], op["slot"], op["pages"]) for op in program.ops[:2]] == [(OP_MAP, 0, 1), (OP_MAP, 1, 1)]
    later = np.concatenate([program.ops[2:], *[program.ops for program in workload.programs[1:]]])
    assert later["slot"].min() == 2


@pytest.mark.parametrize("dmbs", [1, 2, 8, 64])
def test_ism_keeps_all_its_buffers_registered_but_the_one_it_replaces(dmbs):
    machine = Machine(ism(3, dmbs))
    finish(machine, in_turn)
    assert machine.live == [dmbs + 2, dmbs, dmbs]
    assert machine.most_live == dmbs + 2


def test_three_quarters_of_ism_buffers_stay_for_good_and_the_others_are_replaced_equally_often():
    [program] = ism_workload(config(cpus=1, name="ism", dmbs=64), pairs=640).programs
    ops = loop_of(program)
    slots, times = np.unique(ops["slot"][ops["code"] == OP_UNMAP], return_counts=True)
    assert slots.tolist() == list(range(2, 2 + 16))
    assert set(times.tolist()) == {640 // 16}
    assert np.array_equal(ops["slot"][::2], ops["slot"][1::2]), "what is unregistered is at once replaced"


def test_ism_buffers_are_of_the_sizes_of_smc_d_each_in_one_piece():
    workload = build_workload(config(cpus=8, name="ism"))
    maps = np.concatenate([maps_of(program.ops) for program in workload.programs])
    maps = maps[maps["slot"] >= 2]
    assert set(maps["nents"].tolist()) == {1}
    assert len(workload.segments) == 0
    for pages, share in {4: 0.1, 16: 0.7, 64: 0.15, 256: 0.05}.items():
        assert np.mean(maps["pages"] == pages) == pytest.approx(share, abs=0.02)


def test_an_ism_device_has_no_more_than_1888_buffers():
    assert MAX_DMBS == 1888
    assert len(build_workload(config(cpus=1888, name="ism", dmbs=1)).programs) == 1888
    with pytest.raises(ConfigError, match=r"workload\.dmbs: 1 on each of 1889 CPUs.*fewer dmbs") as error:
        build_workload(config(cpus=1889, name="ism", dmbs=1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nvme", "nic", "ism"])
def test_a_loop_has_at_most_8192_operations(name):
    for program in build_workload(config(name=name)).programs:
        assert 4096 <= len(loop_of(program)) <= 8192


def test_a_deep_queue_forces_a_longer_loop():
    [program] = build_workload(config(cpus=1, queue_depth=65_536)).programs
    assert len(loop_of(program)) == 2 * 65_536


@pytest.mark.parametrize("name", ["nvme", "nic"])
def test_4096_cpus_need_less_than_a_gigabyte(name):
    workload = build_workload(config(cpus=4096, name=name))
    assert len(workload.programs) == 4096
    assert sum(program.ops.nbytes for program in workload.programs) < 1e9


@pytest.mark.parametrize("options", [{"queue_depth": 65_536}, {"name": "nic", "ring": 65_536}])
def test_what_does_not_fit_into_memory_is_refused_in_one_line(options):
    with pytest.raises(ConfigError, match="fewer CPUs") as error:
        build_workload(config(cpus=4096, **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("completion", ["same", "other"])
def test_nvme_requests_take_their_cpu_as_long_as_said(completion):
    plain = nvme_workload(config(queue_depth=8, completion=completion), pairs=512)
    thinking = nvme_workload(config(queue_depth=8, completion=completion, think_ns=700.0), pairs=512)
    for without, program in zip(plain.programs, thinking.programs, strict=True):
        loop = loop_of(program)
        waits = loop[loop["code"] == OP_WAIT]
        assert len(waits) == len(maps_of(loop))
        assert waits["arg"].mean() == pytest.approx(700, rel=0.01)
        assert waits["arg"].std() == pytest.approx(700, rel=0.1)
        assert (loop["code"][np.flatnonzero(loop["code"] == OP_WAIT) + 1] == OP_MAP).all()
        assert np.array_equal(program.ops[program.ops["code"] != OP_WAIT], without.ops)
