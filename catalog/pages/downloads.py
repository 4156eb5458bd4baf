"""What can be downloaded from the site: the JSON API, the bibliography and the database."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


def write_downloads(cat: Any, folder: Path) -> None:
    """Write api/v1/*.json, peft.bib and catalog.sqlite."""
    from catalog.exports import to_bibtex, write_api

    write_api(cat, folder / "api" / "v1")
    (folder / "peft.bib").write_text(to_bibtex(cat.papers()), encoding="utf-8")
    copy_database(Path(cat.path), folder / "catalog.sqlite")


def copy_database(source: Path, target: Path) -> None:
    """Copy a database that others may be writing to, as one file without a journal beside it."""
    with sqlite3.connect(source) as original, sqlite3.connect(target) as copy:
        original.backup(copy)
    with sqlite3.connect(target) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("VACUUM")
    copy.close()
    original.close()
