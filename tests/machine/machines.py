"""Small machines for tests: cheap flushes, small queues, a few thousand operations."""

from emu.config import load
from emu.experiment import run_machine
from emu.workload.build import build_workload

CHEAP = {"intercept_ns": 500.0, "walk_ns": 0.01, "change_ns": 0.0, "absent_entries": "skip"}
DOMAINS = ("DMA", "DMA-FQ", "DMA-SQ", "s390-lazy", "s390-strict", "identity")


def config_of(domain, *, preset="kvm", **options):
    """A Config; options are given as section_key=value, such as machine_cpus=4."""
    overrides = [("domain", "types", [domain])]
    overrides += [("hypervisor", key, value) for key, value in CHEAP.items()]
    for name, value in options.items():
        section, key = name.split("_", 1)
        overrides.append((section, key, value))
    return load(None, preset, overrides)


def run(domain, *, workload=None, real_time=False, record_to=None, on_progress=None, **options):
    """Run a small machine; returns emu.experiment.Outcome."""
    config = config_of(domain, **options)
    load_of_it = workload or build_workload(config)
    return run_machine(config, domain, load_of_it, real_time=real_time, record_to=record_to, on_progress=on_progress)
