"""Maps and unmaps taken from RPCITs, of a kernel that has no events for them."""

import pytest

from emu.capture.events import MAP, UNMAP, CaptureError
from emu.capture.ftrace import read_capture

PAGE = 4096
IRQ = "d.h2."
FIRST = 0x100000
APERTURE = 0x80000


def line(event, *, ms, cpu=0, flags="....."):
    return f"          kw-182     [{cpu:03}] {flags} {1 + ms / 1000:12.6f}: {event}\n"


def rpcit(page, pages=1, *, fn=1, **where):
    address = (FIRST + page) * PAGE
    return line(
        f"rpcit: (zpci_refresh_trans+0x0/0x1d8) fn=0x{fn << 32:x} addr=0x{address:x} range=0x{pages * PAGE:x}", **where
    )


def mark(text, *, ms):
    return line(f"tracing_mark_write: KCMARK {text}", ms=ms)


@pytest.fixture
def reading(tmp_path):
    """Reads lines, with what the kernel says stayed mapped."""

    def read(*lines, kept_pages=None):
        (tmp_path / "old.trace").write_text("".join(lines))
        return read_capture(tmp_path / "old.trace", kept_pages=kept_pages)

    return read


def first_pages(capture):
    return [start // PAGE - FIRST for start in capture.mappings["start"].tolist()]


def kept(capture):
    """First pages of the mappings that are never unmapped."""
    pages = zip(first_pages(capture), capture.mappings["unmap_event"].tolist(), strict=True)
    return [page for page, unmap in pages if unmap < 0]


def lives_ms(capture):
    times, mappings = capture.events["time_ns"], capture.mappings
    return ((times[mappings["unmap_event"]] - times[mappings["map_event"]]) / 1e6).tolist()


def test_in_process_context_it_is_a_map_and_in_an_interrupt_the_unmap_of_that_range(reading):
    capture = reading(rpcit(0, 4, ms=0), rpcit(4, ms=1, cpu=1), rpcit(0, 4, ms=3, flags=IRQ), rpcit(4, ms=4, flags=IRQ))
    assert first_pages(capture) == [0, 4]
    assert capture.mappings["pages"].tolist() == [4, 1]
    assert lives_ms(capture) == [3, 3]
    report = capture.report
    assert (report.map_events, report.unmap_events, report.unseen_unmaps, report.unmatched_unmaps) == (2, 2, 0, 0)


def test_adjacent_maps_that_stay_are_not_one_map(reading):
    capture = reading(rpcit(0, ms=0), rpcit(1, ms=0.1), mark("p.begin", ms=9), kept_pages={"p": 2})
    assert first_pages(capture) == kept(capture) == [0, 1]
    assert capture.mappings["nents"].tolist() == [1, 1]


def test_an_unmap_that_is_missing_is_supplied_soon_after_its_map(reading):
    capture = reading(rpcit(0, ms=0), rpcit(1, ms=2), rpcit(1, ms=7, flags=IRQ))
    assert lives_ms(capture) == [0.5, 5]
    assert capture.report.unseen_unmaps == 1
    assert not capture.mappings["supplied"].any()


def test_a_supplied_unmap_is_on_the_maps_cpu_and_in_the_maps_phase(reading):
    capture = reading(mark("p.begin", ms=0), rpcit(0, ms=1, cpu=3), mark("p.end", ms=1.2), rpcit(1, ms=9))
    unmap = int(capture.mappings["unmap_event"][0])
    end = next(change.event for change in capture.phase_changes if change.name == "(after p)")
    assert unmap < end
    assert capture.events["cpu"][unmap] == 3
    assert capture.events["time_ns"][unmap] <= capture.events["time_ns"][end]


def test_what_stays_is_as_much_as_the_kernel_counted_between_two_readings_the_largest_first(reading):
    capture = reading(
        rpcit(0, ms=0),
        rpcit(1, ms=1),
        rpcit(2, 8, ms=2),
        mark("p.begin", ms=3),
        rpcit(10, 4, ms=4),
        rpcit(14, ms=5),
        mark("p.end", ms=6),
        kept_pages={"p": 9, "(after p)": 1},
    )
    assert kept(capture) == [0, 2, 14]
    assert "all but what the kernel's counters say" in capture.report.sentences()[0]


def test_what_is_seen_to_be_unmapped_does_not_stay(reading):
    capture = reading(
        rpcit(0, ms=0), rpcit(1, ms=1), rpcit(0, ms=2, flags=IRQ), mark("p.begin", ms=3), kept_pages={"p": 1}
    )
    assert kept(capture) == [1]


def test_without_counters_nothing_stays_and_the_report_says_so(reading):
    capture = reading(rpcit(0, 16, ms=0), rpcit(16, ms=1))
    assert kept(capture) == []
    (sentence,) = capture.report.sentences()
    assert "taken from rpcit probes" in sentence
    assert "no counters say what stayed mapped" in sentence
    assert capture.report.flaws() == []


def test_a_map_goes_before_those_of_higher_addresses_whose_rpcits_overtook_its_own(reading):
    capture = reading(rpcit(0, ms=0), rpcit(2, ms=1), rpcit(3, ms=2), rpcit(1, ms=2.5, cpu=1), rpcit(4, ms=3))
    assert first_pages(capture) == [0, 1, 2, 3, 4]
    assert (capture.events["time_ns"][1:] >= capture.events["time_ns"][:-1]).all()
    assert capture.events["cpu"][capture.mappings["map_event"]].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("later_ms", [5, 500])
def test_the_allocators_coming_round_is_not_taken_for_that(reading, later_ms):
    lines = [rpcit(0, ms=0), rpcit(APERTURE - 1, ms=1), rpcit(1, ms=1 + later_ms)]
    assert first_pages(reading(*lines)) == [0, APERTURE - 1, 1]


def test_a_global_rpcit_is_no_map(reading):
    capture = reading(rpcit(0, ms=0), rpcit(1, ms=1), rpcit(0, APERTURE, ms=2), rpcit(2, ms=3))
    assert first_pages(capture) == [0, 1, 2]


def test_the_only_rpcit_is_a_map(reading):
    assert first_pages(reading(rpcit(0, ms=0))) == [0]


def test_every_function_has_addresses_of_its_own(reading):
    lines = [
        rpcit(0, fn=1, ms=0),
        rpcit(0, fn=2, ms=1),
        rpcit(0, fn=1, ms=5, flags=IRQ),
        rpcit(0, fn=2, ms=7, flags=IRQ),
    ]
    assert lives_ms(reading(*lines)) == [5, 6]


def test_an_rpcit_in_an_interrupt_over_what_is_not_mapped_is_counted(reading):
    capture = reading(rpcit(0, ms=0), rpcit(7, ms=1, flags=IRQ))
    assert first_pages(capture) == [0]
    assert capture.report.unmatched_unmaps == 1


def test_the_recorded_rpcits_stay_among_the_events(reading):
    capture = reading(rpcit(0, ms=0), rpcit(0, ms=1, flags=IRQ))
    kinds = capture.events["kind"].tolist()
    assert kinds.index(MAP) == 0
    assert kinds.count(UNMAP) == 1
    assert len(kinds) == 4


@pytest.mark.parametrize(
    "lines",
    [
        [mark("p.begin", ms=0)],
        [rpcit(0, ms=0, flags=IRQ), rpcit(1, ms=1, flags=IRQ)],
        [rpcit(0, ms=0), line("s390_flush_iotlb_all: (s390_iommu_flush+0x0/0x8) dom=0x1", ms=1)],
    ],
    ids=["no RPCITs", "none of a map", "a kernel with a flush queue"],
)
def test_without_maps_a_capture_is_refused(reading, lines):
    with pytest.raises(CaptureError, match="has no map events"):
        reading(*lines)


def test_a_text_that_does_not_tell_interrupts_is_refused(reading):
    text = "kw   182 [000]     1.000001:    rpcit: (1234) fn=0x100000000 addr=0x100000000 range=0x1000\n"
    with pytest.raises(CaptureError, match=r"has no map events \(1 lines, 1 RPCITs\)"):
        reading(text.replace("rpcit:", "probe:rpcit:"))
