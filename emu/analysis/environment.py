"""Where a run took place: the machine under the emulated one, and what of it makes results doubtful."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("numba", "numpy", "llvmlite")
_SYSTEM = Path("/")


def emu_version() -> str:
    """The installed version of this package."""
    return _version_of("emu") or "unknown"


def environment() -> dict[str, Any]:
    """What is known of this machine and its software.

    Returns:
        `emu`, `python`, `numba`, `numpy`, `llvmlite` (versions), `kernel` (release), `architecture`, `cpu` (model),
        `cores`, `cores_usable`, `memory_bytes`, `load` (1, 5 and 15 minutes), `governor`; None for what is unknown.
    """
    return {
        "emu": emu_version(),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in _LIBRARIES},
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load": [round(average, 2) for average in os.getloadavg()],
        "governor": _first_line("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def scheduling_warnings(environment: dict[str, Any], cpus: int, hypervisors: int) -> list[str]:
    """Why times measured here may say more about this machine than about the emulated one.

    Args:
        environment: from `environment()`, taken before the run.
        cpus: emulated CPUs.
        hypervisors: processes that serve requests beside them.
    """
    cores = environment["cores_usable"]
    warnings = []
    roles = f"{cpus} CPU{'s' * (cpus != 1)}" + " + hypervisor" * (hypervisors > 0)
    if cpus + hypervisors > cores:
        warnings.append(
            f"{roles} on {cores} core{'s' * (cores != 1)}: they take turns, "
            "so times and ratios are affected by scheduling"
        )
    if environment["load"][0] > cores:
        warnings.append(
            f"load average {environment['load'][0]:.1f} on {cores} core{'s' * (cores != 1)} before the run: "
            "other programs may have disturbed it"
        )
    return warnings


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    for line in _lines("proc/cpuinfo"):
        name, _, value = line.partition(":")
        # x86 and arm; s390x.
        if name.strip() in {"model name", "Model", "processor 0"}:
            return value.strip()
    return platform.processor() or None


def _first_line(path: str) -> str | None:
    return next(iter(_lines(path)), None)


def _lines(path: str) -> list[str]:
    try:
        return (_SYSTEM / path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
