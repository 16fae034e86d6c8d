"""How fast a capture is read, and in how much memory.

    python tools/bench_capture.py [--capture NAME_OR_FILE] [--events N] [--keep FILE] [--json]
    python tools/bench_capture.py --file FILE [--json]

Makes a capture of N events (10 million unless said otherwise) out of a real one, by default one that comes with the
package: the text again and again, each time later and at higher addresses, so that no mapping meets one of another
round; gzip'd as tracefs text usually is. A process of its own then reads it as `emu replay` does, and tells events
(lines that are events, of all kinds) per second of CPU time, one core's, unpacking and pairing included, compiling not,
and its largest resident size, everything included. With `--file` a capture that exists is read.

Exit code 0: at least 500 000 events/s in at most 1 GiB; 1: not; 2: the capture cannot be read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emu.capture.events import CaptureError
from emu.capture.ftrace import ENTRIES, read_capture
from emu.capture.shipped import find_capture
from emu.native.compile import compile_entries

LEAST_EVENTS_PER_S = 500_000
MOST_BYTES = 1 << 30
APERTURE_BYTES = 1 << 34
"""By how much addresses grow from round to round: more than the real captures' addresses are apart."""
PAGE_SHIFT = 12

_STAMP = rb" (?P<seconds>[0-9]+)\.(?P<micros>[0-9]{6}): "
_ADDRESS = rb"(?:iova=|addr=|start=| - |end=)0x(?P<address>[0-9a-f]+)(?= |$)"
_PFN = rb"pfn=0x(?P<pfn>[0-9a-f]+)"
_SHIFTED = re.compile(b"|".join((_STAMP, _ADDRESS, _PFN)), re.MULTILINE)
_EVENT = re.compile(rb"^.*\[[0-9]+\].*$", re.MULTILINE)
_HEADER = b"# tracer: nop\n#\n# entries-in-buffer/entries-written: %d/%d   #P:%d\n#\n"


def rounds(text: bytes, count: int) -> Iterator[bytes]:
    """The text's events `count` times, each round later and at higher addresses than the one before."""
    text = b"\n".join(_EVENT.findall(text)) + b"\n"
    pieces, values, at = [], [], 0
    for found in _SHIFTED.finditer(text):
        group = found.lastgroup
        if group == "micros":
            begin, value = found.start("seconds"), int(found["seconds"]) * 1_000_000 + int(found["micros"])
        else:
            begin, value = found.start(group), int(found[group], 16)
        pieces.append(text[at:begin])
        values.append((group, value, found.end(group) - begin))
        at = found.end(group)
    times = [value for group, value, _ in values if group == "micros"]
    span_us = max(times) - min(times) + 1_000
    for number in range(count):
        shifts = {"micros": number * span_us, "address": number * APERTURE_BYTES}
        shifts["pfn"] = shifts["address"] >> PAGE_SHIFT
        words = [
            b"%s%d.%06d" % (piece, *divmod(value + shifts[group], 1_000_000))
            if group == "micros"
            else b"%s%0*x" % (piece, width, value + shifts[group])
            for piece, (group, value, width) in zip(pieces, values, strict=True)
        ]
        yield b"".join(words) + text[at:]


def write_capture(source: Path, target: Path, events: int) -> None:
    """Write a gzip'd capture of at least so many events."""
    text = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    in_text = len(_EVENT.findall(text))
    cpus = max(int(cpu) for cpu in re.findall(rb"\[([0-9]{3})\]", text)) + 1
    count = -(-events // in_text)
    with gzip.open(target, "wb", compresslevel=1) as file:
        file.write(_HEADER % (count * in_text, count * in_text, cpus))
        for part in rounds(text, count):
            file.write(part)


def read(path: Path) -> dict[str, Any]:
    """Read a capture in this process, and measure."""
    started = time.perf_counter()
    compile_entries(ENTRIES)
    compiled = time.perf_counter()
    cpu_s = time.process_time()
    capture = read_capture(path)
    cpu_s, seconds = time.process_time() - cpu_s, time.perf_counter() - compiled
    events = len(capture.events) + capture.report.other_events
    kept = sum(array.nbytes for array in (capture.events, capture.ring_states, capture.mappings, capture.chunks))
    return {
        "capture": str(path),
        "events": events,
        "mappings": len(capture.mappings),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "compile_s": compiled - started,
        "events_per_s": events / cpu_s,
        "kept_bytes": kept,
        "peak_rss_bytes": peak_rss_bytes(),
        "report": capture.report.sentences(),
    }


def peak_rss_bytes() -> int:
    """The largest resident size of this program so far; getrusage's would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+([0-9]+) kB", status)[0]) * 1024


def read_elsewhere(path: Path) -> dict[str, Any]:
    """The same in a process that has done nothing else."""
    command = [sys.executable, __file__, "--file", str(path), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", default="s390x-lazy-nvme", help="what the large capture is made of")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, help="where the large capture is left")
    parser.add_argument("--file", type=Path, help="read this capture instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        if options.file:
            result = read(options.file)
        else:
            with tempfile.TemporaryDirectory() as folder:
                target = options.keep or Path(folder) / "large.trace.gz"
                write_capture(find_capture(Path(options.capture)), target, options.events)
                result = read_elsewhere(target)
    except CaptureError as error:
        print(f"bench_capture.py: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if options.json else _said(result))
    return 0 if result["events_per_s"] >= LEAST_EVENTS_PER_S and result["peak_rss_bytes"] <= MOST_BYTES else 1


def _said(result: dict[str, Any]) -> str:
    seconds = f"{result['cpu_s']:.1f} s of CPU ({result['seconds']:.1f} s)"
    kept = f"{result['kept_bytes'] / 1e6:.0f} MB of them the capture's"
    lines = [
        f"{result['events']} events, {result['mappings']} map calls in {seconds}",
        f"{result['events_per_s']:,.0f} events/s (at least {LEAST_EVENTS_PER_S:,})",
        f"{result['peak_rss_bytes'] / 1e6:.0f} MB at most (of {MOST_BYTES / 1e6:.0f}), {kept}",
    ]
    return "\n".join([*lines, *result["report"]])


if __name__ == "__main__":
    sys.exit(main())
