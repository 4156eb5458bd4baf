"""AWESOME.md under the linter of the awesome lists, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.conftest import missing

ROOT = Path(__file__).parents[2]
LINTER = "scripts/lint_awesome.sh"


def test_the_awesome_list_has_no_complaints() -> None:
    if shutil.which("node") is None:
        missing("Node is not installed", "awesome-lint is left out")
    if not any((ROOT / "build" / "awesome-lint").glob("[0-9]*")):
        missing(
            "awesome-lint is not installed",
            f"{LINTER} AWESOME.md installs it, from the network, which tests do not use",
        )
    answer = subprocess.run([ROOT / LINTER, "AWESOME.md"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
