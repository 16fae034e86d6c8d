"""A verification says whose addresses were the kernel's, and does not fail over them."""

import io
from functools import cache
from pathlib import Path

from rich.console import Console

from emu.addresses.reasons import SWAPPED
from emu.capture.shipped import find_capture
from emu.report.verification import print_verification
from tests.machine.test_verify import verify


@cache
def verification(name, domain):
    return verify(find_capture(Path(name)), domain, "kvm")[0]


def printed(found):
    console = Console(file=io.StringIO(), width=200)
    print_verification(console, found)
    return console.file.getvalue()


def test_it_counts_them_by_reason_and_by_phase():
    found = verification("s390x-lazy-nvme", "DMA-SQ")
    iova = found.as_dict()["iova"]
    assert found.agrees
    assert iova["identical"] < iova["maps"] == 10020
    assert iova["explained"] == iova["verified"] + iova["inferred"]
    assert iova["identical"] + iova["explained"] + iova["unexplained"] == iova["maps"]
    assert sum(phase["identical"] for phase in iova["phases"]) == iova["identical"]


def test_all_of_that_is_printed():
    found = verification("s390x-lazy-nvme", "DMA-SQ")
    text = printed(found)
    assert f"{found.iova['identical']} of 10020 maps got the kernel's (98." in text
    assert f"{found.iova['others'][SWAPPED]} {SWAPPED}" in text
    assert "p1-qd1-4k-read-cpu0 all 2000" in text


def test_addresses_of_another_allocator_are_not_compared():
    found = verification("s390x-strict-nvme", "s390-strict")
    assert found.iova is None
    assert "Addresses" not in printed(found)
