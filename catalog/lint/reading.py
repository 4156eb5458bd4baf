"""The files of a folder as linters take them: entries, drafts, and the faults of what is neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from catalog.entry import is_draft, read_table, validate
from catalog.errors import EntryError, Problem
from catalog.lint.core import EntryFile, Finding
from catalog.locations import entry_paths


@dataclass
class Folder:
    """What was found in a folder of entries."""

    files: list[EntryFile] = field(default_factory=list)
    """Valid entries."""
    drafts: list[Path] = field(default_factory=list)
    """Files of drafts, whatever they lack."""
    complete_drafts: list[EntryFile] = field(default_factory=list)
    """Drafts that are valid entries but for saying that they are drafts."""
    faults: list[Finding] = field(default_factory=list)
    """Why a file is no entry."""


def read(root: Path | str | None = None) -> Folder:
    """Read all entry files of a folder."""
    folder = Folder()
    for path in entry_paths(root):
        _add(folder, path)
    return folder


def _add(folder: Folder, path: Path) -> None:
    name = f"{path.parent.name}/{path.name}"
    try:
        table = read_table(path)
    except EntryError as error:
        folder.faults.append(Finding(name, "file", "readable", error.message))
        return
    entry, problems = validate(table)
    folder.faults += [_finding(name, problem) for problem in problems]
    if is_draft(table):
        folder.drafts.append(path)
        entry, _ = validate({key: value for key, value in table.items() if key != "draft"})
    if entry is not None:
        (folder.complete_drafts if is_draft(table) else folder.files).append(EntryFile(path, entry))


def _finding(name: str, problem: Problem) -> Finding:
    rule = "draft" if problem.key == "draft" else "schema"
    return Finding(name, problem.key, rule, problem.message, problem.value, problem.allowed, problem.hint)
