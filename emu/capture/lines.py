"""The lines of a capture's file, plain or gzip'd, in blocks: a file of any size is never held as a whole."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader, RawIOBase
from os import fstat
from pathlib import Path
from typing import Any

from emu.capture.events import CaptureError, CaptureReport
from emu.capture.scanner import LONGEST_LINE_BYTES

Progress = Callable[[int, int], None]
"""Told the bytes of the file consumed, and their total."""

_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_LONGEST_MAGIC = 16
_NO_TEXT = {
    b"\x17\x08\x44tracing": "trace-cmd's own format; give the text that trace-cmd report writes",
    b"PERFILE2": "perf's own format; give the text that perf script writes",
    b"2ELIFREP": "perf's own format; give the text that perf script writes",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or pack it with gzip",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it, or pack it with gzip",
    b"BZh": "compressed with bzip2; unpack it, or pack it with gzip",
    b"PK\x03\x04": "a zip archive; unpack it, or pack the trace with gzip",
}
"""How files begin that people have instead of the text, and what to do."""


def opened(path: Path) -> BufferedReader:
    """The file, opened.

    Raises:
        CaptureError: there is none, or it cannot be opened.
    """
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        message = f"{path}: no such capture; give the path of an ftrace text file, plain or gzip'd"
        raise CaptureError(message) from error
    except IsADirectoryError as error:
        raise CaptureError(f"{path} is a directory; name one capture in it, such as NAME.trace.gz") from error
    except (OSError, ValueError) as error:
        raise CaptureError(f"{path!s:.200} cannot be opened ({error}); check the path and its permissions") from error


def blocks_of_lines(file: BufferedReader, report: CaptureReport, progress: Progress | None) -> Iterator[bytes]:
    """Blocks of whole lines, each ended by a newline, as far as they can be had.

    An endless line (not a text file) is cut, so that memory stays bounded. The scanner cuts those inside a block, at
    the same places, so that it does not matter in which pieces a text comes.

    Args:
        file: opened by `opened`.
        report: told when the file is cut off.
        progress: called now and then; not for a pipe, whose size is not known.

    Raises:
        CaptureError: it cannot be read, or is something else than text or gzip'd text.
    """
    rest = b""
    for piece in _content(file, report, progress):
        whole, newline, begun = piece.rpartition(b"\n")
        if newline:
            yield rest + whole + newline
            rest = begun
        else:
            rest += piece
        while len(rest) > LONGEST_LINE_BYTES:
            yield rest[:LONGEST_LINE_BYTES] + b"\n"
            rest = rest[LONGEST_LINE_BYTES:]
    if rest:
        yield rest + b"\n"


def _content(file: BufferedReader, report: CaptureReport, progress: Progress | None) -> Iterator[bytes]:
    """The decompressed bytes of a file, in pieces."""
    try:
        total_bytes = fstat(file.fileno()).st_size
        # Read, not peeked at: a pipe may hold the first byte alone for a while.
        head = file.read(_LONGEST_MAGIC)
        _refuse_other_formats(file.name, head)
        whole = BufferedReader(_Rejoined(head, file), _BLOCK_BYTES)
        stream = gzip.GzipFile(fileobj=whole) if head.startswith(_GZIP) else whole
        while piece := stream.read1(_BLOCK_BYTES):
            yield piece
            if progress and total_bytes:
                progress(min(file.tell(), total_bytes), total_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        report.truncated = True
    except OSError as error:
        raise CaptureError(f"{file.name} cannot be read ({error.strerror}); check the file system it is on") from error


class _Rejoined(RawIOBase):
    """A file whose first bytes have been read already."""

    def __init__(self, head: bytes, file: BufferedReader) -> None:
        self._head = head
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._file.readinto1(buffer)
        count = min(len(self._head), len(buffer))
        buffer[:count], self._head = self._head[:count], self._head[count:]
        return count


def _refuse_other_formats(name: str, head: bytes) -> None:
    for magic, what in _NO_TEXT.items():
        if head.startswith(magic):
            raise CaptureError(f"{name} is {what}")
