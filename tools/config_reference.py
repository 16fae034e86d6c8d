#!/usr/bin/env python3
"""Write docs/config.md, the reference of every key, from the models in emu/config.py.

Usage: python tools/config_reference.py [--check]
With --check nothing is written, and the exit code is 1 if the file is not what would be.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from emu.config import PRESETS, Config, presets

TARGET = Path(__file__).parents[1] / "docs" / "config.md"

INTRODUCTION = """\
# The description of a run

<!-- Written by tools/config_reference.py; edit emu/config.py or that tool instead. -->

One description says everything about a run: the machine, the IOMMU domain, the hypervisor and the load. It is put
together from three places, the later winning over the earlier:

1. a **preset**, which describes a hypervisor (`--preset kvm`, or `preset` in the file);
2. a **machine file** in TOML: `emu run machine.toml`;
3. **options** such as `--cpus 4`; every key has one, `--set section.key=value`.

```toml
# machine.toml: four CPUs, a small single queue, a hypervisor that is dearer than the preset's
[machine]
cpus = 4
seconds = 3.0

[domain]
types = ["DMA", "DMA-SQ"]
fq_size = 4096

[hypervisor]
preset = "kvm"
intercept_ns = 8000.0

[workload]
name = "nic"
ring = 512
```

The description that a run resolved to is in its folder as `config.toml`, and running that file repeats the run. An
unknown key, a number out of range or a contradiction (`ops` with `seconds`; options of a flush queue without a domain
that has one; several servers with `service = "inline"`) is an error in one line, exit code 2.
"""

ENDING = """\
## Presets

No absolute cost of a flush has been published for these hypervisors. The values below are starting points whose ratios
reproduce what has been published; each file under `emu/presets/` cites its reasons.
"""

# What a schema cannot say: defaults that depend on the machine, and keys whose name says all.
_DEFAULTS = {
    ("machine", "cpus"): "2 to 4, as cores allow",
    ("domain", "types"): "all but `s390-strict`",
    ("function", "name"): "`function 0`, …",
    ("function", "workload"): "as for all",
}
_MEANINGS = {
    ("domain", "types"): "the schemes to run, in turn under the same load",
    ("workload", "name"): "which load",
}


def reference() -> str:
    """The text of docs/config.md."""
    return "\n".join([INTRODUCTION, *_sections(), ENDING, *_presets(), ""])


def _sections() -> Iterator[str]:
    for section, field in Config.model_fields.items():
        several = get_args(field.annotation)
        model: Any = several[0] if several else field.annotation
        schema = model.model_json_schema()
        yield f"## `{f'[[{section}]]' if several else f'[{section}]'}`\n\n{model.__doc__}\n"
        yield "| key | value | default | meaning |\n|---|---|---|---|"
        for key, about in schema["properties"].items():
            default = _DEFAULTS.get((section, key)) or _default(model.model_fields[key])
            if several and default == "–":
                default = "as for all"
            meaning = about.get("description") or _MEANINGS[section, key]
            yield f"| `{key}` | {_value(about)} | {default} | {meaning} |"
        yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "from the preset"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "see meaning" if "default" in (field.description or "") else "–"
    return f"`{_toml(value)}`" if value != [] else "none"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {item}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _value(about: dict[str, Any]) -> str:
    """What may be written, in words."""
    if "anyOf" in about:
        return " or ".join(_value(choice) for choice in about["anyOf"] if choice.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{_toml(choice)}`" for choice in about["enum"])
    if "const" in about:
        return f"`{_toml(about['const'])}`"
    if about.get("type") == "array":
        items = about.get("items", {})
        if "$ref" in items:
            return "a list of tables"
        return "a list of pairs" if items.get("type") == "array" else f"a list of {_value(items)}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    return f"{words.get(about.get('type', ''), 'table')}{_range(about)}"


def _range(about: dict[str, Any]) -> str:
    parts = [
        f"{sign} {about[bound]:g}" if about[bound] < 1e6 else f"{sign} {_large(about[bound])}"
        for bound, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if bound in about
    ]
    return f" {', '.join(parts)}" if parts else ""


def _large(value: float) -> str:
    whole = int(value)
    if str(whole).strip("0") == "1":
        return f"10^{len(str(whole)) - 1}"
    return f"2^{whole.bit_length() - 1}" if whole & (whole - 1) == 0 else f"{whole:,}".replace(",", " ")


def _presets() -> Iterator[str]:
    tables = {name: tomllib.loads((PRESETS / f"{name}.toml").read_text())["hypervisor"] for name in presets()}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))
    yield f"| key | {' | '.join(f'`{name}`' for name in tables)} |\n|---|{'---|' * len(tables)}"
    for key in keys:
        yield f"| `{key}` | {' | '.join(_toml(table[key]) if key in table else '' for table in tables.values())} |"


def main() -> int:
    """Write the reference, or check it."""
    text = reference()
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
