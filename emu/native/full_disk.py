"""A disk that is full, for whoever writes to an open file."""

from __future__ import annotations

import os
from typing import IO, Any


def fill_disk_of(file: IO[Any]) -> None:
    """Have the system refuse further writes to the file with ENOSPC, for which it has a device of its own."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)
