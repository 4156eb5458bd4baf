"""Records as arXiv would give them, a small catalog and a database to take them into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from catalog.arxiv_sync.record import Person, Record
from catalog.database import migrate, open_engine, reading, writing
from catalog.discovery.candidates import TABLE, Candidate
from catalog.locations import ENTRIES_VARIABLE, shipped_root
from tests.conftest import nothing_shipped

NOW = "2026-11-26T01:40:00Z"
LATER = "2026-11-27T01:40:00Z"
ABSTRACT = "We propose a parameter-efficient fine-tuning method that adds low-rank adapters to a frozen language model."


def record(number: int = 1, **change: Any) -> Record:
    """A paper on a new method, with an arXiv id of its own."""
    facts: dict[str, Any] = {
        "arxiv": f"2601.{number:05}",
        "version": 1,
        "title": f"Method{number}: Low-Rank Adaptation in Another Way",
        "authors": (Person("Ada Lovelace"), Person("Erika Mustermann")),
        "abstract": ABSTRACT,
        "published": "2026-01-15T12:00:00Z",
        "updated": "2026-01-15T12:00:00Z",
        "categories": ("cs.CL", "cs.LG"),
    }
    return Record(**facts | change)


def unrelated(number: int) -> Record:
    """A paper on something else."""
    words = "We study the magnetic order of a frustrated lattice with neutron scattering and discuss its phase diagram."
    return record(number, title=f"Magnetic order {number}", abstract=words, categories=("cond-mat.str-el",))


def inbox(engine: Engine) -> dict[str, Candidate]:
    """arXiv id -> candidate, of everything that is kept."""
    with reading(engine) as connection:
        rows = connection.execute(select(TABLE)).mappings()
        return {row["arxiv"]: Candidate.from_row(dict(row)) for row in rows}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A catalog of two entries, which is the one in use."""
    folder = tmp_path / "entries"
    for name in ("reparameterized/lora", "additive/houlsby-adapter"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(shipped_root() / f"{name}.toml", folder / f"{name}.toml")
    monkeypatch.setenv(ENTRIES_VARIABLE, str(folder))
    with nothing_shipped(tmp_path):
        yield folder


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database without candidates."""
    opened = open_engine(tmp_path / "catalog.sqlite")
    with writing(opened) as connection:
        migrate(connection)
    yield opened
    opened.dispose()
