"""What is to be done to the machine at given times, in order."""

from __future__ import annotations

import math
from collections.abc import Iterable

from emu.config import Action


class Timeline:
    """The actions of a description, the earliest first, those of one time as they were written.

    Attributes:
        left: actions that are still to come.
    """

    def __init__(self, actions: Iterable[Action]) -> None:
        self.left = sorted(actions, key=lambda action: action.at_s)

    @property
    def next_at_s(self) -> float:
        """When the next action is due, in s since the start of the load; infinite when there is none."""
        return self.left[0].at_s if self.left else math.inf

    def take_due(self, now_s: float) -> Action | None:
        """The next action, if its time has come; it then counts as done."""
        return self.left.pop(0) if self.next_at_s <= now_s else None
