"""A shared segment says what it holds, to those who may read it, and to nobody does it come to harm."""

import json
import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.native.record import struct
from emu.native.segment import (
    AttachError,
    Attachment,
    SegmentGoneError,
    SegmentPlan,
    _header_t,
    owner_of,
    shared_segments,
)

inner_t = struct(lines=("late",), early="i4", late="i8")
row_t = struct(lines=("inner",), first="i2", counts=(np.int64, (3,)), inner=inner_t)
ABOUT = {"domain": "DMA-FQ", "folder": "/a\n[red]b"}


def plan():
    made = SegmentPlan()
    made.add("rows", row_t, 5)
    made.add("words", np.int32, 7, align=4096)
    return made


@pytest.fixture
def segment():
    made = plan().create(about=ABOUT)
    yield made
    made.unlink()


@pytest.fixture
def path(segment):
    return next(path for path in shared_segments() if path.name == segment.name)


@pytest.fixture
def copied(path, tmp_path):
    """A segment's file that may be damaged: copied(bytes) writes it anew, copied() reads it."""
    whole, other = path.read_bytes(), tmp_path / path.name

    def write(content=None):
        if content is None:
            return whole
        other.write_bytes(content)
        return other

    return write


def test_what_the_owner_writes_is_read_by_name(segment, path):
    attached = Attachment(path)
    segment["rows"]["inner"]["late"][3] = 77
    segment["rows"]["counts"][4] = (1, 2, 3)
    segment["words"][6] = -5
    assert attached["rows"]["inner"]["late"][3] == 77
    assert attached.copy_of("rows")["counts"][4].tolist() == [1, 2, 3]
    assert attached["words"][6] == -5
    assert attached.about == ABOUT
    assert attached.owner == os.getpid()


def test_types_come_across_as_they_are(segment, path):
    attached = Attachment(path)
    assert attached.arrays == {name: segment.arrays[name] for name in ("rows", "words")}
    assert attached.arrays["rows"][1] == row_t


def test_pointers_mean_the_same_there(segment, path):
    attached = Attachment(path)
    assert attached.address("words", 2) == segment.address("words", 2)
    assert attached._bytes.ctypes.data != segment._bytes.ctypes.data


def test_who_is_attached_cannot_write(path):
    with pytest.raises(ValueError, match="read-only"):
        Attachment(path)["words"][0] = 1


def test_a_private_segment_describes_itself_to_nobody():
    before = shared_segments()
    assert "description" not in plan().create(private=True)
    assert shared_segments() == before


def test_a_segment_that_is_gone_can_still_be_read_by_whoever_is_attached(segment, path):
    attached = Attachment(path)
    segment["words"][1] = 9
    assert not attached.has_ended
    segment.unlink()
    assert attached.has_ended
    assert attached["words"][1] == 9
    with pytest.raises(SegmentGoneError, match="is gone"):
        Attachment(path)


def changed(whole, **fields):
    header = np.frombuffer(whole, _header_t, 1).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + whole[_header_t.itemsize :]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"magic": b""}, "not yet"),
        ({"format": 99}, "another version"),
        ({"offset": 1 << 50}, "does not describe itself"),
        ({"shift": 1 << 40}, "does not describe itself"),
        ({"length": 12}, "does not describe itself"),
    ],
)
def test_what_is_no_segment_is_said_in_a_line(copied, fields, said):
    with pytest.raises(AttachError, match=said) as caught:
        Attachment(copied(changed(copied(), **fields)))
    assert "\n" not in str(caught.value)


def test_a_file_that_has_just_been_made_is_not_ready(copied):
    for size in (0, 8, 4096):
        with pytest.raises(AttachError, match="not yet"):
            Attachment(copied(bytes(size)))


def test_a_file_that_was_cut_off_is_said_to_be(copied):
    whole = copied()
    text = json.dumps({"arrays": {"rows": [0, "<i8", 1 << 40]}, "about": {}}).encode()
    header = np.frombuffer(whole, _header_t, 1)[0]
    at = int(header["shift"]) + int(header["offset"])
    short = whole[:at] + text + whole[at + len(text) :]
    with pytest.raises(AttachError, match="shorter than it says"):
        Attachment(copied(changed(short, length=len(text))))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_makes_attaching_fail_in_another_way(copied, data):
    whole = bytearray(copied())
    header = np.frombuffer(bytes(whole), _header_t, 1)[0]
    text = int(header["shift"]) + int(header["offset"])
    places = st.one_of(st.integers(8, _header_t.itemsize - 1), st.integers(text, text + int(header["length"]) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    with suppress(AttachError):
        Attachment(copied(bytes(whole)))


@pytest.mark.parametrize(("name", "pid"), [("emu-12-ab", 12), ("emu--ab", 0), ("emu-x-1", 0), ("emu-²-1", 0)])
def test_the_owner_is_in_the_name(name, pid):
    assert owner_of(name) == pid
