"""What can be written to the emulated sysfs while the load runs, and what the kernel answers.

This is what a write does; when it is made is another's matter (emu/machine/operator.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from emu.iommu.domain import DOMAIN_TYPES, FQ_WARNING
from emu.machine.context import GO_ON, UNBOUND
from emu.machine.layout import Layout

_UNKNOWN_TYPE = -1
_BOUND = "a driver is bound; only DMA can change while it is, to DMA-FQ or DMA-SQ: unbind the driver first"
_NO_SUCH_TYPE = "there is no such type; sysfs takes DMA, DMA-FQ, DMA-SQ and identity"
_WHOSE = "there are several functions, each with a type of its own; an action of machine.timeline can say of which"
_OTHER_API = "the s390-* schemes are another kernel's DMA API; no domain changes into one of them, or out of it"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a write; `errno` is the kernel's name of the error ("EPERM") and None if it succeeded."""

    errno: str | None = None
    reason: str | None = None


DONE = Answer()


class Kernel(Protocol):
    """Who runs the emulated kernel's code for a write."""

    def store_type(self, function: int, req_type: int) -> int:
        """iommu_group_store_type() of a function's group; 0 or -errno."""

    def unbind_driver(self) -> None:
        """Take the driver from the device; CPUs and timer rest."""


class Sysfs:
    """The files of a machine's devices: `type` of an IOMMU group, and `driver`, which is unbound or bound.

    Where there are several functions, `type` is each one's own, and no driver can be unbound.

    Args:
        layout: the machine's memory.
        left: the slots of the processes that have not ended.
        wake: wakes all that rest while the driver is unbound.
        kernel: carries the writes out.
    """

    def __init__(
        self, layout: Layout, left: Callable[[], Iterable[int]], wake: Callable[[], None], kernel: Kernel
    ) -> None:
        self._layout = layout
        self._kernel = kernel
        self._left = left
        self._wake = wake
        self._control = layout.segment["control"][0]
        self._functions = len(layout.functions)
        self._group = layout.segment["group"][0]

    def write(self, name: str, value: str, function: int | None = None) -> Answer | None:
        """Write a value to `type` or `driver`.

        Args:
            name: the file.
            value: what is written to it.
            function: whose it is; None will do where there is only one.

        Returns:
            The answer; None for an unbinding, which has to wait until CPUs, timer and devices rest: ask `unbound()` for
            it.
        """
        if self._functions > 1 and (function is None or name != "type"):
            return Answer("EINVAL", _WHOSE)
        if name == "type":
            return self._store_type(function or 0, value)
        return self._begin_unbind() if value == "unbind" else self._bind()

    def unbound(self) -> Answer | None:
        """Finish an unbinding; None while somebody is still at work."""
        contexts, unbind = self._layout.segment["contexts"], self._control.unbinds
        for slot in self._left():
            serves = self._layout.first_server <= slot < self._layout.first_device
            if not serves and contexts[slot].rests != unbind and not contexts[slot].finished:
                return None
        self._kernel.unbind_driver()
        return DONE

    def _store_type(self, function: int, name: str) -> Answer:
        domain_type = DOMAIN_TYPES.get(name, _UNKNOWN_TYPE)
        error = -self._kernel.store_type(function, domain_type)
        if not error:
            return DONE
        reasons = {
            errno.EPERM: _BOUND,
            errno.ENOMEM: f"{FQ_WARNING}: there is no memory for its rings; the domain stays strict",
            errno.EINVAL: _NO_SUCH_TYPE if domain_type == _UNKNOWN_TYPE else _OTHER_API,
        }
        return Answer(errno.errorcode[error], reasons[error])

    def _begin_unbind(self) -> Answer | None:
        if not self._group.owner_cnt:
            return Answer("ENODEV", "no driver is bound")
        self._control.unbinds += 1
        self._control.stop = UNBOUND
        self._wake()
        return None

    def _bind(self) -> Answer:
        if self._group.owner_cnt:
            return Answer("EBUSY", "the driver is bound")
        self._group.owner_cnt = 1
        # Last, as it lets the CPUs go on.
        self._control.stop = GO_ON
        self._wake()
        return DONE
