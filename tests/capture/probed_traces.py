"""Traces of flush queues with probes, made by hand: rings of four entries, of which three hold something."""

PAGE = 4096
FIRST_COUNT = 5
"""Flushes counted before the trace begins."""
_MASK = 3


def line(us: int, cpu: int, event: str) -> str:
    return f"          kw-182     [{cpu:03}] d.h2. {1 + us / 1e6:12.6f}: {event}\n"


def mapped(us: int, cpu: int, page: int) -> str:
    start, end = page * PAGE, (page + 1) * PAGE
    return line(us, cpu, f"map: IOMMU: iova=0x{start:016x} - 0x{end:016x} paddr=0x{start:016x} size={PAGE}")


def appended(us: int, cpu: int, page: int, *, head: int, tail: int, stamp: int) -> str:
    """The last line of a call: the ring as the append left it."""
    said = f"fq=0xff{cpu}0 head={head} tail={tail} pfn=0x{page:x} pages=1 cnt={FIRST_COUNT + stamp}"
    return line(us, cpu, f"q: (__iommu_dma_unmap+0x1cb/0x2d0) {said}")


def found_full(us: int, cpu: int, *, head: int) -> str:
    said = f"fq=0xff{cpu}0 head={head} tail={(head - 1) & _MASK} mask={_MASK} start=0 finish=0"
    return line(us, cpu, f"full: (__iommu_dma_unmap+0x29e/0x2d0) {said}")


def flushed(us: int, cpu: int, page: int, *, head: int, tail: int) -> str:
    said = f"fq=0xff{cpu}0 head={head} tail={tail} mask={_MASK} start=0 finish=0 pfn=0x{page:x} pages=1"
    return line(us, cpu, f"after: (__iommu_dma_unmap+0x2b1/0x2d0) {said}")


def flush_begins(us: int, cpu: int) -> str:
    return line(us, cpu, "fl_in: (fq_flush_iotlb+0x0/0x40) start=0 finish=0")


def flush_ends(us: int, cpu: int) -> str:
    return line(us, cpu, "fl_out: (fq_flush_iotlb+0x2d/0x40) start=0 finish=0")


def timer_fires(us: int, cpu: int) -> str:
    return line(us, cpu, "timer: (fq_flush_timeout+0x4/0xd0)")


def maps_of(cpus: int = 2, pages: int = 8) -> str:
    """A map of every page that is unmapped later: page 16 * CPU + 1 and the following ones."""
    return "".join(mapped(0, cpu, 16 * cpu + 1 + page) for cpu in range(cpus) for page in range(pages))


def flush_within_a_flush(*, others_stamp: int) -> str:
    """CPU 1 fills its ring and flushes it while a flush of CPU 0, begun before, goes on.

    Args:
        others_stamp: of the entries of CPU 1: with 1, the flush of CPU 0 was counted as started when they were
            appended, so that CPU 1's own flush frees nothing and its ring is overrun; with 0 it was not, whatever the
            times of the lines say.
    """
    lost = others_stamp == 1
    head = 0 if lost else 3
    return "".join(
        [
            *(appended(100 + i, 0, 1 + i, head=0, tail=1 + i, stamp=0) for i in range(3)),
            found_full(200, 0, head=0),
            flush_begins(201, 0),
            *(appended(300 + i, 1, 17 + i, head=0, tail=1 + i, stamp=others_stamp) for i in range(3)),
            found_full(400, 1, head=0),
            flush_begins(401, 1),
            flush_ends(450, 1),
            flushed(451, 1, 20, head=head, tail=3),
            appended(452, 1, 20, head=head, tail=0, stamp=2),
            flush_ends(600, 0),
            flushed(601, 0, 4, head=3, tail=3),
            appended(602, 0, 4, head=3, tail=0, stamp=2),
        ]
    )
