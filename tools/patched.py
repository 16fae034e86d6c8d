"""Commands of emu, with a patch of the catalogue of bugs and remedies compiled in or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from emu.mutants.patch import VARIABLE

REPOSITORY = Path(__file__).resolve().parents[1]
_SECONDS = 120


def call(patch: str | None, arguments: list[str], cache: str | None = None) -> tuple[int, dict[str, Any] | None, str]:
    """Run emu with a patch of the catalogue, or none: exit code, its JSON, its last word on stderr."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    if patch:
        environment[VARIABLE] = patch
    if cache:
        environment["EMU_CACHE_DIR"] = cache
    command = [sys.executable, "-m", "emu", *arguments, "--json"]
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, None, f"no end after {_SECONDS} s"
    try:
        return done.returncode, json.loads(done.stdout), ""
    except ValueError:
        return done.returncode, None, (done.stderr.strip().splitlines() or ["no output"])[-1]
