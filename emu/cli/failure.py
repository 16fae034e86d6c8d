"""How a command gives up: one line for the user and an exit code."""

from __future__ import annotations

FINE = 0
VIOLATION = 1
"""The emulation found a violation, or a comparison failed."""
REFUSED = 1
"""The emulated kernel refused what was asked of it."""
WRONG_CALL = 2
"""The call or the input is wrong."""
DEATH = 3
"""A process of the machine died."""
BUG = 70
"""This program is wrong; a traceback says where. Not 1, which says something about the emulated kernel."""
INTERRUPTED = 130
"""Ctrl-C; what was measured before is kept."""


class Failure(Exception):  # noqa: N818 - the command fails, the program does not
    """A command cannot go on; the message says what, where and what to do, and becomes one line."""

    def __init__(self, message: str, code: int = WRONG_CALL) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code
