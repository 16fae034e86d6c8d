"""The events of one domain as streams, one for each process, and several streams as one; nothing is held whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from emu.analysis.run_data import DomainRun, RunDataError
from emu.iommu.tracepoints import EVENT_MAP, EVENT_UNMAP
from emu.native.events import EventFileError, event_chunks, event_t

Rows = npt.NDArray[np.void]

_OF_ALL = "events-machine.bin"
"""Where an unrecorded run keeps the few events of all its processes."""
_MOST = 1 << 16


def process_streams(domain: DomainRun) -> list[Iterator[Rows]]:
    """Each process's events in its order, chunk by chunk; dtype event_t.

    Raises:
        RunDataError: while they are read: a file is damaged or cannot be read.
    """
    streams: list[Iterator[Rows]] = []
    for path in sorted(domain.folder.glob("events-*.bin")):
        if path.name == _OF_ALL:
            events = np.concatenate([np.zeros(0, event_t), *domain.event_chunks()])
            streams += [iter([events[events["slot"] == slot]]) for slot in np.unique(events["slot"])]
        else:
            streams.append(_file_stream(domain, path.name))
    return streams


def whole_operations(stream: Iterable[Rows]) -> Iterator[Rows]:
    """The same events in chunks that end with a map or an unmap, so that nothing that an operation did is cut off it.

    The last chunk has what came after the last operation.
    """
    held: list[Rows] = []
    for chunk in stream:
        ends = np.flatnonzero((chunk["code"] == EVENT_MAP) | (chunk["code"] == EVENT_UNMAP))
        if not len(ends):
            held.append(chunk)
            continue
        yield np.concatenate([*held, chunk[: ends[-1] + 1]])
        held = [chunk[ends[-1] + 1 :]]
    if any(len(chunk) for chunk in held):
        yield np.concatenate(held)


def merged(streams: Sequence[Iterator[Rows]], key: str) -> Iterator[Rows]:
    """Several streams as one, in the order of a field.

    Args:
        streams: each nearly in that order, of the same dtype; a row that comes later than its place stands as early as
            what has been handed out allows.
        key: the field.

    Yields:
        Chunks; the order of rows with the same key is that of the streams.
    """
    buffers: list[Rows | None] = [next(stream, None) for stream in streams]
    while any(buffer is not None for buffer in buffers):
        # Nobody's next row comes before the end of what is here of the one that is least far.
        until = min(int(buffer[key].max(initial=0)) for buffer in buffers if buffer is not None)
        parts = []
        for number, buffer in enumerate(buffers):
            if buffer is None:
                continue
            ready = buffer[key] <= until
            parts.append(buffer[ready])
            rest = buffer[~ready]
            buffers[number] = rest if len(rest) else next(streams[number], None)
        rows = np.concatenate(parts)
        if len(rows):
            yield rows[np.argsort(rows[key], kind="stable")]


def _file_stream(domain: DomainRun, name: str) -> Iterator[Rows]:
    path = domain.folder / name
    try:
        yield from event_chunks(path, _MOST)
    except EventFileError as error:
        raise RunDataError(str(error)) from None
    except OSError as error:
        raise RunDataError(f"{path} cannot be read: {error.strerror}") from None
