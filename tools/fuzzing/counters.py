"""Counters: the JSON description beside a capture, and what is said from it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from emu.capture.counters import COUNTERS, read_counters
from emu.capture.events import CaptureError
from emu.cli.replay import _default_domains, _is_caching_mode
from emu.report.kernel_counters import print_comparisons
from fuzzing.target import Target, WrongError


class Counters(Target):
    """Reads a description, and shows what it says."""

    name = "counters"
    modules = ("emu.capture.counters",)
    refusals = (CaptureError,)

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="emu-fuzz-")
        self._capture = Path(self._folder.name) / "capture.trace"
        self._description = self._capture.with_suffix(".json")

    def close(self) -> None:
        self._folder.cleanup()

    def seeds(self) -> list[bytes]:
        device = dict.fromkeys(COUNTERS, 7)
        phase = {
            "counters_before": {"0001": device},
            "counters_settled": {"0001": {**device, "Mapped pages": 9, "Refresh operations": 5}},
            "delta_running_plus_settling": {"0001": device},
        }
        whole: dict[str, Any] = {
            "kernel_version": "Linux version 6.12.107+deb13-s390x (x@y)",
            "arch": "s390x",
            "cmdline": "root=/dev/vda s390_iommu=strict",
            "domain_type": ["DMA", "DMA-FQ"],
            "vcpus": 2,
            "counters_at_start": {"0001": {**device, "Refresh operations": 1}, "uptime_s": 3.5},
            "phases": {"p1": phase, "p2": {**phase, "counters_before": {"0001": dict.fromkeys(COUNTERS, 0)}}},
        }
        old = {**whole, "kernel_version": "Linux 6.1.176-s390x", "domain_type": ["unknown"], "phases": {"p1": {}}}
        return [json.dumps(each, indent=1).encode() for each in (whole, old, {}, {"phases": {"p1": phase}})]

    def words(self) -> list[bytes]:
        names = (
            *COUNTERS,
            "Refresh operations",
            "counters_at_start",
            "counters_settled",
            "phases",
            "domain_type",
            "vcpus",
        )
        return [
            *(f'"{name}": '.encode() for name in names),
            b"null", b"true", b"NaN", b"-Infinity", b"[", b"]", b"{", b"}", b",", b"[" * 900, b"]" * 900, b"[" * 5000,
            b'"\\ud800"', b'"\\u001b[2J"', b'"[/red]"', b"9" * 30, b"9" * 4000, b"1" * 5000, b"\xff", b"\xef\xbb\xbf",
        ]  # fmt: skip

    def feed(self, data: bytes) -> None:
        self._description.write_bytes(data)
        said = read_counters(self._capture)
        if said is None:
            raise WrongError("the description is there, but was not seen")
        shown = Console(file=_Sink(), width=80)
        print_comparisons(shown, [], said, "asap")
        _default_domains(said)
        _is_caching_mode(self._capture)
        str((said.totals, said.comparable, said.kept_pages, said.refresh_operations)).encode()


class _Sink:
    """A terminal in UTF-8 that nobody looks at."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text.encode("utf-8", "replace"))

    def flush(self) -> None:
        pass
