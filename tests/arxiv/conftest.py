"""arXiv's stand-in, and a catalog of one's own that asks it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import catalog
from catalog.locations import entry_paths, shipped_root
from tests.conftest import Ask
from tests.standin import StandIn, papers


@pytest.fixture
def arxiv() -> Iterator[StandIn]:
    """The stand-in with the catalog's papers."""
    with StandIn(papers.catalogued()) as server:
        yield server


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pause between requests, and the time of the last one kept apart."""
    monkeypatch.setenv("PEFT_CATALOG_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PEFT_CATALOG_ARXIV_PACE", "0")


@pytest.fixture
def ask_arxiv(
    arxiv: StandIn,
    unhurried: None,
    ask_of: Callable[[Path], Ask],
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Ask:
    """Runs the program on a built catalog of the test's own, tmp_path / "catalog.sqlite", that asks the stand-in."""
    monkeypatch.setenv("PEFT_CATALOG_ARXIV_URL", arxiv.url)
    shutil.copy(database, tmp_path / "catalog.sqlite")
    return ask_of(tmp_path / "catalog.sqlite")


SLIM = 60


@pytest.fixture(scope="session")
def slim_catalog(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Entries of sixty papers on arXiv, and the database built from them."""
    folder = tmp_path_factory.mktemp("slim")
    paths = [path for path in reversed(entry_paths(shipped_root())) if "\narxiv = " in path.read_text("utf-8")]
    for path in paths[:SLIM]:
        target = folder / "entries" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(r"(?m)^builds_on = .*$", "builds_on = []", path.read_text("utf-8")), "utf-8")
    catalog.open(folder / "catalog.sqlite", entries=folder / "entries").close()
    return folder / "entries", folder / "catalog.sqlite"


@pytest.fixture
def slim(
    slim_catalog: tuple[Path, Path], arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catalog and stand-in have sixty papers, for tests that ask for all of them many times."""
    entries, database = slim_catalog
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(entries))
    shutil.copy(database, tmp_path / "catalog.sqlite")
    arxiv.papers = {paper.arxiv: paper for paper in papers.catalogued(str(entries))}
