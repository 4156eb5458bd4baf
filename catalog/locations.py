"""Where entries, lists, measurements and implementations lie; finding them imports none of what reads them."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path

from catalog.errors import EntryError

ENTRIES_VARIABLE = "PEFT_CATALOG_ENTRIES"
LISTS_FILE = Path(__file__).parent / "lists.toml"
MEASURED = Path(__file__).parent / "measured"


@lru_cache(maxsize=1)
def implementation_folders() -> tuple[Path, ...]:
    """Folders of the package `reference_impls`, located without importing it; none when it is not installed."""
    spec = importlib.util.find_spec("reference_impls")
    locations = spec.submodule_search_locations if spec else None
    return tuple(Path(location) for location in locations or ())


def entries_root(root: Path | str | None = None) -> Path:
    """Folder of the entry files: `root`, else $PEFT_CATALOG_ENTRIES, else the one shipped with the package."""
    chosen = root or os.environ.get(ENTRIES_VARIABLE)
    return Path(chosen) if chosen else shipped_root()


def shipped_root() -> Path:
    """Folder of the entries that come with the program, and belong to its implementations."""
    return Path(__file__).parent / "entries"


def entry_paths(root: Path | str | None = None) -> list[Path]:
    """All entry files, sorted by category and slug."""
    folder = entries_root(root)
    if not folder.is_dir():
        raise EntryError(
            "there is no folder of entries here",
            where=str(folder),
            hint=f"give --root or {ENTRIES_VARIABLE} the folder that holds selective/, additive/, prompt/ ...",
        )
    return sorted(folder.glob("*/*.toml"), key=lambda path: (path.parent.name, path.stem))
