"""The reference of the description is what the models say."""

import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from emu.config import Config, load

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("config_reference", REPOSITORY / "tools/config_reference.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_committed_reference_is_what_the_tool_writes(tool):
    assert (REPOSITORY / "docs/config.md").read_text() == tool.reference(), "run tools/config_reference.py"


def test_every_key_is_in_the_reference(tool):
    text = tool.reference()
    for section, field in Config.model_fields.items():
        several = get_args(field.annotation)
        model, title = (several[0], f"[[{section}]]") if several else (field.annotation, f"[{section}]")
        for key in model.model_fields:
            assert f"| `{key}` |" in text.split(f"## `{title}`")[1].split("\n## ")[0]


def test_the_example_in_the_reference_is_valid(tool, tmp_path):
    file = tmp_path / "machine.toml"
    file.write_text(tool.INTRODUCTION.split("```toml\n")[1].split("```")[0])
    assert load(file).workload.ring == 512
