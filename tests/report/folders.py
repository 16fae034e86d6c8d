"""Folders of runs, as the machine leaves them, made without one."""

import json
from pathlib import Path

import numpy as np

from emu.iommu.tracepoints import CAUSE_FULL, CAUSE_SHIFT, CAUSE_TIMEOUT, EVENT_FLUSH, EVENT_FLUSHED
from emu.native.events import EventFile, event_t

SECONDS = 0.5
TICK_NS = 0.5
SCHEMES = {"DMA": 47_000, "DMA-FQ": 35_000, "DMA-SQ": 84_000, "s390-lazy": 74_000, "identity": 20_000_000}


def make_run(domain, pairs_per_s=47_000.0, **changes):
    """One element of `runs` in summary.json."""
    pairs = round(pairs_per_s * SECONDS)
    is_queued = domain in ("DMA-FQ", "DMA-SQ")
    latency = {"p50": 5120.0, "p90": 8100.5, "p99": 45_300.0, "p999": 1_250_000.0, "max": 9_870_000.0, "mean": 6e3}
    stages = {"call": pairs * 20, "allocator": pairs * 50, "tables": pairs * 90, "hypervisor_service": pairs * 2000}
    timed = {"calls": pairs, "measured_ns": pairs * 2170, "total_ns": pairs * 2160, "stages_ns": stages}
    buckets = [[90.0, pairs - pairs // 10 - 1], [5120.0, pairs // 10], [9_870_000.0, 1]]
    run = {
        "domain": domain,
        "type_at_end": domain,
        "engine": "processes",
        "workload": "nvme",
        "preset": "kvm",
        "cpus": 2,
        "ops": pairs,
        "seconds": SECONDS,
        "pairs_per_s": float(pairs_per_s),
        "pages_per_s": 4.5 * pairs_per_s,
        "pairs_by_cpu": [pairs * 3 // 5, pairs - pairs * 3 // 5],
        "latency_ns": {"map": latency, "unmap": latency},
        "histograms": {"map": buckets, "unmap": buckets, "exposure": buckets},
        "counters": {"Global RPCITs": 40 if is_queued else 0, "Sync Map RPCITs": pairs, "Sync RPCITs": 0},
        "maps": pairs,
        "unmaps": pairs,
        "map_failures": 0,
        "flushes": {"full": 30 * is_queued, "timeout": 10 * is_queued, "no_resources": 0, "wrap": 0},
        "iovas_per_flush": 300.0 if is_queued else None,
        "queue": {"rings": 2, "size": 256, "timeout_ms": 10.0} if is_queued else None,
        "overruns": 0,
        "overrun_iovas": 0,
        "locks": [
            {
                "name": "iova_fq.lock",
                "acquisitions": pairs,
                "contended": 900,
                "total_wait_ns": 20_000_000 * is_queued,
                "avg_wait_ns": 22_222,
                "max_wait_ns": 400_000,
            }
        ],
        "breakdown": {"map": timed, "unmap": timed},
        "hypervisor": {"requests": pairs, "utilisation": 0.4, "busy_ns": round(SECONDS * 4e8)},
        "exposure": {
            "windows": pairs if domain != "identity" else 0,
            "p50_ns": 6.3e6 if is_queued else 9.9e3,
            "p99_ns": 14e6 if is_queued else 41e3,
            "max_ns": 396e6 if is_queued else 10e6,
            "page_seconds": 1026.4,
            "still_open": 0,
            "devices": None,
        },
        "violations": 0,
        "violations_by_kind": {},
        "first_violations": [],
        "checked": True,
        "events": None,
        "processes": [
            {
                "role": role,
                "pid": 4711,
                "exit": 0,
                "cpu_s": 0.31,
                "voluntary_switches": 1,
                "involuntary_switches": 2,
            }
            for role in ("cpu 0", "cpu 1", "timer", "hypervisor")
        ],
        "clock": {"tick_ns": TICK_NS, "start_ticks": 1000, "start_ns": 500, "is_virtual": False},
        "bugs": [],
        "faults": [],
        "notes": [],
        "switches": [],
        "deaths": [],
        "died": None,
        "interrupted": False,
        "warnings": [],
    }
    return run | changes


def flush_events(count):
    """Flushes at equal intervals, three of four as a queue was full."""
    events = np.zeros(2 * count, event_t)
    starts = np.linspace(1000, 1000 + SECONDS * 1e9 / TICK_NS, count).astype(np.int64)
    causes = np.where(np.arange(count) % 4, CAUSE_FULL, CAUSE_TIMEOUT)
    events["ticks"][::2], events["ticks"][1::2] = starts, starts + 4000
    events["code"][::2], events["code"][1::2] = EVENT_FLUSH, EVENT_FLUSHED
    events["b"][::2] = (causes << CAUSE_SHIFT) + 250
    return events


def entry(event, **values):
    stamp = {"time": "2026-01-02T03:04:05.678901+00:00", "time_ns": 1, "role": "supervisor", "pid": 4711}
    return {**stamp, "event": event, **values}


def log_of(runs):
    """The entries of a run that came to its end."""
    yield entry("run_started", schema=1, config={}, environment={})
    for run in runs:
        yield entry("domain_started", domain=run["domain"], workload="nvme", cpus=2)
        for number in range(1, 51):
            part = number / 50
            yield entry(
                "sample",
                domain=run["domain"],
                at_ns=round(part * SECONDS * 1e9),
                pairs=round(part * run["ops"]),
                mapped_pages=100,
                queued=number * 37 % 256 if run["queue"] else 0,
                requests=number,
                busy_ns=round(part * run["hypervisor"]["busy_ns"]),
                waiting=1,
            )
    yield entry("run_finished", exit_code=0, error=None)


def write_run(folder: Path, runs, *, log=None, flushes=40, environment=None):
    """Write the folder of a run with these domains."""
    folder.mkdir(parents=True)
    whole = {"schema": 1, "command": "run", "folder": str(folder), "runs": runs}
    whole["environment"] = {"emu": "0.1.0", "cores": 2, "cores_usable": 2, "warnings": []} | (environment or {})
    (folder / "summary.json").write_text(json.dumps(whole))
    lines = [json.dumps(each) for each in (log_of(runs) if log is None else log)]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for run in runs:
        within = folder if len(runs) == 1 else folder / run["domain"]
        within.mkdir(exist_ok=True, parents=True)
        with EventFile(within, "machine") as file:
            if run["queue"]:
                file.append(flush_events(flushes))
    return folder
