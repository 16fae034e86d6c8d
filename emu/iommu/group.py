"""Groups: what sysfs `iommu_group/type` does to the domain of a device, while its driver works or is unbound.

As iommu_group_store_type() of drivers/iommu/iommu.c (6.7 and later): a strict domain gets a queue without being taken
down, under the group's mutex; any other change needs the driver unbound, and makes a new domain. While a driver is
bound even the type that the domain has already is refused, as there.

Version 5 of the series that brought the single queue gave the new type to iommu_dma_init_fq(), which set it before it
published the queue, and so it is done here. Version 4 set it afterwards: its two bugs can be had by name. Linux as it
became sets the type last as well, which harms nobody any longer, as neither queue nor unmap looks at it.
"""

from __future__ import annotations

import errno
from typing import Any

from emu.iommu.domain import (
    DMA_S390,
    IDENTITY,
    S390_LAZY,
    S390_TYPES,
    STRICT,
    iommu_domain,
    iommu_domain_init_fq,
    iommu_domain_renew,
    is_deferred,
)
from emu.native.atomics import write_once
from emu.native.compile import slow
from emu.native.lock import spin_lock, spin_unlock, spinlock_t
from emu.native.record import deref, struct
from emu.native.time import now_ns, spend_until

INIT_FQ_BEFORE_TYPE = 1
"""The kind of queue follows from the type not yet set, so that DMA-FQ gets the single queue."""
QUEUE_BEFORE_TYPE = 2
"""The queue is in use while the type still says DMA."""

BUGS = {"init-fq-before-type": INIT_FQ_BEFORE_TYPE, "queue-before-type": QUEUE_BEFORE_TYPE}
"""Names that users write."""

QUEUE_BEFORE_TYPE_NS = 20_000_000
"""How long that bug's window is open; in version 4 it was as short as its luck."""

EPERM, ENOMEM, EINVAL = errno.EPERM, errno.ENOMEM, errno.EINVAL

iommu_group = struct(
    lines=("mutex",),
    mutex=spinlock_t,
    owner_cnt="i8",
    default_domain="i8",
    bugs="i8",
    requested="i8",
    requested_of="i8",
)
"""`owner_cnt`: drivers that are bound; `bugs`: those that are on; `requested`: what a writer on a virtual clock is to
do, and then the answer; `requested_of`: for which function, counted from 0. Both are the first group's for all."""


@slow
def iommu_group_store_type(cpu: Any, group: Any, req_type: int) -> int:
    """Write a type to sysfs.

    Args:
        cpu: context of the writer.
        group: the iommu_group.
        req_type: one of emu.iommu.domain's types; any other number is a name that sysfs does not know.

    Returns:
        0; -EINVAL: no such type, or none that this domain's memory can take; -EPERM: a driver is bound; -ENOMEM: a
        live domain got no queue and stays strict. A new domain without a queue is strict, and that is no error.
    """
    if req_type < IDENTITY or req_type > S390_LAZY:
        return -EINVAL
    domain = deref(iommu_domain, group.default_domain)
    spin_lock(cpu, group.mutex)
    if is_deferred(req_type) and domain.type == STRICT:
        error = _bring_up_queue(cpu, group, domain, req_type)
    elif group.owner_cnt:
        error = -EPERM
    else:
        error = _iommu_setup_default_domain(cpu, domain, req_type)
    spin_unlock(cpu, group.mutex)
    return error


@slow
def _bring_up_queue(cpu: Any, group: Any, domain: Any, req_type: int) -> int:
    """Make a strict domain lazy while its device works."""
    kind_of = domain.type if group.bugs & INIT_FQ_BEFORE_TYPE else req_type
    if not group.bugs & QUEUE_BEFORE_TYPE:
        # Before the queue is published: smp_wmb() in iommu_dma_init_fq() orders it, and pairs with smp_mb() in
        # queue_iova(), after which an unmap finds the type that its queue belongs to.
        write_once(domain, "type", req_type)
    if not iommu_domain_init_fq(domain, kind_of):
        # Nobody saw a queue: unmaps have been strict all along.
        write_once(domain, "type", STRICT)
        return -ENOMEM
    if group.bugs & QUEUE_BEFORE_TYPE:
        spend_until(cpu, now_ns(cpu) + QUEUE_BEFORE_TYPE_NS)
        write_once(domain, "type", req_type)
    return 0


@slow
def _iommu_setup_default_domain(cpu: Any, domain: Any, req_type: int) -> int:
    """Replace the domain of a device that no driver uses."""
    if domain.dma_ops == DMA_S390 or req_type in S390_TYPES:
        return -EINVAL
    iommu_domain_renew(cpu, domain, req_type)
    return 0
