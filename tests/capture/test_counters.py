"""What the kernel's own counters mean, and when a whole trace can be held against them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emu.capture.counters import COUNTERS, KernelCounters, read_counters
from emu.capture.events import CaptureError

CAPTURES = Path(__file__).parents[3] / "shared" / "captures"
DEVICE = "0001:00:00.0"


def counts(*values: int) -> dict[str, object]:
    return {"Update interval": "4000 ms", "Samples": 2} | dict(zip(COUNTERS, values, strict=False))


def phase(before: dict[str, object], settled: dict[str, object], delta: dict[str, object]) -> dict[str, object]:
    return {
        "counters_before": {"uptime_s": 28.1} | before,
        "counters_settled": {"uptime_s": 30.1} | settled,
        "delta_running_plus_settling": delta,
    }


@pytest.fixture
def described(tmp_path):
    """Reads the counters of a capture with this description."""

    def read(**description: object) -> KernelCounters:
        (tmp_path / "run.json").write_text(json.dumps(description))
        counters = read_counters(tmp_path / "run.trace.gz")
        assert counters is not None
        return counters

    return read


def test_a_capture_without_a_description_has_no_counters(tmp_path):
    assert read_counters(tmp_path / "run.trace") is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"3", b"[" * 100_000])
def test_a_damaged_description_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(CaptureError, match=r"run\.json .*; repair it or move it away") as refusal:
        read_counters(tmp_path / "run.trace")
    assert "\n" not in str(refusal.value)


def test_what_is_not_said_is_empty(described):
    counters = described()
    assert (counters.refresh_operations, counters.kept_pages) == (None, {})
    assert (counters.kernel, counters.domain_type, counters.is_lazy, counters.vcpus) == ("", "", None, 0)
    assert (counters.phases, counters.totals, counters.comparable, counters.restarted) == ([], {}, {}, "")


@pytest.mark.parametrize("nonsense", [None, 3, "x", [], [{}], {"p": 1}, {"p": {"counters_settled": [2]}}])
def test_phases_of_another_shape_say_nothing(described, nonsense):
    assert described(phases=nonsense).totals == {}


def test_values_that_are_no_counts_say_nothing(described):
    settled = {DEVICE: counts(1, -2, 0, 1 << 64) | {"Global RPCITs": "many", "Sync RPCITs": True}}
    assert described(phases={"p": phase({}, settled, {})}).totals == {"Mapped pages": 1}


@pytest.mark.parametrize(
    ("types", "lazy"), [(["DMA"], False), (["DMA-FQ"], True), (["unknown"], None), (["DMA", "DMA-FQ"], None)]
)
def test_laziness_is_the_domains_type(described, types, lazy):
    assert described(domain_type=types).is_lazy is lazy


@pytest.mark.parametrize(
    ("kernel", "cmdline", "domain_type", "lazy"),
    [
        ("6.1.0-50-s390x", "quiet", "s390-lazy", True),
        ("6.6.99-s390x", "quiet s390_iommu=strict", "s390-strict", False),
        ("5.15.0-s390x", "s390_iommu=strictly", "s390-lazy", True),
        ("6.7.0-s390x", "s390_iommu=strict", "unknown", None),
        ("6.1.0-50-amd64", "quiet", "unknown", None),
        ("6.1.0-50-s390x", None, "unknown", None),
    ],
)
def test_before_linux_6_7_the_command_line_says_what_s390_had(described, kernel, cmdline, domain_type, lazy):
    counters = described(kernel_version=f"Linux version {kernel} (gcc)", cmdline=cmdline, domain_type=["unknown"])
    assert (counters.domain_type, counters.is_lazy) == (domain_type, lazy)


def test_the_hypervisor_counts_rpcits_of_all_devices_since_the_recording_began(described):
    at_start, settled = (
        {"a": {"Refresh operations": 7}},
        {"a": {"Refresh operations": 30}, "b": {"Refresh operations": 2}},
    )
    phases = {"p": {"counters_settled": settled}, "q": {"counters_settled": {"a": {"Refresh operations": 40}}}}
    assert described(phases=phases).refresh_operations == 42
    assert described(counters_at_start=at_start, phases=phases).refresh_operations == 35


def test_what_stays_mapped_is_told_from_reading_to_reading(described):
    first = phase({"a": counts(20, 5)}, {"a": counts(30, 14)}, {"a": counts(10, 9)})
    second = phase({"a": counts(31, 14)}, {"a": counts(35, 18)}, {"a": counts(4, 4)})
    phases = {"p": first, "q": second}
    assert described(phases=phases).kept_pages == {"p": 15, "(after p)": 1, "(after q)": 1}
    assert described(counters_at_start={"a": counts(12, 2)}, phases=phases).kept_pages["p"] == 5


@pytest.mark.parametrize(
    "banner", ["Linux version 6.12.107+deb13 (gcc) #1", "Linux 6.12.107+deb13 (Debian, unmodified)"]
)
def test_the_release_is_taken_from_the_banner(described, banner):
    assert described(kernel_version=banner).kernel == "6.12.107+deb13"


def test_totals_are_the_last_readings_of_all_devices(described):
    first = phase({}, {"a": counts(5), "b": counts(70)}, {})
    last = phase({"a": counts(5)}, {"a": counts(9, 8)}, {})
    counters = described(phases={"p1": first, "p2": last})
    assert counters.totals == {"Mapped pages": 79, "Unmapped pages": 8}
    assert counters.comparable == counters.totals
    assert counters.comparable_phases == []


def test_a_counter_lower_than_before_is_a_restart(described):
    first = phase({DEVICE: counts(5)}, {DEVICE: counts(100)}, {DEVICE: counts(95)})
    second = phase({DEVICE: counts(7)}, {DEVICE: counts(50)}, {DEVICE: counts(43)})
    counters = described(phases={"p1": first, "p2": second})
    assert [phase.restarted for phase in counters.phases] == [False, True]
    assert counters.totals == {"Mapped pages": 50}
    assert counters.comparable == {"Mapped pages": 95 + 43}
    assert counters.comparable_phases == ["p1", "p2"]
    assert "p2" in counters.restarted


def test_what_was_counted_before_the_recording_began_is_left_out(described):
    at_start = {DEVICE: counts(100, 90)}
    running = {"counters_before": {DEVICE: counts(103, 91)}, "counters_settled": {DEVICE: counts(110, 99)}}
    counters = described(counters_at_start=at_start, phases={"p": running})
    assert counters.totals == {"Mapped pages": 110, "Unmapped pages": 99}
    assert counters.comparable == {"Mapped pages": 10, "Unmapped pages": 9}
    assert counters.phases[0].delta == {"Mapped pages": 7, "Unmapped pages": 8}


def test_a_counter_lower_than_when_the_recording_began_is_a_restart(described):
    running = {"counters_before": {DEVICE: counts(3)}, "counters_settled": {DEVICE: counts(10)}}
    counters = described(counters_at_start={DEVICE: counts(100)}, phases={"p": running})
    assert (counters.comparable, counters.comparable_phases) == ({"Mapped pages": 7}, ["p"])


def test_a_phase_with_a_restart_inside_is_not_compared(described):
    first = phase({DEVICE: counts(5)}, {DEVICE: counts(100)}, {DEVICE: counts(95)})
    second = phase({DEVICE: counts(100)}, {DEVICE: counts(50)}, {DEVICE: counts(0)})
    counters = described(phases={"p1": first, "p2": second})
    assert [phase.interrupted for phase in counters.phases] == [False, True]
    assert counters.comparable == {"Mapped pages": 95}
    assert counters.comparable_phases == ["p1"]


def real(name: str) -> KernelCounters:
    if not CAPTURES.is_dir():
        pytest.skip(f"no real captures in {CAPTURES}")
    counters = read_counters(CAPTURES / f"{name}.trace.gz")
    assert counters is not None
    return counters


@pytest.mark.captures
def test_the_lazy_nvme_run_counted_this():
    counters = real("s390x-6.12-lazy-nvme-2cpu")
    assert (counters.kernel, counters.domain_type, counters.vcpus) == ("6.12.107+deb13-s390x", "DMA-FQ", 2)
    assert counters.totals == dict(zip(COUNTERS, (62339, 62294, 18, 25021, 0), strict=True))
    assert counters.comparable == counters.totals
    assert counters.restarted == ""
    assert len(counters.phases) == 7


@pytest.mark.captures
def test_the_switch_run_restarted_its_counters_and_is_compared_by_phases():
    counters = real("s390x-6.12-switch-nvme-2cpu")
    assert counters.totals == dict(zip(COUNTERS, (10706, 10662, 0, 3020, 3012), strict=True))
    assert counters.comparable == dict(zip(COUNTERS, (31950, 31950, 2, 9000, 6000), strict=True))
    assert counters.comparable_phases == [phase.name for phase in counters.phases]
    assert "s3-after-unbind" in counters.restarted


@pytest.mark.captures
@pytest.mark.parametrize("name", ["x86-6.12-strict-nvme-2cpu", "x86-6.12-lazy-vblk-8cpu-overrun"])
def test_x86_kernels_count_nothing_of_it(name):
    assert real(name).totals == {}


@pytest.mark.captures
def test_old_kernels_count_only_pages():
    counters = real("s390x-6.1-legacy-strict-nvme-2cpu")
    assert counters.totals == {"Mapped pages": 24938, "Unmapped pages": 24893}
    assert counters.refresh_operations == 20033
