"""Whether a database was built from the files as they are now."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import Engine, text

from catalog.database import reading, revision
from catalog.locations import LISTS_FILE, MEASURED, entry_paths, implementation_folders
from catalog.migrations import HEAD


def signature(root: Path | str | None = None) -> str:
    """Changes when an entry, the lists, a shipped measurement or the program changes, or an implementation comes or
    goes; what an implementation says is none of the database's business."""
    program = sorted(Path(__file__).parent.glob("*.py"))
    implementations = sorted(path for folder in implementation_folders() for path in folder.glob("*/*.py"))
    digest = hashlib.sha256(HEAD.encode())
    for path in [*entry_paths(root), LISTS_FILE, *sorted(MEASURED.glob("*.jsonl")), *program]:
        state = path.stat()
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    for path in implementations:
        digest.update(f"{path}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_current(engine: Engine, root: Path | str | None = None) -> bool:
    """Whether the database has today's schema and was built from the files as they are."""
    if revision(engine) != HEAD:
        return False
    with reading(engine) as connection:
        built = connection.execute(text("SELECT value FROM meta WHERE key = 'signature'")).scalar()
    return built == signature(root)
