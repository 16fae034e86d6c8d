"""ISM devices: no queue whatever is asked, and what becomes of a load whose device goes into error."""

import pytest

from tests.machine.machines import run

LOAD = {"workload_name": "ism", "machine_cpus": 2, "machine_ops": 2000}
PAGES = 2 * 64 * 16
"""About what the load keeps registered."""


def assert_sound(outcome):
    assert outcome.died is None
    assert outcome.run["violations"] == 0
    assert outcome.run["conservation"]["holds"], outcome.run["conservation"]


@pytest.mark.parametrize("domain", ["DMA-FQ", "DMA-SQ"])
def test_an_ism_device_runs_strict_whatever_queue_is_asked_for_and_a_note_says_so(domain):
    outcome = run(domain, **LOAD)
    result = outcome.run
    assert result["device"] == "ism"
    assert result["fell_back_to_strict"]
    assert result["queue"] is None
    assert result["counters"]["Sync RPCITs"] == result["unmaps"]
    assert result["counters"]["Global RPCITs"] == 0
    assert any(domain in note and "ISM" in note for note in result["notes"])
    assert not result["device_error"]
    assert_sound(outcome)


@pytest.mark.parametrize("domain", ["DMA", "s390-strict", "identity"])
def test_a_scheme_without_a_queue_needs_no_note(domain):
    outcome = run(domain, **LOAD)
    assert not outcome.run["fell_back_to_strict"]
    assert not any("ISM" in note for note in outcome.run["notes"])
    assert not outcome.run["device_error"]
    assert outcome.run["map_failures"] == 0
    assert_sound(outcome)


def test_the_load_may_have_a_queue_on_another_device():
    outcome = run("DMA-SQ", domain_device="pci", **LOAD)
    assert outcome.run["device"] == "pci"
    assert outcome.run["queue"]["size"] == 32768
    assert outcome.run["notes"] == []
    assert_sound(outcome)


def test_any_load_can_run_on_an_ism_device():
    outcome = run("DMA-FQ", domain_device="ism", machine_cpus=2, machine_ops=2000)
    assert outcome.run["fell_back_to_strict"]
    assert_sound(outcome)


@pytest.mark.parametrize("service", [{"servers": 1}, {"servers": 3}, {"service": "inline"}])
@pytest.mark.parametrize("engine", ["processes", "threads", "sim"])
def test_a_host_without_room_puts_the_device_into_error_and_the_load_survives(engine, service):
    hypervisor = {f"hypervisor_{key}": value for key, value in service.items()}
    outcome = run("DMA", machine_engine=engine, hypervisor_mapping_limit=PAGES // 4, **hypervisor, **LOAD)
    result = outcome.run
    assert result["device_error"]
    assert result["maps"] > 0
    assert result["map_failures"] > 0
    assert result["ops"] + result["map_failures"] >= 2000
    assert any("put it into error" in warning for warning in outcome.warnings)
    assert_sound(outcome)


def test_after_the_error_no_room_is_asked_for_any_more():
    result = run("DMA", hypervisor_mapping_limit=PAGES // 4, **LOAD).run
    # Each CPU may be at it when the first of them sets the device into error.
    assert 1 <= result["flushes"]["no_resources"] <= 2


def test_the_old_lazy_scheme_puts_the_device_into_error_when_addresses_wrap_round():
    outcome = run("s390-lazy", domain_aperture_mb=64, hypervisor_mapping_limit=0, **LOAD)
    assert outcome.run["flushes"]["wrap"] > 0
    assert outcome.run["device_error"]
    assert outcome.run["map_failures"] > 0
    assert_sound(outcome)


def test_other_devices_endure_the_same():
    outcome = run("s390-lazy", domain_aperture_mb=64, hypervisor_mapping_limit=0, domain_device="pci", **LOAD)
    assert outcome.run["flushes"]["wrap"] > 0
    assert not outcome.run["device_error"]
    assert outcome.run["map_failures"] == 0
    assert_sound(outcome)
