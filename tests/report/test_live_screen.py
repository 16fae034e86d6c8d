"""The live view: fits its terminal, does what its keys say, and shows what others named as text."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from emu.report.live_screen import LiveView
from emu.report.live_table import ORDERS, plain_lines


def figures(**changes):
    """What a look at a machine of three CPUs says."""
    known = {
        "machine": {
            "pid": 4711,
            "folder": None,
            "domain": "DMA-FQ",
            "type": "DMA-FQ",
            "engine": "processes",
            "preset": "kvm",
            "workload": "nvme",
            "cpus": 3,
            "state": "running",
            "running_s": 12.34,
            "seconds": 30.0,
        },
        "interval_s": 2.0,
        "pairs": 123_456,
        "pairs_per_s": 41_633.4,
        "mapped_pages": 255,
        "map_failures": 0,
        "violations": 0,
        "cpus": [
            {"cpu": number, "pid": 5000 + number, "state": state, "in_flush": state == "served",
             "pairs": 9, "pairs_per_s": rate}
            for number, (state, rate) in enumerate((("running", 300.0), ("served", 100.0), ("queued", 500.0)))
        ],
        "slots_waited_for": 0,
        "others": [{"role": "timer", "pid": 5003, "state": "running"}],
        "queue": {
            "rings": [
                {"name": f"cpu {number}", "entries": entries, "size": 255, "oldest_ns": 1e6, "fill": entries / 255}
                for number, entries in enumerate((10, 250, 0))
            ],
            "timer_due_in_ns": 7_000_000,
        },
        "flushes": {cause: {"count": 3, "count_per_s": 1.5} for cause in ("full", "timeout", "no_resources", "wrap")},
        "overruns": {"count": 0, "count_per_s": 0.0},
        "hypervisor": {
            "servers": 1,
            "queue": 1,
            "requests": 999,
            "requests_per_s": 100.0,
            "utilisation": 0.75,
            "utilisation_in_all": 0.5,
            "mean_service_ns": 21_000.0,
            "mean_service_in_all_ns": 21_000.0,
            "mean_wait_ns": None,
            "mean_wait_in_all_ns": 5.0,
        },
        "locks": [
            {
                "name": "iova_fq.lock",
                "acquisitions": 9,
                "contended": 2,
                "contended_per_s": 1.0,
                "total_wait_ns": 5e6,
                "wait_ns_per_s": 1e6,
                "max_wait_ns": 3e6,
            }
        ],
        "exposure": {
            "windows": 7,
            "windows_per_s": 3.0,
            "page_seconds": 1.0,
            "page_seconds_per_s": 0.5,
            "longest_ns": 2e7,
            "open": 260,
        },
    }  # fmt: skip
    return known | changes


class Looks:
    """Figures in turn, the last again and again."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.count = 0
        self.note = ""

    def look(self):
        self.count += 1
        return self.looks[min(self.count, len(self.looks)) - 1]


@asynccontextmanager
async def shown(source, size=(80, 24), interval_s=60.0):
    view = LiveView(source, interval_s)
    async with view.run_test(size=size) as pilot:
        await pilot.pause()
        yield view, pilot


def screen(view):
    """The lines on the screen."""
    return ["".join(segment.text for segment in strip) for strip in view.screen._compositor.render_strips()]


def lines_of(source, size=(80, 24)):
    async def read():
        async with shown(source, size) as (view, _):
            return screen(view)

    return asyncio.run(read())


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_everything_of_a_small_machine_is_on_the_screen(size):
    text = "\n".join(lines_of(Looks(figures()), size))
    for said in ("DMA-FQ", "41633 pairs/s", "0 violations", "served by hypervisor (flush)", "iova_fq.lock",
                 "timer in 7.00 ms", "reachable after unmap", "q quit"):  # fmt: skip
        assert said in text


def test_a_wide_terminal_has_two_columns():
    narrow, wide = lines_of(Looks(figures()), (159, 50)), lines_of(Looks(figures()), (160, 50))
    assert not any("pairs/s" in line and "flushes" in line for line in narrow)
    assert any("pairs/s" in line and "flushes" in line for line in wide)


def cpus_of(lines):
    first = next(number for number, line in enumerate(lines) if line.lstrip().startswith("cpu "))
    return [line.split()[0] for line in lines[first + 1 : first + 4]]


def test_s_changes_the_order():
    async def press():
        async with shown(Looks(figures())) as (view, pilot):
            seen = [cpus_of(screen(view))]
            for _ in ORDERS:
                await pilot.press("s")
                await pilot.pause()
                seen.append(cpus_of(screen(view)))
            return seen

    numbered, fastest, slowest = ["0", "1", "2"], ["2", "0", "1"], ["1", "0", "2"]
    assert asyncio.run(press()) == [numbered, fastest, slowest, numbered]


def test_p_holds_the_figures_still_and_lets_them_go_on():
    source = Looks(figures(), figures(pairs_per_s=7.0))

    async def press():
        async with shown(source, interval_s=0.1) as (view, pilot):
            await pilot.press("p")
            await pilot.pause()
            count = source.count
            await asyncio.sleep(0.35)
            held = source.count - count
            paused = "\n".join(screen(view))
            await pilot.press("p")
            await pilot.pause()
            return held, paused, source.count - count, "\n".join(screen(view))

    held, paused, after, text = asyncio.run(press())
    assert (held, "paused" in paused) == (0, True)
    assert after >= 1
    assert "7.00 pairs/s" in text
    assert "paused" not in text


def test_plus_and_minus_change_the_interval_within_bounds():
    async def press():
        async with shown(Looks(figures()), interval_s=2.0) as (view, pilot):
            seen = []
            for keys in ("+", "--", "-" * 9, "+" * 12):
                for key in keys:
                    await pilot.press(key)
                seen.append(view.interval_s)
            return seen

    assert asyncio.run(press()) == [5.0, 1.0, 0.1, 60.0]


def test_q_ends_the_view():
    async def press():
        async with shown(Looks(figures())) as (view, pilot):
            await pilot.press("q")
            await pilot.pause()
            return view.is_running, view.return_code

    assert asyncio.run(press()) == (False, 0)


def test_violations_are_red():
    async def style_of(found):
        async with shown(Looks(found)) as (view, _):
            segments = [segment for strip in view.screen._compositor.render_strips() for segment in strip]
            return next(segment.style for segment in segments if "violation" in segment.text)

    red, plain = asyncio.run(style_of(figures(violations=3))), asyncio.run(style_of(figures()))
    assert red.bold
    assert red.color != plain.color


def test_what_is_said_of_the_machine_stands_in_the_head():
    source = Looks(figures())
    source.note = "the machine has ended"
    assert "the machine has ended" in "\n".join(lines_of(source))


def test_no_figures_are_no_failure():
    source = Looks(None)
    source.note = "[red]nothing yet"
    assert "[red]nothing yet" in "\n".join(lines_of(source))


def test_names_of_others_are_shown_as_text():
    machine = figures()["machine"] | {"workload": "[red]a\x1b[2Jb\nc[/red]"}
    on_screen = "\n".join(lines_of(Looks(figures(machine=machine))))
    assert "[red]a\\x1b[2Jb\\nc[/red]" in on_screen
    first, *_ = plain_lines(figures(machine=machine))
    assert "[red]a\\x1b[2Jb\\nc[/red]" in first


def test_many_cpus_can_be_scrolled_to():
    (cpu, *_) = figures()["cpus"]
    many = Looks(figures(cpus=[cpu | {"cpu": number} for number in range(64)]))

    async def scroll():
        async with shown(many) as (view, pilot):
            await pilot.press("end")
            await pilot.pause(0.2)
            return "\n".join(screen(view))

    assert "iova_fq.lock" not in "\n".join(lines_of(many))
    assert "iova_fq.lock" in asyncio.run(scroll())
