"""Where a run took place, and when that makes its times doubtful."""

from emu.analysis.environment import environment, scheduling_warnings


def machine(cores, load=0.0):
    return {"cores_usable": cores, "load": [load, 0.0, 0.0]}


def test_cores_to_spare_need_no_warning():
    assert scheduling_warnings(machine(8), 4, 1) == []


def test_the_hypervisor_needs_a_core_too():
    (warning,) = scheduling_warnings(machine(4), 4, 1)
    assert warning.startswith("4 CPUs + hypervisor on 4 cores: ")


def test_a_hypervisor_inside_the_cpus_needs_none():
    assert scheduling_warnings(machine(4), 4, 0) == []


def test_cpus_that_share_cores_are_named():
    (warning,) = scheduling_warnings(machine(1), 2, 0)
    assert warning.startswith("2 CPUs on 1 core: ")


def test_a_busy_machine_is_named():
    (warning,) = scheduling_warnings(machine(4, load=6.2), 1, 0)
    assert warning.startswith("load average 6.2 on 4 cores before the run")


def test_every_version_is_told():
    told = environment()
    assert all(told[name] for name in ("python", "numba", "numpy", "llvmlite", "kernel", "architecture"))
