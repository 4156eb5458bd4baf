"""What the site says about arXiv: how old the facts are, what arXiv said of a paper, and when."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import catalog
from catalog.arxiv_sync.archive import Statement
from catalog.arxiv_sync.follow import followed
from catalog.arxiv_sync.record import Person, Record, State
from catalog.arxiv_sync.sync import learn
from catalog.database import writing
from catalog.links.outcome import Outcome
from catalog.links.outcome import State as LinkState
from catalog.links.record import keep
from catalog.pages.data import read
from catalog.pages.sources import site_sources
from catalog.pages.writer import write_pages

HOSTILE = "<script>alert(1)</script> *a* [b](javascript:c) {{ d }}"


def rendered(path: Path, folder: Path) -> Path:
    """The pages of the catalog at a path."""
    with catalog.open(path) as cat:
        write_pages(read(cat), folder, site_sources(None))
    return folder


@pytest.fixture
def own(database: Path, tmp_path: Path) -> Path:
    """A catalog of the test's own."""
    return Path(shutil.copy(database, tmp_path / "catalog.sqlite"))


def asked(path: Path, newest: datetime) -> None:
    """Let arXiv have said two things about LoRA."""
    first = Record(
        arxiv="2106.09685",
        version=1,
        title=f"An old title {HOSTILE}",
        authors=(Person("Ann One"),),
        abstract="Words of the authors.",
        published="2021-06-17T15:30:12Z",
        updated="2021-06-17T15:30:12Z",
        categories=("cs.CL",),
        versions=((1, "2021-06-17T15:30:12Z"),),
    )
    second = replace(
        first,
        version=2,
        title=HOSTILE,
        state=State.WITHDRAWN,
        abstract="Other words.",
        updated="2021-10-16T00:00:00Z",
        versions=(),
    )
    with catalog.open(path) as cat:
        learn(cat.engine, [Statement(first, "2026-11-01T00:00:00Z", "oai")])
        learn(cat.engine, [Statement(second, "2026-11-02T00:00:00Z", "query")])
        with writing(cat.engine) as connection:
            followed(connection, "sync", learned=True, newest=newest.strftime("%Y-%m-%dT%H:%M:%SZ"))


def test_before_a_sync_every_page_says_that_arxiv_was_not_asked(own: Path, tmp_path: Path) -> None:
    folder = rendered(own, tmp_path / "docs")
    for page in ("index.md", "methods/lora.md", "about/arxiv.md", "lists/index.md"):
        assert "this copy has not asked arXiv" in (folder / page).read_text("utf-8")
    assert "This copy has not asked arXiv" in (folder / "methods/lora.md").read_text("utf-8")
    assert "This copy has not asked arXiv" not in (folder / "methods/smop.md").read_text("utf-8")


def test_after_a_sync_pages_say_when_and_what(own: Path, tmp_path: Path) -> None:
    asked(own, datetime.now(UTC) - timedelta(minutes=5))
    folder = rendered(own, tmp_path / "docs")
    page = (folder / "methods/lora.md").read_text("utf-8")
    assert re.search(r"Facts as of 20\d\d-\d\d-\d\d, when arXiv was last asked. Fresh", page)
    assert "pc-stale" not in page
    history = page[page.index("## What arXiv says") : page.index("## Sources")]
    assert history.count("<tr><th") == 3
    for words in ("first seen: An old title &lt;script&gt;", "state: withdrawn", "version: v1 → v2", "the abstract"):
        assert words in history
    assert "v1 of 2021-06-17, v2 of 2021-10-16" in history
    assert "<script>" not in page
    assert "&lt;script&gt;" in history
    assert "Words of the authors" not in page


def test_a_stale_copy_says_so_on_every_page(own: Path, tmp_path: Path) -> None:
    asked(own, datetime.now(UTC) - timedelta(days=20))
    folder = rendered(own, tmp_path / "docs")
    for page in ("index.md", "methods/lora.md"):
        text = (folder / page).read_text("utf-8")
        assert re.search(r"Stale: \d+ announcements since 20\S+ were missed", text)
        assert "pc-stale" in text


def test_what_was_not_asked_yet_is_named(own: Path, tmp_path: Path) -> None:
    page = (rendered(own, tmp_path / "docs") / "about/arxiv.md").read_text("utf-8")
    assert page.count("not yet; nothing else waits for it") == 2
    with catalog.open(own) as cat, writing(cat.engine) as connection:
        followed(connection, "enrich", learned=True, note="3 proposals")
    page = (rendered(own, tmp_path / "docs") / "about/arxiv.md").read_text("utf-8")
    assert re.search(r"Venues compared with other indexes</dt><dd>20\S+: 3 proposals", page)


def test_an_entry_that_differs_from_arxiv_says_why(own: Path, tmp_path: Path) -> None:
    page = (rendered(own, tmp_path / "docs") / "methods/bone.md").read_text("utf-8")
    assert "The entry differs from arXiv on purpose: title (" in page


def test_an_address_that_died_is_told(own: Path, tmp_path: Path) -> None:
    with catalog.open(own) as cat:
        code = cat.paper("lora").code or ""
        keep(cat.engine, Outcome(code, LinkState.GONE, 404, detail="404 Not Found"))
        keep(cat.engine, Outcome(cat.paper("dora").code or "", LinkState.MOVED, 200, "https://x.org/<script>"))
    folder = rendered(own, tmp_path / "docs")
    assert re.search(
        r"The address of its code is gone</strong> since 20\S+, checked",
        (folder / "methods/lora.md").read_text("utf-8"),
    )
    moved = (folder / "methods/dora.md").read_text("utf-8")
    assert "The address of its code is moved" in moved
    assert "<script>" not in moved
    assert "The address of its" not in (folder / "methods/vpt.md").read_text("utf-8")


def test_the_table_of_misbehavior_is_there(own: Path, tmp_path: Path) -> None:
    page = (rendered(own, tmp_path / "docs") / "about/arxiv.md").read_text("utf-8")
    for words in ("rate text with status 200", "entity bomb", "what had arrived before kept", "exit code 3"):
        assert words in page
