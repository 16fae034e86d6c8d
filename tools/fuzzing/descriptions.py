"""Descriptions of a run: machine files, files of costs, and what is typed as `--set` and `--switch`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import tomli_w

from emu.cli.failure import Failure
from emu.cli.options import MachineOptions, configured, overrides_of
from emu.config import Action, Config, ConfigError, CostsConfig, load
from emu.machine.timeline import Timeline
from fuzzing.target import Target, WrongError

_WORDS = [
    b"[machine]\n", b"[domain]\n", b"[hypervisor]\n", b"[workload]\n", b"[costs]\n", b"[[machine.timeline]]\n",
    b"[[function]]\n", b"timeline = ",
    b'preset = "zvm"\n', b'types = ["DMA", "DMA-FQ"]\n', b"fq_size = ", b"seconds = ", b"ops = ",
    b"block_kb = { 4 = 0.5 }\n",
    b"reserved = [[0, 4095]]\n", b"at_s = ", b"nan", b"inf", b"-inf", b"true", b'""', b"1979-05-27", b"07:32:00",
    b"'''", b'"""',
    b"0x" + b"f" * 40, b"0x" + b"f" * 3700, b"9" * 5000, b"[" * 2000, b"{a=" * 400, b"\\ud800", b"\\u001b", b"1e400",
    b"null",
    b"dma_bits = ", b"aperture_mb = ", b"aperture_start = ", b"mapping_limit = ", b"a.b.c = 1\n", b'"" = 1\n',
    b"\xff", b"\xef\xbb\xbf",
]  # fmt: skip


class _File(Target):
    """A TOML file that is read."""

    modules = ("emu.config",)
    refusals = (ConfigError,)

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="emu-fuzz-")
        self._file = Path(self._folder.name) / "file.toml"

    def close(self) -> None:
        self._folder.cleanup()

    def words(self) -> list[bytes]:
        return _WORDS + [f"{name} = ".encode() for name in _keys()]

    def _check(self, config: Config) -> None:
        """A description that is written, as every run's config.toml is, is the same when it is read."""
        text = config.to_toml()
        self._file.write_bytes(text.encode())
        if load(self._file) != config:
            raise WrongError(f"written and read again it is another: {text!r}")
        timeline = Timeline(config.machine.timeline)
        while timeline.left:
            timeline.take_due(timeline.next_at_s)


class MachineFile(_File):
    """Reads machine files, `config.toml` of a run's folder among them."""

    name = "config"

    def seeds(self) -> list[bytes]:
        whole = load().to_toml()
        switching = load(
            overrides=[("machine", "timeline", [{"at_s": 0.5, "type": "DMA-FQ"}, {"at_s": 1.0, "driver": "unbind"}])]
        )
        large = load(
            preset="zvm",
            overrides=[
                ("machine", "ops", 1000), ("domain", "types", ["DMA-FQ"]), ("domain", "fq_size", 64), ("domain",
                "reserved", [[0, 4095]]),
                ("workload", "name", "ism"), ("domain", "dma_bits", 48), ("hypervisor", "service", "inline"),
            ],
        )  # fmt: skip
        short = '[hypervisor]\npreset = "lpar"\n[machine]\ncpus = 2\n'
        several = (
            '[[function]]\nname = "A"\ntype = "DMA-FQ"\nfq_size = 64\n[[function]]\ncpus = 0\ndevice = "ism"\n'
            "[function.workload]\nqueue_depth = 3\nblock_kb = { 4 = 0.5 }\n"
        )
        return [text.encode() for text in (whole, switching.to_toml(), large.to_toml(), short, several, "")]

    def feed(self, data: bytes) -> None:
        self._file.write_bytes(data)
        self._check(load(self._file))


class CostsFile(_File):
    """Reads files of costs."""

    name = "costs"

    def seeds(self) -> list[bytes]:
        return [tomli_w.dumps({"costs": CostsConfig().model_dump()}).encode(), b"[costs]\nmap_ns = 3\n", b"[costs]\n"]

    def feed(self, data: bytes) -> None:
        self._file.write_bytes(data)
        self._check(load(costs_file=self._file))


class Options(_File):
    """What is typed after `emu run`: an input is the values of `--set` and, where they begin with `@`, of `--switch`.

    They are separated by NUL, which no argument of a program can hold.
    """

    name = "options"
    modules = ("emu.config", "emu.cli.options")
    refusals = (Failure,)

    def seeds(self) -> list[bytes]:
        return [
            b"machine.cpus=4\0domain.fq_timeout_ms=2.5\0domain.types=['DMA-FQ']",
            b"@0.5s:DMA-FQ\0@700ms:unbind\0@1s:DMA\0@.8s:bind",
            b'machine.timeline=[{at_s=1, type="DMA-FQ"}]\0hypervisor.preset=zvm',
            b"workload.block_kb={4=0.5, 8=0.5}\0machine.engine=sim\0machine.ops=9\0machine.record=true",
            b"machine.seconds=1\0hypervisor.walk_ns=1e3\0domain.reserved=[[0,4095]]\0domain.on_overrun=wait",
        ]

    def words(self) -> list[bytes]:
        keys = [f"\0{section}.{name}=".encode() for section, names in _sections().items() for name in names]
        return _WORDS + keys + [b"\0@", b"@1s:", b"ms:", b"s:DMA-SQ", b"\0", b"=", b"."]

    def feed(self, data: bytes) -> None:
        typed = [argument.decode("utf-8", "surrogateescape") for argument in data.split(b"\0")]
        options = MachineOptions(
            set_=[text for text in typed if not text.startswith("@")],
            switch=[text[1:] for text in typed if text.startswith("@")] or None,
        )
        self._check(configured(None, overrides_of(options)))


def _sections() -> dict[str, list[str]]:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    # What there are several of is a list.
    models = {name: (*get_args(section), section)[0] for name, section in sections.items() if section}
    return {name: list(model.model_fields) for name, model in models.items()}


def _keys() -> list[str]:
    return [*(key for keys in _sections().values() for key in keys), *Action.model_fields]
