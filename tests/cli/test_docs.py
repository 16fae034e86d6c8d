"""What is written for users is true."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from emu.capture.shipped import shipped_captures
from emu.config import DEFAULT_DOMAINS

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))

COMMANDS = "run|replay|set|doctor|explore|logs|report|export|top|sweep"

MAY_IMPORT = {
    "native": {"native"},
    "capture": {"capture", "native"},
    "iommu": {"iommu", "native", "oracle", "hypervisor.rpcit"},
    "oracle": {"oracle", "native", "iommu.io_pgtable"},
    "hypervisor": {"hypervisor", "native", "oracle", "iommu.io_pgtable", "iommu.stages", "iommu.tracepoints"},
    "workload": {"workload", "capture", "config"},
    "machine": {"machine", "hypervisor", "iommu", "oracle", "native", "workload", "config", "fault"},
    "addresses": {"addresses", "machine", "iommu", "oracle", "native", "workload", "capture", "config"},
    "analysis": {"analysis", "machine", "iommu", "oracle", "native", "workload", "capture", "config"},
    "explore": {"explore", "machine", "hypervisor", "iommu", "oracle", "native", "workload", "config"},
    "mutants": {"mutants"},
    "report": {"report", "analysis", "capture", "explore"},
    "cli": {
        *("cli", "experiment", "verify", "report", "analysis", "machine", "workload", "capture", "native", "config"),
        *("explore", "mutants", "stress", "sweep", "fault"),
    },
    "stress": {"stress", "experiment", "workload", "config", "fault"},
    "sweep": {"sweep", "experiment", "analysis", "workload", "config"},
}
"""The table in docs/how-it-works.md."""


def imported(path):
    """Modules of this package that a module imports, without `emu.`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix("emu.") for name in names if name.startswith("emu."))


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_imports_point_down(folder):
    for path in sorted((REPOSITORY / "emu" / folder).glob("*.py")):
        for name in imported(path):
            allowed = any(name == way or name.startswith(f"{way}.") for way in MAY_IMPORT[folder])
            assert allowed, f"{folder}/{path.name} imports {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["run", "test"])
def test_the_readme_has_one_line_for_each_purpose(name):
    done = subprocess.run([REPOSITORY / "tools/readme_command.sh", name], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "python3 -m venv" in done.stdout


def test_every_default_scheme_is_explained_in_the_readme():
    for domain in DEFAULT_DOMAINS:
        assert f"| `{domain}` |" in (REPOSITORY / "README.md").read_text()


def test_commands_in_the_pages_are_understood(emu):
    commands = {line.split("#")[0].split(">")[0].strip() for page in PAGES for line in page.read_text().splitlines()
                 if re.match(rf"emu ({COMMANDS})(?!:)\b", line)}  # fmt: skip
    assert commands
    for command in commands:
        # A wrong option would be complained about before the missing file is.
        arguments = ["nowhere.toml" if word.endswith(".toml") else word for word in shlex.split(command)[1:]]
        arguments = ["nowhere.trace" if word in shipped_captures() else word for word in arguments]
        if arguments[0] == "run" and "nowhere.toml" not in arguments:
            arguments.append("nowhere.toml")
        if arguments[0] == "logs":
            arguments.insert(1, "nowhere.toml")
        if arguments[0] == "top" and "--once" not in arguments:
            arguments.append("--once")
        if arguments[0] == "explore":
            arguments += ["--schedule", "nowhere.toml"]
        if arguments[0] in ("report", "export"):
            arguments[1] = "nowhere.toml"
        if arguments[0] == "sweep":
            arguments = ["nowhere.toml" if word.startswith("emu-sweeps/") else word for word in arguments]
        if "--calibrate" in arguments:
            arguments += ["--out", "nowhere.toml/costs.toml"]
        _, _, err = emu(*arguments)
        assert "nowhere.toml" in err or "no such capture" in err or "no machine is running" in err, command


def test_every_key_of_a_real_result_is_documented(tmp_path):
    command = [sys.executable, "-m", "emu", "run", "--domain", "DMA", "--switch", "0.1s:DMA-SQ", "--json", "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "here")], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    (run,) = summary["runs"]
    text = (REPOSITORY / "docs/summary.md").read_text()
    documented = {name for cell in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", cell)}
    keys = {*summary, *summary["environment"], *run, *run["hypervisor"], *run["exposure"], *run["queue"]}
    keys |= {*run["switches"][0], *run["violations_by_kind"], *run["locks"][0], *run["processes"][0], *run["flushes"]}
    assert keys <= documented, keys - documented
