"""SMC-D over an ISM device: each CPU keeps shared-memory buffers registered, of which only some ever change.

Every connection has a receive buffer (DMB) that the driver registers with the device, in one physically contiguous
piece (Linux: `ism_alloc_dmb()`, a folio and `dma_map_page()`). Sizes are powers of two from 16 KiB to 1 MiB; 64 KiB is
what `net.smc.rmem` starts from, and how often applications ask for another is nowhere published. Buffers live long: SMC
keeps them with the link to its peer, for later connections. So three quarters stay registered for good; the others are
unregistered one at a time, in random order, and one of perhaps another size is registered in the same place. Before
all, the driver maps two pages, the summary bit area and the event queue: a device in use always has addresses in use.

A device has no more than 1888 buffers. CPUs share nothing here, so no program waits for another one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emu.config import MAX_DMBS, Config, ConfigError
from emu.workload.program import OP_MAP, OP_UNMAP, Program, Workload, op_t

_CHANGING = 0.25
_DRIVER_PAGES = 2
_KB_PER_PAGE = 4


def ism_workload(config: Config, pairs: int) -> Workload:
    """Build the load of `dmbs` registered buffers on each CPU.

    Args:
        config: the run; `dmbs` and `dmb_kb` of its workload count.
        pairs: about how many map+unmap pairs the loop of each CPU should have.

    Raises:
        ConfigError: more buffers over all CPUs than a device can have.
    """
    load, cpus = config.workload, config.machine.cpus
    if cpus * load.dmbs > MAX_DMBS:
        raise ConfigError(
            f"workload.dmbs: {load.dmbs} on each of {cpus} CPUs are {cpus * load.dmbs} buffers, and an ISM device has"
            f" no more than {MAX_DMBS}; take fewer CPUs, or fewer dmbs"
        )
    sizes = {size // _KB_PER_PAGE: share for size, share in load.dmb_kb.items() if share}
    workload = Workload("ism", [], slots=_DRIVER_PAGES + cpus * load.dmbs, max_pages=max(sizes))
    for cpu, seed in enumerate(np.random.SeedSequence(config.machine.seed).spawn(cpus)):
        own = _dmbs(sizes, load.dmbs, pairs, np.random.default_rng(seed))
        own.ops["slot"] += _DRIVER_PAGES + cpu * load.dmbs
        workload.programs.append(own)
    first = workload.programs[0]
    started = _registered(np.arange(_DRIVER_PAGES), np.ones(_DRIVER_PAGES, np.int32))
    workload.programs[0] = Program(np.concatenate([started, first.ops]), first.loop_start + _DRIVER_PAGES)
    return workload


def _dmbs(sizes: dict[int, float], dmbs: int, pairs: int, rng: np.random.Generator) -> Program:
    """Registers all, then goes on replacing those that change; every round replaces each of them once."""
    pages, shares = np.array(list(sizes), np.int32), np.array(list(sizes.values()))
    draw = rng.choice(pages, size=dmbs, p=shares / shares.sum())
    changing = max(1, round(_CHANGING * dmbs))
    rounds = max(1, pairs // changing)
    slots = rng.permuted(np.tile(np.arange(changing), (rounds, 1)), axis=1).ravel()
    replaced = np.zeros(2 * len(slots), op_t)
    replaced["code"][::2] = OP_UNMAP
    replaced["slot"][::2] = slots
    replaced[1::2] = _registered(slots, rng.choice(pages, size=len(slots), p=shares / shares.sum()))
    return Program(np.concatenate([_registered(np.arange(dmbs), draw), replaced]), loop_start=dmbs)


def _registered(slots: npt.NDArray[np.int64], pages: npt.NDArray[np.int32]) -> npt.NDArray[np.void]:
    ops = np.zeros(len(slots), op_t)
    ops["code"] = OP_MAP
    ops["nents"] = 1
    ops["slot"] = slots
    ops["pages"] = pages
    return ops
