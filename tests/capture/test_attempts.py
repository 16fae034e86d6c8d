"""What a block driver tried to map for a request, and whether it had to take it back, is told from the trace."""

import pytest

from emu.capture.attempts import find_attempts
from emu.capture.ftrace import read_capture
from tests.capture.block_driver import BUFFER, HEADER, NEXT_BUFFER, OTHER_HEADER, PAGE, TABLE, Trace


@pytest.fixture
def trace():
    return Trace()


@pytest.fixture
def attempts_in(tmp_path):
    def find(trace):
        (tmp_path / "synthetic.trace").write_text("".join(trace.lines))
        return find_attempts(read_capture(tmp_path / "synthetic.trace", physical=True))

    return find


def test_a_request_mapped_whole_is_one_attempt(trace, attempts_in):
    trace.complete(trace.request((BUFFER, 128)))
    found = attempts_in(trace)
    assert found.attempts[["cpu", "count", "failed"]].tolist() == [(0, 4, False)]
    assert found.maps_of(0).tolist() == [0, 1, 2, 3]
    assert (found.failed, found.unclaimed_maps, found.unclaimed_roll_backs) == (0, 0, 0)


def test_a_request_that_is_never_completed_is_an_attempt_too(trace, attempts_in):
    trace.request((BUFFER, 128))
    assert len(attempts_in(trace).attempts) == 1


def test_requests_of_several_cpus_are_told_apart(trace, attempts_in):
    parts = [(HEADER, 1), (BUFFER, 64), (HEADER, 1), (TABLE, 1)]
    for memory, pages in parts:
        for cpu in (0, 1):
            trace.map(memory, pages, cpu)
    found = attempts_in(trace)
    assert found.attempts["cpu"].tolist() == [0, 1]
    assert found.maps_of(1).tolist() == [1, 3, 5, 7]


def test_a_request_taken_back_in_order_has_failed(trace, attempts_in):
    trace.refused((BUFFER, 128))
    trace.complete(trace.request((BUFFER, 128), (NEXT_BUFFER, 77)))
    found = attempts_in(trace)
    assert found.attempts["failed"].tolist() == [True, False]
    assert (found.failed, found.roll_backs) == (1, 2)


def test_what_it_did_not_get_is_what_another_request_mapped_after_the_same_buffers(trace, attempts_in):
    trace.refused((BUFFER, 128))
    trace.complete(trace.request((BUFFER, 64), (NEXT_BUFFER, 1)))
    trace.complete(trace.request((BUFFER, 128), (NEXT_BUFFER, 77)))
    assert attempts_in(trace).attempts["wanted_pages"].tolist() == [77, 0, 0]


def test_what_the_first_data_were_is_told_by_the_next_large_request_with_the_same_header(trace, attempts_in):
    trace.refused()
    trace.complete(trace.request((BUFFER, 8)))
    trace.complete(trace.request((BUFFER, 151), header=OTHER_HEADER))
    trace.complete(trace.request((BUFFER, 130)))
    assert attempts_in(trace).attempts["wanted_pages"].tolist() == [130, 0, 0, 0]


def test_what_nothing_tells_is_not_known(trace, attempts_in):
    trace.refused((BUFFER, 128))
    found = attempts_in(trace)
    assert found.attempts[["failed", "wanted_pages"]].tolist() == [(True, 0)]


def test_maps_taken_back_in_another_order_are_no_attempt(trace, attempts_in):
    header, data = trace.map(HEADER), trace.map(BUFFER, 128)
    trace.unmap(data)
    trace.unmap(header)
    found = attempts_in(trace)
    assert len(found.attempts) == 0
    assert (found.unclaimed_maps, found.unclaimed_roll_backs) == (2, 2)


def test_what_does_not_complete_table_first_is_no_attempt(trace, attempts_in):
    for mapping in trace.request((BUFFER, 128)):
        trace.unmap(mapping, 1, irq=True)
    found = attempts_in(trace)
    assert len(found.attempts) == 0
    assert found.unclaimed_maps == 4


def test_attempts_cannot_be_told_without_physical_addresses(trace, tmp_path):
    trace.request((BUFFER, 128))
    (tmp_path / "synthetic.trace").write_text("".join(trace.lines))
    with pytest.raises(ValueError, match="physical"):
        find_attempts(read_capture(tmp_path / "synthetic.trace"))


def test_physical_addresses_are_kept_where_asked_for(trace, tmp_path):
    trace.map(HEADER)
    trace.map(BUFFER, 2)
    lines = [trace.lines[0], trace.lines[1].replace(" paddr", " other")]
    (tmp_path / "synthetic.trace").write_text("".join(lines))
    assert read_capture(tmp_path / "synthetic.trace", physical=True).paddrs.tolist() == [HEADER * PAGE, -1]
    assert read_capture(tmp_path / "synthetic.trace").paddrs is None


@pytest.mark.captures
def test_every_request_of_the_small_aperture_follows_the_pattern(captures_dir):
    path = captures_dir / "s390x-6.12-lazy-vblk-smallaperture-2cpu.trace.gz"
    found = find_attempts(read_capture(path, physical=True))
    assert (len(found.attempts), found.failed, found.roll_backs) == (4781, 397, 2597)
    # The driver's rings are two mappings made before all requests.
    assert (found.unclaimed_maps, found.unclaimed_roll_backs) == (2, 0)
    assert (found.attempts["wanted_pages"] > 0).tolist() == found.attempts["failed"].tolist()
    assert found.attempts["wanted_pages"][found.attempts["failed"]].min() > 32


@pytest.mark.captures
def test_requests_that_never_failed_are_attempts_too_and_other_drivers_have_none(captures_dir):
    vblk = find_attempts(read_capture(captures_dir / "s390x-6.12-lazy-vblk-2cpu.trace.gz", physical=True))
    assert (len(vblk.attempts), vblk.failed, vblk.unclaimed_maps) == (9101, 0, 2)
    nvme = find_attempts(read_capture(captures_dir / "s390x-6.12-lazy-nvme-2cpu.trace.gz", physical=True))
    assert len(nvme.attempts) == 0
