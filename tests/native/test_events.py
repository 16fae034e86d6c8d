"""Event rings keep order, never block, count what they lose, and survive on disk."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.native.compile import compile_entries
from emu.native.events import (
    EventFile,
    EventFileError,
    drain,
    drain_ring,
    event_ring_t,
    event_t,
    init_ring,
    read_events,
)
from emu.native.record import CACHE_LINE

from . import harness
from .harness import at, running, scaled, shared

pytestmark = pytest.mark.interpreted

words = st.integers(-(2**63), 2**63 - 1)
small = st.integers(-(2**31), 2**31 - 1)
tiny = st.integers(-(2**15), 2**15 - 1)


class Ring:
    """A ring and its slots."""

    def __init__(self, count):
        self.slots = shared(event_t, count)
        self.array = shared(event_ring_t)
        self.record = self.array[0]
        init_ring(self.record, at(self.slots), count)
        self.contexts = shared(harness.context_t)
        self.context = self.contexts[0]
        self.context.events = at(self.array)

    def emit(self, *, code=0, a=0, b=0, at_ticks=0):
        harness.emit_one(at(self.contexts), code, a, b, at_ticks)

    def emit_many(self, count):
        harness.emit_many(at(self.contexts), count)


def _described(kind):
    """A file whose first field is of another kind."""
    fields = [["ticks", kind], *event_t.descr[1:]]
    return f"emu-events 2 {json.dumps(fields)}\n".encode() + bytes(64)


def some_events(count):
    events = np.zeros(count, event_t)
    events["ticks"] = np.arange(count) * 7
    events["a"] = -np.arange(count)
    return events


def test_an_event_has_32_bytes_and_each_side_of_a_ring_its_own_cache_line():
    assert event_t.itemsize == 32
    lines = {name: event_ring_t.fields[name][1] // CACHE_LINE for name in event_ring_t.names}
    assert [name for name in lines if lines[name] == lines["head"]] == ["head"]
    assert event_ring_t.itemsize == 2 * CACHE_LINE


@given(tiny, tiny, small, words, words, words)
def test_an_event_comes_out_as_it_went_in(code, slot, cpu_id, a, b, at_ticks):
    ring = Ring(1)
    ring.context.slot, ring.context.id = slot, cpu_id
    ring.emit(code=code, a=a, b=b, at_ticks=at_ticks)
    assert drain(ring.record).tolist() == [(at_ticks, code, slot, cpu_id, a, b)]


def test_an_empty_ring_gives_nothing():
    assert len(drain(Ring(4).record)) == 0


def test_what_was_drained_does_not_come_again():
    ring = Ring(4)
    ring.emit(a=1)
    drain(ring.record)
    ring.emit(a=2)
    assert drain(ring.record)["a"].tolist() == [2]


def test_what_was_drained_is_a_copy():
    ring = Ring(2)
    ring.emit(a=1)
    events = drain(ring.record)
    ring.emit(a=2)
    ring.emit(a=3)
    assert events["a"].tolist() == [1]


def test_a_full_ring_drops_and_counts_the_new_events():
    ring = Ring(8)
    ring.emit_many(11)
    assert ring.record.lost == 3
    assert drain(ring.record)["a"].tolist() == list(range(8))
    ring.emit(a=100)
    assert drain(ring.record)["a"].tolist() == [100]
    assert ring.record.lost == 3


@given(st.lists(st.one_of(st.integers(1, 12), st.none()), max_size=30))
def test_a_ring_is_a_bounded_queue(steps):
    ring, waiting, lost = Ring(8), [], 0
    for number_of_events in [*steps, None]:
        if number_of_events is None:
            assert drain(ring.record)["a"].tolist() == waiting
            waiting = []
            continue
        ring.emit_many(number_of_events)
        room = 8 - len(waiting)
        lost += max(number_of_events - room, 0)
        waiting += range(min(number_of_events, room))
    assert ring.record.lost == lost


def test_no_event_is_torn_or_out_of_order_while_another_process_drains():
    ring, count = Ring(64), scaled(300_000, 3_000)
    compile_entries([drain_ring])
    chunks = []
    with running((harness.emit_many, at(ring.contexts), count)) as (producer,):
        while producer.is_alive():
            chunks.append(drain(ring.record))
    chunks.append(drain(ring.record))
    events = np.concatenate(chunks)
    assert len(events) + ring.record.lost == count
    assert (np.diff(events["a"]) > 0).all()
    assert (events["b"] == events["a"] ^ 0x5A5A).all()
    assert (events["ticks"] == 3 * events["a"]).all()


@pytest.mark.parametrize("count", [0, 3, -4])
def test_a_ring_has_a_power_of_two_of_slots(count):
    with pytest.raises(ValueError, match="power of two"):
        init_ring(shared(event_ring_t)[0], 4096, count)


def test_a_file_gives_back_the_chunks_that_were_written(tmp_path):
    events = some_events(10)
    with EventFile(tmp_path, "cpu3") as file:
        for chunk in (events[:4], events[4:4], events[4:]):
            file.append(chunk)
    assert file.path == tmp_path / "events-cpu3.bin"
    back = read_events(file.path)
    assert back.dtype == event_t
    assert back.tolist() == events.tolist()


def test_a_chunk_can_be_read_before_the_file_is_closed(tmp_path):
    with EventFile(tmp_path, "cpu0") as file:
        file.append(some_events(2))
        assert len(read_events(file.path)) == 2


@pytest.mark.parametrize("missing", [1, 31, 32, 33])
def test_a_truncated_last_record_is_left_out(tmp_path, missing):
    with EventFile(tmp_path, "cpu0") as file:
        file.append(some_events(5))
    with file.path.open("r+b") as raw:
        raw.truncate(file.path.stat().st_size - missing)
    assert read_events(file.path).tolist() == some_events(5 - -(-missing // 32)).tolist()


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    foreign = event_t.newbyteorder(">")
    path = tmp_path / "events-cpu0.bin"
    with EventFile(tmp_path, "cpu0"):
        pass
    header = path.read_bytes().replace(b"<", b">")
    path.write_bytes(header + some_events(5).astype(foreign).tobytes())
    assert read_events(path).tolist() == some_events(5).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of events"),
        (b"\x7fELF" + bytes(2000), "not a file of events"),
        (b"emu-events 1 [", "not a file of events"),
        (b"emu-events 1 []\n", "version 1"),
        (b"emu-events 2 [[1]]\n", "records of"),
        (b"emu-events 2 nonsense\n", "damaged header"),
        (b'emu-events 2 [["ticks", "<i8"]]\n', "records of"),
        (b"emu-events \x85 []\n", "not a file of events"),
        (b"emu-events 2 " + b"[" * 1020 + b"\n", "not a file of events"),
        (b"emu-events 2 " + b"[" * 1005 + b"\n", "damaged header"),
        (_described("O"), "records of"),
        (_described("V0"), "records of"),
        (_described("i8,("), "records of"),
        (_described("U5"), "records of"),
        (_described("<i4"), "records of"),
    ],
)
def test_another_file_is_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "events-cpu0.bin"
    path.write_bytes(content)
    with pytest.raises(EventFileError, match=message):
        read_events(path)


@settings(max_examples=40, derandomize=True)
@given(
    st.lists(st.lists(st.tuples(words, tiny, tiny, small, words, words), max_size=5), max_size=5),
    st.sampled_from("<>"),
    st.integers(0, 1 << 12),
)
def test_what_is_written_is_read_as_far_as_the_file_goes(tmp_path_factory, chunks, order, missing):
    folder = tmp_path_factory.getbasetemp()
    with EventFile(folder, "generated") as file:
        for chunk in chunks:
            file.append(np.array(chunk, event_t))
    rows = [row for chunk in chunks for row in chunk]
    path = folder / "events-generated.bin"
    header = path.read_bytes().partition(b"\n")[0].replace(b"<", order.encode()) + b"\n"
    records = np.array(rows, event_t).astype(event_t.newbyteorder(order)).tobytes()
    kept = len(records) - missing % (len(records) + 1)
    path.write_bytes(header + records[:kept])
    assert read_events(path).tolist() == rows[: kept // event_t.itemsize]
