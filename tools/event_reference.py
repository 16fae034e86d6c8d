#!/usr/bin/env python3
"""Write docs/events.md, the schema of the event log, from the models in emu/analysis/log_schema.py.

Usage: python tools/event_reference.py [--check]
With --check nothing is written, and the exit code is 1 if the file is not what would be.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from emu.analysis.log_schema import SCHEMA, AnyEntry, Entry

TARGET = Path(__file__).parents[1] / "docs" / "events.md"

INTRODUCTION = f"""\
# The event log

<!-- Written by tools/event_reference.py; edit emu/analysis/log_schema.py or that tool instead. -->

`events.jsonl` in the folder of a run has one JSON object a line, from all processes. What every line has is in the
first table; each event adds fields of its own, and no line has others. The names of events are these and no others.
The first line says `schema`, which is {SCHEMA}: it is raised when something changes its meaning or goes; events and
fields may be added at any time.

The log is not written by those it tells of. A process notes a flush, a timer, an overrun or a lock taken over in a ring
of its own, and the supervisor writes them out when the load has ended; so lines are not in order of `at_ns`.
`emu logs` asks in SQL ([Logs](logs.md)), where what follows is the column `fields`; from Python, `Result.events()` has
them ([API](api.md)).

```json
{{"time": "2026-11-26T05:20:45.379042+00:00", "time_ns": 1139729797170, "role": "timer", "pid": 0,
 "event": "flush_started", "domain": "DMA-FQ", "at_ns": 16000000, "cpu": 2, "cause": "timeout", "entries": 509}}
```

Text is as it came, escaped as JSON asks: a name with a line break in it stays in its line. Half a surrogate pair, which
a file's name may contain, is written as its escape, `\\udcff`.
"""


_MEANINGS = {
    "schema": "of this log",
    "config": "the description that the run resolved to, as in config.toml",
    "environment": "as in summary.json",
    "exit_code": "of the command",
    "error": "what ended it, where that was no result",
    "message": "one line",
    "workload": "the load's name",
    "cpus": "emulated CPUs",
    "cpu": "the emulated CPU on whose behalf",
    "cause": "as in `flushes` of summary.json",
    "lost_iovas": "IOVAs that were in the ring",
    "at_s": "s since the start of the load",
    "left_out": "how many",
}
"""Of fields whose model says nothing of them; names alone say it of others."""


def models() -> tuple[type[BaseModel], ...]:
    """A model for each kind of entry, in the order of the page."""
    return get_args(get_args(AnyEntry)[0])


def reference() -> str:
    """The text of docs/events.md."""
    return "\n".join([INTRODUCTION, *_common(), *(line for model in models() for line in _section(model)), ""])


def names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The names of the events that a model is of."""
    return get_args(model.model_fields["event"].annotation)


def _common() -> Iterator[str]:
    yield "## Every entry\n"
    yield from _table(Entry, list(Entry.model_fields))
    yield "| `event` | text | what happened: which of the following |"
    yield ""


def _section(model: type[BaseModel]) -> Iterator[str]:
    said, _ = _described(model)
    yield f"## {', '.join(f'`{name}`' for name in names_of(model))}\n"
    yield f"{said}\n"
    own = [name for name in model.model_fields if name not in (*Entry.model_fields, "event")]
    if own:
        yield from _table(model, own)
        yield ""


def _table(model: type[BaseModel], names: list[str]) -> Iterator[str]:
    _, meanings = _described(model)
    schema = model.model_json_schema()["properties"]
    yield "| field | value | meaning |\n|---|---|---|"
    for name in names:
        written = model.model_fields[name].alias or name
        yield f"| `{written}` | {_value(schema[written])} | {meanings.get(name) or _MEANINGS.get(written, '')} |"


def _described(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a docstring says of the model and, in its section Attributes, of fields."""
    text, _, attributes = (model.__doc__ or "").partition("Attributes:")
    meanings: dict[str, str] = {}
    for line in attributes.strip().splitlines():
        found = re.fullmatch(r"(\w+): (.*)", line.strip())
        if found:
            meanings[found[1]] = found[2].rstrip(".")
        else:
            last = next(reversed(meanings))
            meanings[last] = f"{meanings[last]} {line.strip()}".rstrip(".")
    return " ".join(text.split()), meanings


def _value(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        kinds = [_value(choice) for choice in about["anyOf"] if choice.get("type") != "null"]
        return f"{' or '.join(kinds)}, or null"
    if "enum" in about:
        return ", ".join(f'`"{choice}"`' for choice in about["enum"])
    if about["type"] == "array":
        return f"list of {_value(about['items'])}s" if "type" in about.get("items", {}) else "list"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    return words.get(about["type"], "object")


def main() -> int:
    """Write the page, or check it."""
    text = reference()
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
