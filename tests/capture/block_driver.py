"""Writes traces of a block driver's requests, as virtio-blk makes them."""

PAGE = 4096
HEADER, OTHER_HEADER, BUFFER, NEXT_BUFFER, TABLE = range(100, 105)


class Trace:
    """Writes what a driver's map and unmap calls leave in a trace; no address is used twice or beside another one."""

    def __init__(self):
        self.lines = []
        self.free_page = 1

    def _add(self, text, cpu, flags):
        self.lines.append(f"   kw-182   [{cpu:03}] {flags} 1.{len(self.lines):06}: {text}\n")

    def map(self, memory, pages=1, cpu=0):
        first, self.free_page = self.free_page, self.free_page + pages + 1
        start, end = first * PAGE, (first + pages) * PAGE
        text = f"map: IOMMU: iova=0x{start:016x} - 0x{end:016x} paddr=0x{memory * PAGE:016x} size={end - start}"
        self._add(text, cpu, "d....")
        return first, pages

    def unmap(self, mapping, cpu=0, *, irq=False):
        start, size = mapping[0] * PAGE, mapping[1] * PAGE
        text = f"unmap: IOMMU: iova=0x{start:016x} - 0x{start + size:016x} size={size} unmapped_size={size}"
        self._add(text, cpu, "d.h.." if irq else "d....")

    def request(self, *data, header=HEADER, cpu=0):
        """A whole request, with data in (memory, pages); its mappings, the table's last."""
        parts = [(header, 1), *data, (header, 1), (TABLE, 1)]
        return [self.map(memory, pages, cpu) for memory, pages in parts]

    def complete(self, mappings, cpu=1):
        for mapping in (mappings[-1], *mappings[:-1]):
            self.unmap(mapping, cpu, irq=True)

    def refused(self, *data, header=HEADER, cpu=0):
        """A request that did not get what comes after some data."""
        for mapping in [self.map(memory, pages, cpu) for memory, pages in [(header, 1), *data]]:
            self.unmap(mapping, cpu)
