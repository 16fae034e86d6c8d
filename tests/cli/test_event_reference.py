"""The reference of the event log is what the models say."""

import importlib.util
import json
from pathlib import Path

import pytest

from emu.analysis.log_schema import Entry, entry_adapter

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("event_reference", REPOSITORY / "tools/event_reference.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_committed_reference_is_what_the_tool_writes(tool):
    assert (REPOSITORY / "docs/events.md").read_text() == tool.reference(), "run tools/event_reference.py"


def test_every_event_and_every_field_is_in_the_reference(tool):
    text = tool.reference()
    for model in tool.models():
        heading = f"## {', '.join(f'`{name}`' for name in tool.names_of(model))}\n"
        section = text.split(heading)[1].split("\n## ")[0]
        for name, field in model.model_fields.items():
            common = name in (*Entry.model_fields, "event")
            assert common or f"| `{field.alias or name}` |" in section


def test_the_example_in_the_reference_is_valid(tool):
    entry_adapter.validate_python(json.loads(tool.INTRODUCTION.split("```json\n")[1].split("```")[0]))
