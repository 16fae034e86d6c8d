"""A machine that runs nothing: commands are tested without processes."""

from typing import Any

import pytest

from emu.cli.app import dispatch
from emu.experiment import Outcome


def make_run(domain: str = "DMA", **changes: Any) -> dict[str, Any]:
    """One element of `runs`, as the machine makes it, with plausible numbers."""
    percentiles = {"p50": 5120.0, "p90": 8100.5, "p99": 45_300.0, "p999": 1_250_000.0, "max": 9_870_000.0, "mean": 6e3}
    run = {
        "domain": domain,
        "engine": "processes",
        "workload": "nvme",
        "preset": "kvm",
        "cpus": 2,
        "ops": 131_072,
        "seconds": 1.5,
        "pairs_per_s": 87_381.3,
        "pages_per_s": 4e5,
        "latency_ns": {"map": percentiles, "unmap": percentiles},
        "counters": {
            "Mapped pages": 600_000,
            "Unmapped pages": 599_000,
            "Global RPCITs": 4,
            "Sync Map RPCITs": 131_100,
            "Sync RPCITs": 0,
        },
        "phases": [],
        "maps": 131_100,
        "unmaps": 131_072,
        "map_failures": 0,
        "flushes": {"full": 3, "timeout": 1, "no_resources": 0, "wrap": 0},
        "iovas_per_flush": 32_766.5,
        "overruns": 0,
        "overrun_iovas": 0,
        "locks": [
            {
                "name": "iova_fq.lock",
                "acquisitions": 131_072,
                "contended": 900,
                "total_wait_ns": 120_000_000,
                "avg_wait_ns": 133_333,
                "max_wait_ns": 4_000_000,
            }
        ],
        "hypervisor": {
            "requests": 131_104,
            "busy_ns": 600_000_000,
            "utilisation": 0.41,
            "queue_wait_ns": percentiles,
            "schedule_ns": percentiles,
            "walked": 1,
            "changed": 1,
        },
        "exposure": {
            "windows": 131_000,
            "p50_ns": 2.5e8,
            "p99_ns": 5e8,
            "max_ns": 1.02e9,
            "page_seconds": 102_345.6,
        },
        "violations": 0,
        "conservation": {"holds": True},
        "processes": [{"role": "cpu 0", "pid": 4711, "exit": 0, "cpu_s": 1.2}],
        "notes": [],
        "warnings": [],
        "died": None,
        "interrupted": False,
    }
    return run | changes


class FakeMachine:
    """Takes the place of the machine.

    Attributes:
        runs: changes to the run of a domain, by its name.
        outcomes: changes to what the supervisor says of a domain, by its name; an exception is raised.
        calls: (config, domain, workload, real_time) of each run.
        recorded_to: where each was to record its events.
        control_in: where each was to have its control socket.
        events: what happens to the machine of a domain while it runs, by its name.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, Any] = {}
        self.calls: list[tuple[Any, str, Any, bool]] = []
        self.recorded_to: list[Any] = []
        self.control_in: list[Any] = []
        self.events: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    def run_machine(self, config, domain, workload, *, real_time, record_to, on_compile, on_progress, **more):
        self.calls.append((config, domain, workload, real_time))
        outcome = self.outcomes.get(domain, {})
        if isinstance(outcome, BaseException):
            raise outcome
        on_compile(1, 2)
        on_progress(0.5)
        self.recorded_to.append(record_to)
        self.control_in.append(more["control_in"])
        for event, values in self.events.get(domain, []):
            more["on_event"](event, values)
        said = {"died": None, "interrupted": False, "warnings": []} | outcome
        return Outcome(make_run(domain, cpus=config.machine.cpus, **self.runs.get(domain, {}), **said), **said)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A fake machine, in an empty current directory."""
    fake = FakeMachine()
    monkeypatch.setattr("emu.cli.session.run_machine", fake.run_machine)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return fake


@pytest.fixture
def emu(capsys):
    """Call the command line: emu("run", "--cpus", "2") → (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = dispatch(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
