"""Entries of the shipped catalog, open for reading, and copies that a test may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import catalog
from catalog.entry import Entry, load_entries
from catalog.locations import shipped_root
from catalog.query import Catalog


@pytest.fixture(scope="session")
def entries() -> list[Entry]:
    return load_entries(shipped_root())


@pytest.fixture
def cat(database: Path) -> Iterator[Catalog]:
    with catalog.open(database) as opened:
        yield opened


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with three entries, each of which builds on the one before."""
    root = tmp_path / "entries"
    for name in ("reparameterized/lora", "reparameterized/dora", "additive/houlsby-adapter"):
        target = root / f"{name}.toml"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shipped_root() / f"{name}.toml", target)
    return root


@pytest.fixture
def edit(few: Path) -> Callable[[str, str, str], None]:
    """Replaces text in one of the three entries."""

    def replace(name: str, old: str, new: str) -> None:
        path = few / f"{name}.toml"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")

    return replace
