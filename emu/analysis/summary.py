"""summary.json: everything a command found out, in one object whose keys scripts may rely on (docs/summary.md)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = 1
"""Raised when a key changes its meaning or goes; new keys do not raise it."""

_NUMBER = r"(-?\d[-+.e\d]*)"
_PAIR = re.compile(rf"\[\n *{_NUMBER},\n *{_NUMBER}\n *\]", re.ASCII)
"""A list of two numbers as json writes it; within a string there are no such lines."""


def summary(environment: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """The object of summary.json.

    Args:
        environment: from `emu.analysis.environment`, with its `warnings`.
        runs: one for each domain that ran, in order.
        more: what else the command has to say, such as `capture`.

    Returns:
        `schema`, `environment`, `runs` and what is in `more`; numbers that JSON cannot hold are None.
    """
    whole: dict[str, Any] = _without_infinities(
        {"schema": SCHEMA, "environment": environment, "runs": list(runs), **more}
    )
    return whole


def as_json(whole: Mapping[str, Any]) -> str:
    """The text of summary.json."""
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    # A histogram's buckets, a line each.
    return _PAIR.sub(r"[\1, \2]", text) + "\n"


def _without_infinities(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
