"""The tests that show who departs from a paper exist under the names that the entries give them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = r"tests/[\w/]+\.py"


@cache
def functions_of(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))


def test_every_test_that_a_deviation_names_exists(entries):
    named = [(entry.slug, row.test) for entry in entries for row in entry.deviations if row.test is not None]
    assert named
    missing = []
    for slug, test in named:
        file, _, name = test.partition("::")
        if name.partition("[")[0] not in functions_of(file):
            missing.append(f"{slug}: {test}")
    assert missing == []


def test_every_file_of_tests_that_evidence_names_exists(entries):
    files = {file for entry in entries for row in entry.deviations for file in re.findall(FILE, row.evidence)}
    assert files
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []
