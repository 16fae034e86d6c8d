"""`tools/capture.sh` on a machine of plain files: what it switches on, what it writes, and that it undoes everything.

tracefs is a folder here; what the kernel does by itself (an instance has files at once, and is gone with its folder) is
done by a `mkdir` and a `rmdir` that are found before the real ones. `rmdir` keeps what was written, to be looked at.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from emu.capture.counters import COUNTERS, read_counters
from emu.capture.ftrace import read_capture
from emu.capture.scanner import KIND_OF

SCRIPT = Path(__file__).parents[2] / "tools" / "capture.sh"
SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]
DEVICE = "0001:00:00.0"
KALLSYMS = ("zpci_refresh_trans", "fq_flush_timeout", "s390_iommu_flush_iotlb_all", "iommu_map", "iommu_unmap_fast")
STATISTICS = """Update interval: 4000 ms
Samples: 2
Last update TOD: 2e0a279bce
           Load operations:\t180
              Mapped pages:\t{0}
            Unmapped pages:\t{1}
             Global RPCITs:\t{2}
           Sync Map RPCITs:\t{0}
              Sync RPCITs:\t0
"""
MKDIR = """#!/bin/sh
for last; do :; done
case $last in */instances/emu-capture) exec cp -r "{template}" "$last" ;; *) exec {mkdir} "$@" ;; esac
"""
RMDIR = """#!/bin/sh
for last; do :; done
case $last in */instances/emu-capture) rm -rf "{after}"; exec mv "$last" "{after}" ;; *) exec {rmdir} "$@" ;; esac
"""


def a_line(event: str, seconds: float) -> str:
    return f"              kw-182     [000] ..... {seconds:12.6f}: {event}\n"


TRACE = (
    "# tracer: nop\n#\n# entries-in-buffer/entries-written: 8/8   #P:2\n#\n"
    + a_line("tracing_mark_write: KCTYPE DMA-FQ", 1.0)
    + a_line("tracing_mark_write: KCMARK p1.begin", 2.0)
    + a_line("map: IOMMU: iova=0x0000000100001000 - 0x0000000100002000 paddr=0x0000000000002000 size=4096", 3.0)
    + a_line("unmap: IOMMU: iova=0x0000000100001000 - 0x0000000100002000 size=4096 unmapped_size=4096", 4.0)
    + a_line("tracing_mark_write: KCMARK p1.end", 5.0)
    + a_line("tracing_mark_write: KCSNAP p1.settled begin", 6.0)
)


class Machine:
    """A root file system with what the script reads, and a folder to call it in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.here = folder / "here"
        self.tools = folder / "bin"
        self.after = folder / "instance-after"
        self.tracing = self.root / "sys/kernel/tracing"
        self.instance = self.tracing / "instances/emu-capture"
        self.statistics = self.root / f"sys/kernel/debug/pci/{DEVICE}/statistics"
        for path in (self.here, self.tools, self.instance.parent):
            path.mkdir(parents=True)
        self._make_tracefs(folder / "template")
        self._make_machine()
        mkdir, rmdir = shutil.which("mkdir"), shutil.which("rmdir")
        self.tool("mkdir", MKDIR.format(template=folder / "template", mkdir=mkdir))
        self.tool("rmdir", RMDIR.format(after=self.after, rmdir=rmdir))
        self.tool("sleep", "#!/bin/sh\n")
        self.tool("dmesg", "#!/bin/sh\necho '[ 1.0] DMAR: IOMMU \"batching\" disallowed'\necho '[ 2.0] usb 1-1'\n")

    def _make_tracefs(self, template: Path) -> None:
        for place in (template, self.tracing):
            for event in ("map", "unmap", "io_page_fault"):
                self.put(place / f"events/iommu/{event}/enable", "0\n")
        self.put(template / "events/emu_capture/enable", "0\n")
        for name, text in {"tracing_on": "1\n", "trace_clock": "local\n", "trace": TRACE, "trace_marker": ""}.items():
            self.put(template / name, text)
        self.put(template / "per_cpu/cpu0/stats", "entries: 6\noverrun: 2\ncommit overrun: 0\ndropped events: 0\n")
        self.put(template / "per_cpu/cpu1/stats", "entries: 0\noverrun: 0\ncommit overrun: 0\ndropped events: 0\n")
        self.put(self.tracing / "kprobe_events", "p:others/thing thing\n")
        self.put(self.tracing / "kprobe_profile", "  rpcit    12   3\n  thing    9   9\n")

    def _make_machine(self) -> None:
        proc = self.root / "proc"
        self.put(proc / "kallsyms", "".join(f"0000000000000000 t {symbol}\n" for symbol in KALLSYMS))
        self.put(proc / "version", "Linux version 6.12.9-generic (gcc) #1 SMP\n")
        self.put(proc / "cmdline", 'quiet what="ever"\n')
        self.put(proc / "uptime", "22.08 40.00\n")
        self.put(proc / "meminfo", "MemTotal:        1600000 kB\n")
        self.put(self.root / "sys/devices/system/cpu/online", "0-1,4\n")
        self.put(self.root / "boot/config-6.12.9-generic", "CONFIG_HZ_100=y\nCONFIG_HZ=100\n")
        self.put(self.root / f"sys/bus/pci/devices/{DEVICE}/class", "0x010802\n")
        self.put(self.root / "sys/kernel/iommu_groups/0/type", "DMA-FQ\n")
        self.put(self.root / f"sys/kernel/iommu_groups/0/devices/{DEVICE}/x", "")
        self.put(self.root / "sys/kernel/iommu_groups/1/type", "identity\n")
        self.put(self.root / "sys/kernel/iommu_groups/1/devices/0002:00:00.0/x", "")
        self.count(10, 8, 1)

    def put(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tool(self, name: str, text: str) -> None:
        self.put(self.tools / name, text)
        (self.tools / name).chmod(0o755)

    def count(self, *values: int) -> None:
        self.put(self.statistics, STATISTICS.format(*values))

    def start(self, *arguments: str, shell: list[str] = SHELLS[0]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*shell, str(SCRIPT), *arguments],
            cwd=self.here,
            env={**os.environ, "EMU_CAPTURE_ROOT": str(self.root), "PATH": f"{self.tools}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def record(self, *arguments: str, shell: list[str] = SHELLS[0]) -> tuple[int, str]:
        process = self.start(*arguments, shell=shell)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def control(self, name: str) -> str:
        """What was written to a file of the instance, which is gone."""
        return (self.after / name).read_text()

    def marks(self) -> list[str]:
        return self.control("trace_marker").splitlines()

    def is_as_before(self) -> bool:
        """Nothing is left of a capture but its results."""
        probes = (self.tracing / "kprobe_events").read_text().splitlines()
        made = {line.split()[0].partition(":")[2] for line in probes if line[0] in "pr"}
        removed = {line[2:] for line in probes if line[0] == "-"}
        return not self.instance.exists() and made - removed == {"others/thing"} and not list(self.here.glob("*.part"))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_capture_is_read_by_the_reader_with_its_counters(machine, shell):
    work = "printf '%s' ran >> ran.txt"
    code, said = machine.record("-o", "mine", f"p1={work}", shell=shell)
    assert code == 0, said
    assert (machine.here / "ran.txt").read_text() == "ran"
    capture = read_capture(machine.here / "mine.trace.gz")
    counters = read_counters(machine.here / "mine.trace.gz")
    assert (len(capture.mappings), capture.phases, capture.cpus) == (1, ["p1"], 2)
    assert capture.domain_types[0][1] == "DMA-FQ"
    assert (counters.kernel, counters.machine, counters.domain_type) == ("6.12.9-generic", os.uname().machine, "DMA-FQ")
    assert counters.totals == dict(zip(COUNTERS, (10, 8, 1, 10, 0), strict=True))
    assert counters.comparable == dict.fromkeys(COUNTERS, 0)
    assert machine.is_as_before()


def test_what_was_counted_before_the_recording_is_not_compared(machine):
    statistics = STATISTICS.format(17, 12, 2)
    machine.record("-o", "mine", f"p1=cat > {machine.statistics} <<'END'\n{statistics}END\n")
    counters = read_counters(machine.here / "mine.trace.gz")
    wanted = dict(zip(COUNTERS, (7, 4, 1, 7, 0), strict=True))
    assert counters.comparable == wanted
    assert counters.phases[0].delta == wanted
    assert counters.totals["Mapped pages"] == 17


def test_every_step_is_marked_in_the_trace(machine):
    machine.record("-o", "mine", "p1=true", "p2=true")
    steps = ["KCSNAP {0}.before begin", "KCSNAP {0}.before end", "KCMARK {0}.begin", "KCMARK {0}.end"]
    steps += ["KCSNAP {0}.after begin", "KCSNAP {0}.after end", "KCSNAP {0}.settled begin", "KCSNAP {0}.settled end"]
    assert machine.marks() == ["KCTYPE DMA-FQ", *(step.format(phase) for phase in ("p1", "p2") for step in steps)]


def test_an_instance_of_its_own_is_set_up_and_nothing_else_touched(machine):
    machine.record("-o", "mine", "-b", "2048", "p1=true")
    assert machine.control("trace_clock") == "global\n"
    assert machine.control("buffer_size_kb") == "2048\n"
    assert [machine.control(f"events/iommu/{event}/enable") for event in ("map", "unmap", "io_page_fault")] == [
        "1\n"
    ] * 3
    assert (machine.tracing / "events/iommu/map/enable").read_text() == "0\n"
    assert not (machine.tracing / "tracing_on").exists()


def test_the_buffer_is_an_eighth_of_the_memory_unless_said_otherwise(machine):
    machine.record("-o", "mine", "p1=true")
    assert int(machine.control("buffer_size_kb")) == min(65536, 1_600_000 // 8 // 3)


def test_probes_are_set_where_the_kernel_has_the_function_and_removed(machine):
    _, said = machine.record("-o", "mine", "p1=true")
    lines = (machine.tracing / "kprobe_events").read_text().splitlines()
    made = [line for line in lines if line[0] in "pr"][1:]
    assert made == [
        "p:emu_capture/fq_flush_timeout fq_flush_timeout",
        "r:emu_capture/fq_flush_timeout_ret fq_flush_timeout",
        "p:emu_capture/rpcit zpci_refresh_trans fn=$arg1:x64 addr=$arg2:x64 range=$arg3:x64",
        "p:emu_capture/s390_flush_iotlb_all s390_iommu_flush_iotlb_all dom=$arg1:x64",
        "r:emu_capture/s390_flush_iotlb_all_ret s390_iommu_flush_iotlb_all",
    ]
    assert [line for line in lines if line[0] == "-"] == [f"-:{line.split()[0][2:]}" for line in made]
    assert "not in this kernel" in said
    assert "intel_flush_iotlb_all" in said


def test_every_probe_is_one_that_the_reader_knows():
    table = SCRIPT.read_text().partition("<<'TABLE'\n")[2].partition("\nTABLE")[0].splitlines()
    assert len(table) > 30
    assert [line for line in table if line.split()[2] not in KIND_OF] == []


def test_whose_a_mapping_is_is_recorded_where_several_domains_translate(machine):
    machine.put(machine.root / "sys/kernel/iommu_groups/1/type", "DMA\n")
    machine.record("-o", "mine", "p1=true")
    probes = (machine.tracing / "kprobe_events").read_text()
    assert "p:emu_capture/iommu_map iommu_map dom=$arg1:x64 iova=$arg2:x64\n" in probes
    assert "KCTYPE" not in machine.control("trace_marker")


def test_no_probes_are_set_where_none_are_wanted_or_possible(machine):
    before = (machine.tracing / "kprobe_events").read_text()
    assert machine.record("-o", "none", "-p", "none", "p1=true")[0] == 0
    assert (machine.tracing / "kprobe_events").read_text() == before
    (machine.tracing / "kprobe_events").unlink()
    code, said = machine.record("-o", "impossible", "p1=true")
    assert (code, "CONFIG_KPROBE_EVENTS" in said) == (0, True)


def test_the_description_says_how_it_was_recorded(machine):
    code, said = machine.record("-o", "mine", "-d", DEVICE, "-w", "7", 'p1=echo "a\\b"; exit 3')
    assert (code, "p1: its command ended with 3" in said) == (0, True)
    description = json.loads((machine.here / "mine.json").read_text())
    assert description["cmdline"] == 'quiet what="ever"'
    assert (description["hz"], description["vcpus"], description["settle_s"]) == (100, 3, 7)
    assert description["iommu_groups"] == {"0": {"type": "DMA-FQ", "devices": [DEVICE]}}
    assert description["lost_events"]["overrun_per_cpu"] == [2, 0]
    assert description["kprobe_profile"] == {"rpcit": {"hits": 12, "missed": 3}}
    assert description["trace_clock"] == "global"
    assert description["dmesg_iommu"] == ['[ 1.0] DMAR: IOMMU "batching" disallowed']
    phase = description["phases"]["p1"]
    assert (phase["command"], phase["exit_status"]) == ('echo "a\\b"; exit 3', 3)
    assert phase["counters_settled"][DEVICE]["Last update TOD"] == "2e0a279bce"
    assert "2 events were lost" in said


def test_the_text_is_tracefs_own(machine):
    machine.record("-o", "mine", "p1=true")
    assert gzip.decompress((machine.here / "mine.trace.gz").read_bytes()).decode() == TRACE


def test_without_a_command_one_phase_is_recorded_for_a_time(machine):
    assert machine.record("-o", "mine", "-s", "2")[0] == 0
    assert "KCMARK run.begin" in machine.marks()
    assert json.loads((machine.here / "mine.json").read_text())["phases"]["run"]["exit_status"] == 0


def wait_until(happens) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_command_ctrl_c_ends_the_phase_and_the_result_is_written(machine):
    machine.tool("sleep", f"#!/bin/sh\nexec {shutil.which('sleep')} 0.05\n")
    process = machine.start("-o", "mine")
    wait_until(
        lambda: (
            (machine.instance / "trace_marker").exists()
            and "run.begin" in (machine.instance / "trace_marker").read_text()
        )
    )
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, machine.is_as_before()) == (0, True), said
    assert read_capture(machine.here / "mine.trace.gz").report.map_events == 1


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_capture_that_is_stopped_leaves_nothing(machine, ending, code):
    process = machine.start("-o", "mine", f"p1=touch began; exec {shutil.which('sleep')} 60")
    wait_until((machine.here / "began").exists)
    os.killpg(process.pid, ending)
    process.communicate(timeout=60)
    assert (process.returncode, machine.is_as_before()) == (code, True)
    assert sorted(path.name for path in machine.here.iterdir()) == ["began"]


def test_a_capture_that_cannot_be_written_leaves_nothing(machine):
    machine.tool("gzip", "#!/bin/sh\nexit 1\n")
    code, said = machine.record("-o", "mine", "p1=true")
    assert (code, machine.is_as_before(), list(machine.here.iterdir())) == (2, True, [])
    assert "mine.trace.gz.part cannot be written" in said


def test_what_a_killed_capture_left_is_undone_on_request(machine):
    process = machine.start("-o", "mine", f"p1=touch began; exec {shutil.which('sleep')} 60")
    wait_until((machine.here / "began").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    code, said = machine.record("-o", "next", "p1=true")
    assert (code, "capture.sh -u" in said, machine.instance.exists()) == (2, True, True)
    assert machine.record("-u")[0] == 0
    assert machine.is_as_before()


def without(path: str):
    return lambda machine: shutil.rmtree(machine.root / path)


@pytest.mark.parametrize(
    ("arguments", "change", "what"),
    [
        (["p1=true"], without("sys/kernel/tracing"), "mount -t tracefs"),
        (["p1=true"], without("sys/kernel/tracing/events/iommu/map"), "no event iommu:map"),
        (["-d", "0009:00:00.0", "p1=true"], None, "no such PCI device"),
        (["p1"], None, "is not PHASE=COMMAND"),
        (["p 1=true"], None, "cannot name a phase"),
        (["-s", "x"], None, "-s must be a whole number"),
        (["-s", "2", "p1=true"], None, "-s is for recording without a command"),
        (["-p", "some", "p1=true"], None, "-p must be few, all or none"),
        (["-o", "no/where/mine", "p1=true"], None, "its folder is not there"),
        (["-x"], None, "see capture.sh -h"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_left(machine, arguments, change, what):
    if change:
        change(machine)
    code, said = machine.record(*arguments)
    assert code == 2
    assert what in said.splitlines()[-1]
    assert not machine.instance.exists()
    assert list(machine.here.iterdir()) == []


def test_an_earlier_result_is_not_overwritten(machine):
    (machine.here / "mine.trace.gz").write_text("precious")
    assert machine.record("-o", "mine.trace.gz", "p1=true")[0] == 2
    assert (machine.here / "mine.trace.gz").read_text() == "precious"


def test_only_root_may_record(machine):
    machine.tool("id", "#!/bin/sh\necho 1000\n")
    environment = {"PATH": f"{machine.tools}:{os.environ['PATH']}"}
    done = subprocess.run([*SHELLS[0], SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "must be run as root" in done.stderr


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_script_is_plain_shell(shell):
    subprocess.run([*shell, "-n", SCRIPT], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", SCRIPT], check=True)
