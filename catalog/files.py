"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from catalog.errors import CatalogError


def write_atomic(path: Path | str, content: str | bytes) -> Path:
    """Write `content` to `path` in one step, creating its folder; text is UTF-8 with plain newlines.

    The new file is complete on disk before it takes the old one's name, and keeps the old one's permissions.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode_for(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _mode_for(path: Path) -> int:
    """Permissions for the new file: those of the file it replaces, else what the umask would give."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _cannot_write(path: Path, error: OSError) -> CatalogError:
    return CatalogError(
        f"cannot write {path.name}: {error.strerror or error}",
        where=str(path),
        hint="choose a folder you may write to, or free some space",
    )
