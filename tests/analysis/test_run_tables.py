"""Tables of runs: what large files pass through on their way into them, and what becomes of odd values."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.analysis.flushes import CODES_OF_FLUSHES, flushes_of, without_other_answers
from emu.analysis.run_data import RunDataError, load_run
from emu.analysis.run_tables import frame, named
from emu.iommu.tracepoints import EVENT_FLUSH, EVENT_FLUSHED, EVENT_MAP, EVENT_RPCIT, EVENT_RPCIT_DONE, EVENT_UNMAP
from emu.native.events import EventFile, chosen_events, event_t, is_any_of, read_events

CODES = (EVENT_MAP, EVENT_UNMAP, EVENT_FLUSH, EVENT_FLUSHED, EVENT_RPCIT, EVENT_RPCIT_DONE)
codes_of_processes = st.lists(st.tuples(st.sampled_from(CODES), st.integers(0, 2)), max_size=60)


def events_of(codes):
    """Events of these kinds and slots, one after the other."""
    events = np.zeros(len(codes), event_t)
    for place, (code, slot) in enumerate(codes):
        events[place] = (place, code, slot, slot, place << 32 | 7, place << 32 | 9)
    return events


@given(codes_of_processes, st.integers(1, 7))
def test_flushes_are_the_same_without_answers_of_others_however_the_file_is_cut(codes, at_a_time):
    events = events_of(codes)
    relevant = events[is_any_of(events["code"], CODES_OF_FLUSHES)]
    parts = [relevant[at : at + at_a_time] for at in range(0, len(relevant), at_a_time)]
    kept = np.concatenate([np.empty(0, event_t), *map(without_other_answers, parts)])
    assert flushes_of(kept).tolist() == flushes_of(events).tolist()


@given(codes_of_processes, st.integers(1, 7))
def test_chosen_events_are_those_of_the_file_and_no_others(tmp_path_factory, codes, at_a_time):
    folder, events = tmp_path_factory.mktemp("events"), events_of(codes)
    with EventFile(folder, "machine") as file:
        file.append(events)
    with (folder / "events-machine.bin").open("ab") as file:
        file.write(b"cut off")
    chosen = list(chosen_events(folder / "events-machine.bin", (EVENT_MAP, EVENT_FLUSH), at_a_time))
    whole = read_events(folder / "events-machine.bin")
    expected = whole[np.isin(whole["code"], (EVENT_MAP, EVENT_FLUSH))]
    assert np.concatenate([np.empty(0, event_t), *chosen]).tolist() == expected.tolist()


@given(codes_of_processes)
def test_a_request_is_answered_by_the_next_answer_of_its_process(tmp_path_factory, codes):
    run = run_of(tmp_path_factory.mktemp("run"), events_of(codes))
    found = frame("requests", named([run]))
    expected = {}
    for slot in range(3):
        own = [(place, code) for place, (code, who) in enumerate(codes) if who == slot and code in CODES[4:]]
        for (place, code), (_, after) in zip(own, [*own[1:], (None, None)], strict=False):
            if code == EVENT_RPCIT:
                expected[place] = after == EVENT_RPCIT_DONE
    assert dict(zip(found["posted_ns"], found["took_ns"].notna(), strict=True)) == expected


def run_of(folder, events, **changes):
    """A run of one domain that left these events."""
    with EventFile(folder, "machine") as file:
        file.append(events)
    clock = {"tick_ns": 1.0, "start_ticks": 0, "start_ns": 0, "is_virtual": True}
    run = {"domain": "DMA", "clock": clock, "events": None, "processes": [{"role": f"cpu {n}"} for n in range(2)]}
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "runs": [run | changes]}))
    (folder / "events.jsonl").write_text("")
    return load_run(folder)


def test_a_slot_that_no_process_has_is_unknown(tmp_path):
    found = frame("requests", named([run_of(tmp_path, events_of([(EVENT_RPCIT, 0), (EVENT_RPCIT, 2)]))]))
    assert list(found["role"]) == ["cpu 0", "unknown"]


def test_a_run_is_a_row_whatever_its_values_are(tmp_path):
    odd = {"ops": 10**40, "seconds": None, "queue": {"a b": True, "ä": "text"}, "warnings": ["x"], "domain": "\udcff"}
    (row,) = frame("runs", named([run_of(tmp_path, events_of([]), **odd)])).to_dict("records")
    assert row["ops"] == pytest.approx(1e40)
    assert (row["queue_a_b"], row["queue__"], row["warnings"]) == (True, "text", '["x"]')
    assert row["domain"] == r"\udcff"


def test_a_file_that_holds_no_events_is_one_line(tmp_path):
    run = run_of(tmp_path, events_of([]))
    (tmp_path / "events-cpu0.bin").write_text("lunch\n")
    with pytest.raises(RunDataError, match=r"events-cpu0\.bin: not a file of events"):
        frame("ops", named([run]))
