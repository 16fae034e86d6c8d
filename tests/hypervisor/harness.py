"""Machines whose memory can be looked at after they have stopped, and tables read as arrays."""

from contextlib import contextmanager

import numpy as np

from emu.config import load
from emu.iommu.io_pgtable import ZPCI_PT_SIZE, ZPCI_PTE_INVALID
from emu.machine.event_writer import EventWriter
from emu.machine.layout import Layout
from emu.machine.supervisor import Machine, compile_machine, listening
from emu.workload.map_benchmark import map_benchmark_workload

FREE_OF_COST = {"intercept_ns": 0.0, "walk_ns": 0.0, "change_ns": 0.0}


@contextmanager
def stopped_machine(domain="DMA", *, cpus=1, pairs=200, hypervisor=(), on_beat=None, **options):
    """Run map_benchmark with so many pairs on real processes; yields (machine, layout) when all have ended.

    `on_beat` is called with the machine now and then while it runs.
    """
    values = [("machine", "cpus", cpus), ("machine", "ops", pairs), ("domain", "types", [domain])]
    values += [("workload", "name", "map_benchmark")]
    values += [("hypervisor", key, value) for key, value in {**FREE_OF_COST, **dict(hypervisor)}.items()]
    values += [("domain", key, value) for key, value in {"aperture_mb": 16, **options}.items()]
    config = load(preset="kvm", overrides=values)
    compile_machine(config.machine)
    layout = Layout(config, domain, map_benchmark_workload(config, pairs), real_time=False)
    try:
        machine = Machine(layout, EventWriter(layout, None), lambda _: on_beat and on_beat(machine))
        with listening(machine):
            machine.run()
        yield machine, layout
    finally:
        layout.segment.unlink()


def entries(layout, name):
    """All page-table entries made so far of "guest" or "shadow", in the order in which their tables were made."""
    tables = layout.segment["domain"][0].s390.pgtable if name == "guest" else layout.segment["functions"][0].shadow
    used = int(tables.page_tables_used) * ZPCI_PT_SIZE
    return layout.segment[f"{name}_page_tables"][:used].copy().view(np.int64)


def valid(layout, name):
    """How many entries translate."""
    return int((entries(layout, name) & ZPCI_PTE_INVALID == 0).sum())


def counted(layout, name):
    """A counter's sum over the processes."""
    return int(layout.segment["contexts"]["ctrs"][name].sum())


def served(layout, name):
    """A figure of the servers, summed."""
    return int(layout.segment["servers"][name].sum())
