"""Every line of every run's log is as the schema says, and every event of the closed list happens in one of them."""

import json
import os
import signal
import threading
import time
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

import emu
from emu.analysis.flushes import CAUSES
from emu.analysis.log_schema import AnyEntry, Cause, entry_adapter
from emu.analysis.machine_log import MOST_ENTRIES, Clock, log_entries
from emu.cli.session import Session
from emu.experiment import MachineError
from emu.iommu.tracepoints import EVENT_TIMER_ARMED
from emu.machine.lock_names import lock_id
from emu.native.events import event_t
from emu.native.lock import EVENT_LOCK_TAKEN_OVER

SMALL = {
    "domain.aperture_mb": 64,
    "domain.iova_ranges": 8192,
    "hypervisor.intercept_ns": 500.0,
    "hypervisor.walk_ns": 0.01,
}
SEVERAL_SERVERS = {"hypervisor.servers": 4, "hypervisor.walk_ns": 0.0, "hypervisor.shadows": False}
FORKED = {"engine": "processes", "cpus": 2, "seconds": 0.3, "set": SMALL}
VIRTUAL = {"engine": "sim", "cpus": 2, "seconds": 0.02, "set": SMALL}
CLOCK = {"tick_ns": 1.0, "start_ticks": 0, "start_ns": 1_000, "is_virtual": False}

RUNS = {
    "virtual clocks": VIRTUAL | {"domain": ["DMA", "DMA-FQ", "s390-lazy"], "record": True, "breakdown": True},
    "threads": FORKED | {"engine": "threads", "domain": "DMA-FQ", "fq_size": 64},
    "processes": FORKED | {"domain": "DMA-SQ", "record": True},
    "a switch": FORKED | {"switch": "0.1s:DMA-FQ"},
    "a dead CPU": FORKED | {"domain": "DMA-FQ", "cpus": 3, "fault": "kill:cpu1@0.1s", "on_death": "continue"},
    "a new hypervisor": FORKED | {"domain": "DMA", "fault": "kill:hypervisor@0.1s", "restart": "hypervisor"},
    "a stop": FORKED | {"domain": "DMA", "fault": "stop:cpu1@0.1s+50ms"},
    "no answer": VIRTUAL | {"domain": "DMA", "cpus": 1, "seconds": 10.0, "fault": "drop:completion@5ms"},
    "a full disk": VIRTUAL | {"domain": "DMA-FQ", "record": True, "fault": "disk-full:log@5ms"},
    "overruns": {
        "engine": "sim",
        "cpus": 4,
        "seconds": 0.02,
        "domain": "DMA-FQ",
        "workload": "map_benchmark",
        "fq_size": 64,
        # A flush that spans another's: servers that take different times.
        "fault": "jitter:hypervisor:100us",
        "set": SEVERAL_SERVERS,
    },
    "a bug": {
        "engine": "sim",
        "cpus": 4,
        "seconds": 0.02,
        "domain": "s390-lazy",
        "devices": 1,
        "bug": "reuse-unflushed",
        "set": {"hypervisor.mapping_limit": 1000},
    },
}
NOT_BY_A_RUN = {
    "lock_taken_over": "whether anybody waits for a dead one's lock is up to the scheduler",
    "log_truncated": "takes more events than a test makes",
    "error": "a machine that cannot be made is faked",
    "interrupted": "has a test of its own",
}


def entries_of(folder):
    """The log's entries, each one validated; a line that was cut off by a full disk is none."""
    lines = (folder / "events.jsonl").read_bytes().split(b"\n")
    entries = [json.loads(line) for line in lines[:-1]]
    for entry in entries:
        entry_adapter.validate_python(entry)
    return entries


def kinds():
    """The closed list."""
    return {
        name for model in get_args(get_args(AnyEntry)[0]) for name in get_args(model.model_fields["event"].annotation)
    }


def test_the_log_knows_every_cause_of_a_flush():
    assert get_args(Cause) == CAUSES


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The names of the events of each run."""
    found = {}
    for name, settings in RUNS.items():
        folder = tmp_path_factory.mktemp("runs") / "run"
        emu.run(out=folder, **settings)
        found[name] = [entry["event"] for entry in entries_of(folder)]
    folder = tmp_path_factory.mktemp("runs") / "replay"
    emu.replay("s390x-lazy-nvme", engine="sim", out=folder)
    found["a replay"] = [entry["event"] for entry in entries_of(folder)]
    return found


def test_every_event_of_the_list_happens_in_a_run(seen):
    happened = {event for events in seen.values() for event in events}
    assert happened | NOT_BY_A_RUN.keys() == kinds()


@pytest.mark.parametrize("name", RUNS)
def test_a_log_begins_and_ends_with_its_command(seen, name):
    assert seen[name][0] == "run_started"
    # Of what is written to a disk that is full, nothing is there.
    assert (seen[name][-1] == "run_finished") == (name != "a full disk")


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("virtual clocks", "sample"),
        ("virtual clocks", "timer_fired"),
        ("threads", "flush_finished"),
        ("a switch", "sysfs_written"),
        ("a dead CPU", "process_died"),
        ("a new hypervisor", "process_died"),
        ("a stop", "fault_over"),
        ("no answer", "death"),
        ("overruns", "overrun"),
        ("a bug", "violation"),
        ("a bug", "warning"),
    ],
)
def test_what_happens_to_a_machine_is_in_its_log(seen, name, event):
    assert event in seen[name]


def test_an_interrupted_runs_log_is_as_the_schema_says(tmp_path):
    stopper = threading.Thread(target=interrupt_when_loaded, args=(tmp_path / "run/events.jsonl",), daemon=True)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        emu.run(out=tmp_path / "run", **{**FORKED, "domain": ["DMA", "DMA-FQ"], "seconds": 20.0})
    stopper.join()
    events = [entry["event"] for entry in entries_of(tmp_path / "run")]
    assert "interrupted" in events
    assert events[-1] == "run_finished"
    # What was measured is kept.
    assert [run["interrupted"] for run in emu.load(tmp_path / "run").runs] == [True]


def interrupt_when_loaded(log):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if log.exists() and "load_started" in log.read_text():
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.01)


def test_the_log_of_a_machine_that_cannot_be_made_is_as_the_schema_says(tmp_path, monkeypatch):
    def run_domain(*_arguments, **_options):
        raise MachineError("no memory\nfor it")

    monkeypatch.setattr(Session, "run_domain", run_domain)
    with pytest.raises(MachineError):
        emu.run(out=tmp_path / "run", **VIRTUAL)
    assert "error" in [entry["event"] for entry in entries_of(tmp_path / "run")]


def test_what_is_told_of_a_lock_taken_over_and_of_too_many_events_is_as_the_schema_says():
    events = np.zeros(MOST_ENTRIES + 5, event_t)
    events["code"], events["ticks"] = EVENT_TIMER_ARMED, np.arange(len(events))
    events[0]["code"], events[0]["a"], events[0]["b"] = EVENT_LOCK_TAKEN_OVER, lock_id("ring", 3), 17
    entries = [
        {"time": "now", "time_ns": 1, "event": event, **values}
        for event, values in log_entries(events, Clock(**CLOCK), ["cpu 0"], [4711])
    ]
    for entry in entries:
        entry_adapter.validate_python({"role": "supervisor", "pid": 1, **entry})
    first, last = entries[0], entries[-1]
    assert (first["event"], first["lock"], first["number"]) == ("lock_taken_over", "iova_fq.lock", 3)
    assert (last["event"], last["left_out"]) == ("log_truncated", 5)


def test_the_schema_refuses_what_it_does_not_know():
    known = {"time": "now", "time_ns": 1, "role": "supervisor", "pid": 1, "event": "load_started"}
    entry_adapter.validate_python(known)
    for wrong in ({"more": 1}, {"event": "lunch"}, {"time_ns": "1"}, {"pid": None}):
        with pytest.raises(ValidationError):
            entry_adapter.validate_python(known | wrong)
