"""The database as one file to hand on."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from catalog.errors import CatalogError, UsageError

_FETCHED = ("candidate", "enrichment", "arxiv_record", "arxiv_statement")
"""Tables with texts of others, such as abstracts, which are not handed on; children before parents."""


def copy_database(source: Path, target: Path) -> None:
    """Copy a database that others may be writing to, in one step, without a journal beside it and without what was
    fetched from arXiv."""
    if target.exists() and target.samefile(source):
        raise UsageError("this is the database itself", where=str(target), hint="name another file with --output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            copied = Path(folder) / target.name
            _copy(source, copied)
            os.replace(copied, target)
    except (OSError, sqlite3.Error) as error:
        raise CatalogError(
            f"cannot write {target.name}: {getattr(error, 'strerror', None) or error}",
            where=str(target),
            hint="choose a folder you may write to, or free some space",
        ) from error


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy)
        for table in _FETCHED:
            copy.execute(f"DELETE FROM {table}")
        copy.commit()
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("VACUUM")
