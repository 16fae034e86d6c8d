"""What a result must hold to be shown in pictures; checked beforehand, so that nothing is missing in mid-page."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt, ValidationError

from emu.analysis.run_data import RunData, RunDataError


class _Latency(BaseModel):
    p50: NonNegativeFloat
    p90: NonNegativeFloat
    p99: NonNegativeFloat
    p999: NonNegativeFloat
    max: NonNegativeFloat


class _Latencies(BaseModel):
    map: _Latency
    unmap: _Latency


class _Lock(BaseModel):
    name: str
    acquisitions: NonNegativeInt
    contended: NonNegativeInt
    total_wait_ns: NonNegativeFloat
    avg_wait_ns: NonNegativeFloat
    max_wait_ns: NonNegativeFloat


class _Hypervisor(BaseModel):
    utilisation: NonNegativeFloat
    busy_ns: NonNegativeFloat


class _Exposure(BaseModel):
    windows: NonNegativeInt | None = None
    p50_ns: NonNegativeFloat | None = None
    p99_ns: NonNegativeFloat | None = None
    max_ns: NonNegativeFloat | None = None
    page_seconds: NonNegativeFloat | None = None
    still_open: NonNegativeInt | None = None
    devices: dict[str, NonNegativeInt] | None = None


class _Stages(BaseModel):
    calls: NonNegativeInt
    measured_ns: NonNegativeFloat
    stages_ns: dict[str, NonNegativeFloat]


class _Breakdown(BaseModel):
    map: _Stages
    unmap: _Stages


class _Queue(BaseModel):
    rings: NonNegativeInt
    size: NonNegativeInt
    timeout_ms: NonNegativeFloat


class _Events(BaseModel):
    lost: NonNegativeInt


class _First(BaseModel):
    at_s: float
    by: str
    iova: str
    what: str


class _Switch(BaseModel):
    errno: str | None


class _Process(BaseModel):
    role: str
    pid: int
    exit: int | None
    cpu_s: float
    voluntary_switches: int
    involuntary_switches: int


class _Function(BaseModel):
    name: str
    type_at_end: str
    cpus: NonNegativeInt
    ops: NonNegativeInt
    pairs_per_s: NonNegativeFloat
    latency_ns: _Latencies
    flush_ns: _Latency
    flushes: dict[str, NonNegativeInt]
    violations: NonNegativeInt


class _Run(BaseModel):
    domain: str
    engine: str
    workload: str
    preset: str
    type_at_end: str
    cpus: NonNegativeInt
    ops: NonNegativeInt
    seconds: NonNegativeFloat
    pairs_per_s: NonNegativeFloat
    pages_per_s: NonNegativeFloat
    pairs_by_cpu: list[NonNegativeInt]
    latency_ns: _Latencies
    histograms: dict[str, list[tuple[NonNegativeFloat, NonNegativeInt]]] | None = None
    counters: dict[str, NonNegativeInt]
    flushes: dict[str, NonNegativeInt]
    queue: _Queue | None
    overruns: NonNegativeInt
    locks: list[_Lock]
    breakdown: _Breakdown | None
    hypervisor: _Hypervisor
    exposure: _Exposure
    violations: NonNegativeInt
    violations_by_kind: dict[str, NonNegativeInt]
    first_violations: list[_First]
    events: _Events | None
    processes: list[_Process]
    faults: list[str]
    bugs: list[str]
    notes: list[str]
    warnings: list[str]
    switches: list[_Switch]
    deaths: list[dict[str, Any]]
    functions: list[_Function] = []


class _Environment(BaseModel):
    load: list[float] | None = None
    memory_bytes: NonNegativeInt | None = None
    warnings: list[str]


class _Summary(BaseModel):
    environment: _Environment
    runs: list[_Run]


def check_runs(data: RunData) -> None:
    """See that a run's summary holds what is shown of it.

    Raises:
        RunDataError: it does not.
    """
    try:
        _Summary.model_validate(data.summary)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        path = data.folder / "summary.json"
        raise RunDataError(f"{path}: {where}: not as this version of emu writes it; run it again") from None
