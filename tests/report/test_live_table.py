"""One look as text: columns that keep their places, for scripts."""

from emu.report.live_table import plain_lines, sections

from .test_live_screen import figures


def test_columns_stand_where_they_stood_whatever_the_numbers():
    few = figures()
    many = figures(
        cpus=[cpu | {"pairs": 123_456_789, "pairs_per_s": 9.87e6} for cpu in few["cpus"]],
        exposure={name: value * 1e5 for name, value in few["exposure"].items()},
    )
    for before, after in zip(plain_lines(few), plain_lines(many), strict=True):
        if before.startswith(("cpu", "ring", "flushes", "hypervisor", "lock", "reachable")):
            assert before == after
        assert len(after) <= 80


def test_every_section_fits_80_columns_with_its_margins():
    for section in sections(figures()):
        assert sum(column.width for column in section.columns) + 2 * (len(section.columns) - 1) <= 78


def test_a_domain_without_a_queue_has_no_rings():
    assert "rings" not in [section.name for section in sections(figures(queue=None))]


def test_locks_that_nobody_waited_for_are_not_listed():
    (lock,) = figures()["locks"]
    text = "\n".join(plain_lines(figures(locks=[lock | {"contended": 0}])))
    assert "iova_fq.lock" not in text
    assert "none waited for" in text


def test_a_dead_timer_is_listed_and_a_living_one_is_not():
    assert not any(line.startswith("timer") for line in plain_lines(figures()))
    dead = figures(others=[{"role": "timer", "pid": 5003, "state": "dead"}])
    assert any(line.startswith("timer") and line.endswith("dead") for line in plain_lines(dead))


def test_what_happened_seldom_is_told_only_when_it_did():
    assert "overruns" not in next(line for line in plain_lines(figures()) if "violations" in line)
    head = list(plain_lines(figures(overruns={"count": 2, "count_per_s": 1.0}, map_failures=5, violations=1)))[1]
    assert "2 overruns" in head
    assert "5 maps failed" in head
    assert "1 violation " in head


def test_a_type_that_was_switched_to_is_named():
    machine = figures()["machine"] | {"domain": "DMA", "type": "DMA-SQ"}
    assert next(plain_lines(figures(machine=machine))).startswith("DMA, now DMA-SQ")
