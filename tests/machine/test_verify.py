"""Captures of real kernels, replayed at their recorded times on virtual clocks: number by number what Linux did."""

import dataclasses
from functools import cache, partial
from pathlib import Path

import pytest

from emu.capture.counters import read_counters
from emu.capture.ftrace import read_capture
from emu.capture.shipped import find_capture
from emu.config import load
from emu.experiment import run_machine
from emu.verify import verify_capture
from tests.conftest import CAPTURES

DOMAINS = {
    "s390x-6.12-lazy-nvme-2cpu": ("DMA-SQ", "kvm"),
    "s390x-6.12-lazy-vblk-2cpu": ("DMA-SQ", "kvm"),
    "s390x-6.12-lazy-vblk-smallaperture-2cpu": ("DMA-SQ", "kvm"),
    "s390x-6.12-strict-nvme-2cpu": ("DMA", "kvm"),
    "s390x-6.12-switch-nvme-2cpu": ("DMA", "kvm"),
    "x86-6.12-cachingmode-nvme-2cpu": ("DMA", "kvm"),
    "x86-6.12-lazy-nvme-2cpu": ("DMA-FQ", "bare-metal"),
    "x86-6.12-strict-nvme-2cpu": ("DMA", "bare-metal"),
    "x86-6.12-lazy-vblk-8cpu-overrun": ("DMA-FQ", "bare-metal"),
}
TIMERS = {"s390x-6.12-lazy-nvme-2cpu": 18, "s390x-6.12-lazy-vblk-2cpu": 19, "x86-6.12-lazy-nvme-2cpu": 238}
FULL = {"s390x-6.12-lazy-vblk-2cpu": 3, "x86-6.12-lazy-nvme-2cpu": 4}


def verify(path, domain, preset, kernel=None, physical=False, **options):
    capture = read_capture(path, physical=physical)
    overrides = [("machine", "cpus", capture.cpus), ("domain", "types", [domain]), ("domain", "aperture_mb", 16384)]
    config = load(None, preset, [*overrides, *[("domain", key, value) for key, value in options.items()]])
    return verify_capture(capture, kernel or read_counters(path), config, partial(run_machine, real_time=True))


@cache
def verified(name):
    return verify(CAPTURES / f"{name}.trace.gz", *DOMAINS[name])


@pytest.fixture(params=DOMAINS)
def found(request, captures_dir):  # noqa: ARG001 - skips without them
    return verified(request.param)


@pytest.mark.captures
def test_every_counter_of_every_phase_is_the_kernels(found):
    verification, _ = found
    assert verification.comparison.phases
    for _, rows in verification.comparison.phases:
        assert [(row.name, row.emu) for row in rows] == [(row.name, row.kernel) for row in rows]
    assert verification.moved == 0


@pytest.mark.captures
def test_every_timer_was_pending_when_it_fired_and_due_within_25_ms_of_that(found):
    verification, _ = found
    flushes = verification.flushes
    # Eight virtual CPUs on two cores: three interrupts came later.
    assert flushes.beyond_tolerance == (3 if "overrun" in verification.capture else 0)
    assert flushes.timers_agree
    assert flushes.unmatched == 0
    assert len(flushes.firings_ms) == TIMERS.get(verification.capture, len(flushes.firings_ms))


@pytest.mark.captures
def test_every_flush_by_a_full_ring_is_at_the_kernels_unmap(found):
    verification, _ = found
    flushes = verification.flushes
    assert flushes.full_emu == flushes.full_kernel
    assert len(flushes.full_emu) == FULL.get(verification.capture, len(flushes.full_emu))


@pytest.mark.captures
def test_the_books_balance_at_recorded_times_too(found):
    _, outcome = found
    assert outcome.run["violations"] == 0
    assert outcome.run["conservation"]["holds"], outcome.run["conservation"]
    assert outcome.run["map_failures"] == 0


@pytest.mark.captures
def test_the_types_changes_of_the_switch_capture_are_made_again(captures_dir):  # noqa: ARG001
    _, outcome = verified("s390x-6.12-switch-nvme-2cpu")
    done = [switch["type"] or switch["driver"] for switch in outcome.run["switches"]]
    assert done[0] == "DMA-SQ"
    assert done[1:4] == ["unbind", "DMA", "bind"]
    assert not [switch for switch in outcome.run["switches"] if switch["errno"]]
    assert outcome.run["type_at_end"] == "DMA"


@pytest.mark.captures
def test_where_the_kernel_ran_out_of_addresses_as_many_calls_fail_here(captures_dir, monkeypatch):
    # All 13 are looked at in test_small_aperture.py; here that a verification has them.
    monkeypatch.setattr("emu.verify.possible_times", lambda recorded: [recorded])
    path = captures_dir / "s390x-6.12-lazy-vblk-smallaperture-2cpu.trace.gz"
    verification, _ = verify(path, "DMA-SQ", "kvm", physical=True)
    attempts = verification.attempts
    assert attempts["replays"] == 1
    assert attempts["failures"]["kernel"] == 397
    assert attempts["failures"]["emu"] == pytest.approx(397, rel=0.2)
    assert attempts["first_failed_attempt"]["emu"] == attempts["first_failed_attempt"]["kernel"]
    assert verification.as_dict()["attempts"] == attempts


@pytest.mark.captures
def test_two_verifications_are_the_same(captures_dir):  # noqa: ARG001
    path = CAPTURES / "s390x-6.12-lazy-nvme-2cpu.trace.gz"
    first, second = (verify(path, "DMA-SQ", "kvm")[0].as_dict() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("name", "domain"), [("s390x-lazy-nvme", "DMA-SQ"), ("s390x-strict-nvme", "DMA")])
def test_the_captures_of_the_package_agree(name, domain):
    verification, _ = verify(find_capture(Path(name)), domain, "kvm")
    assert verification.disagreements() == []
    assert len(verification.comparison.phases) == 2


def test_a_queue_of_another_size_does_not_agree():
    verification, _ = verify(find_capture(Path("s390x-lazy-nvme")), "DMA-SQ", "kvm", fq_size=1024)
    assert not verification.agrees
    assert verification.flushes.full_emu
    assert "flushes by full rings did not happen at the same unmaps" in verification.disagreements()


def test_a_queue_of_another_timeout_does_not_agree():
    verification, _ = verify(find_capture(Path("s390x-lazy-nvme")), "DMA-SQ", "kvm", fq_timeout_ms=300.0)
    assert not verification.agrees


def test_a_strict_domain_does_not_agree_with_a_lazy_kernel():
    verification, _ = verify(find_capture(Path("s390x-lazy-nvme")), "DMA", "kvm")
    assert any("timer flushes" in line for line in verification.disagreements())


def test_a_kernel_that_counted_one_page_more_does_not_agree():
    path = find_capture(Path("s390x-strict-nvme"))
    kernel = read_counters(path)
    first, *others = kernel.phases
    delta = {**first.delta, "Mapped pages": first.delta["Mapped pages"] + 1}
    counted = dataclasses.replace(kernel, phases=[dataclasses.replace(first, delta=delta), *others])
    verification, _ = verify(path, "DMA", "kvm", kernel=counted)
    assert verification.disagreements() == [
        f"Mapped pages in {first.name}: {delta['Mapped pages'] - 1} here, {delta['Mapped pages']} in the kernel"
    ]
