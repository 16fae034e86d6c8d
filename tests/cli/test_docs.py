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

MAY_IMPORT = {
    "native": {"native", "process"},
    "capture": {"capture", "native"},
    "iommu": {"iommu", "native", "oracle", "hypervisor.rpcit"},
    "oracle": {"oracle", "native", "iommu.io_pgtable"},
    "hypervisor": {"hypervisor", "native", "oracle", "iommu.io_pgtable", "iommu.stages", "iommu.tracepoints"},
    "workload": {"workload", "capture", "config"},
    "machine": {"machine", "hypervisor", "iommu", "oracle", "native", "workload", "config", "fault", "policy"},
    "addresses": {"addresses", "machine", "iommu", "oracle", "native", "workload", "capture", "config"},
    "analysis": {"analysis", "machine", "iommu", "oracle", "native", "workload", "capture", "config"},
    "explore": {"explore", "machine", "hypervisor", "iommu", "oracle", "native", "workload", "config"},
    "mutants": {"mutants"},
    "report": {"report", "analysis", "capture", "explore"},
    "cli": {
        *("cli", "experiment", "verify", "report", "analysis", "machine", "workload", "capture", "native", "config"),
        *("claims", "scaling", "explore", "mutants", "stress", "sweep", "fault", "policy", "rounds"),
        "comparison",
    },
    "claims": {"claims", "experiment", "analysis", "workload", "config"},
    "stress": {"stress", "experiment", "workload", "config", "fault"},
    "sweep": {"sweep", "experiment", "analysis", "workload", "config", "process"},
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


COMMAND = re.compile(
    r"emu (run|replay|set|doctor|explore|logs|report|export|top|claims|scaling|compare|bench|sweep)(?!:)\b"
)
STRANGE = {
    "bench": ["--set", "machine.hz=nowhere.toml"],
    "claims": ["--set", "nowhere.toml"],
    "explore": ["--schedule", "nowhere.toml"],
    "scaling": ["--set", "nowhere.toml"],
    "top": ["--once"],
}
"""What makes a command that names no file fail before it begins."""


def misled(command):
    """The words of a command, with a file that is not there."""
    words = ["nowhere.toml" if word.endswith(".toml") else word for word in shlex.split(command)[1:]]
    words = ["nowhere.trace" if word in shipped_captures() else word for word in words]
    words += STRANGE.get(words[0], [])
    if words[0] in ("run", "compare") and "nowhere.toml" not in words:
        words.append("nowhere.toml")
    if words[0] in ("report", "export"):
        words[1] = "nowhere.toml"
    if words[0] == "sweep":
        words = ["nowhere.toml" if word.startswith("emu-sweeps/") else word for word in words]
    if words[0] == "logs":
        words.insert(1, "nowhere.toml")
    if "--calibrate" in words:
        words += ["--out", "nowhere.toml/costs.toml"]
    return words


def test_commands_in_the_pages_are_understood(emu, monkeypatch):
    # Another test may run a machine meanwhile, at which emu top would look.
    monkeypatch.setattr("emu.machine.look.shared_segments", list)
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    commands = {line.split("#")[0].split(">")[0].strip() for line in lines if COMMAND.match(line)}
    assert commands
    for command in commands:
        # A wrong option would be complained about before the missing file is.
        _, _, err = emu(*misled(command))
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
