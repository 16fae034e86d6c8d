"""The captures in the package: found by name, and replayed to the kernel's counters."""

from pathlib import Path

import pytest

from emu.capture.counters import read_counters
from emu.capture.events import CaptureError
from emu.capture.ftrace import read_capture
from emu.capture.shipped import find_capture, shipped_captures
from emu.workload.from_capture import capture_workload
from tests.machine.machines import run


@pytest.mark.parametrize("name", shipped_captures())
@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_a_shipped_capture_replays_to_the_kernels_counters(name, engine):
    path = find_capture(Path(name))
    capture, kernel = read_capture(path), read_counters(path)
    domain = "DMA-SQ" if kernel.is_lazy else "DMA"
    load = capture_workload(capture)
    result = run(domain, workload=load, machine_engine=engine, machine_cpus=capture.cpus).run
    for counter in ("Mapped pages", "Unmapped pages", "Sync Map RPCITs", "Sync RPCITs"):
        assert result["counters"][counter] == kernel.totals[counter]
    assert result["conservation"]["holds"]


def test_there_is_a_strict_and_a_lazy_one():
    assert len(shipped_captures()) == 2


def test_a_file_goes_before_a_capture_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s390x-lazy-nvme").write_text("mine")
    assert find_capture(Path("s390x-lazy-nvme")).read_text() == "mine"


def test_what_is_neither_a_file_nor_a_name_is_one_line():
    with pytest.raises(CaptureError, match="s390x-lazy-nvme") as error:
        find_capture(Path("nothing"))
    assert "\n" not in str(error.value)
