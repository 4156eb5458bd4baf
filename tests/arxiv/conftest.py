"""arXiv's stand-in, and a catalog of one's own that asks it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
