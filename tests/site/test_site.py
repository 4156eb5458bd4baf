"""The built site as files: complete, consistent, small, and free of what papers might smuggle in."""

from __future__ import annotations

import json
import sqlite3
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from catalog.entry import load_entries
from tests.site.conftest import BuiltSite


class _Links(HTMLParser):
    """Addresses a page refers to, and the places within it that can be referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.places.add(str(values["id"]))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        source = values.get("src") if tag in ("script", "img", "iframe", "source") else None
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            source = values.get("href")
        if source:
            self.loaded.append(source)


@cache
def parsed(path: Path) -> _Links:
    page = _Links()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def built_pages(site: BuiltSite) -> list[Path]:
    return [path for path in site.folder.rglob("*.html") if path.name != "404.html"]


def test_every_entry_has_a_page(built_site: BuiltSite) -> None:
    for entry in load_entries():
        assert f"<title>{entry.name[:1]}".replace("&", "&amp;")[:8] in built_site.page(f"methods/{entry.slug}")


def test_every_internal_link_leads_somewhere(built_site: BuiltSite) -> None:
    dead = []
    for page in built_pages(built_site):
        for link in parsed(page).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            found = target.is_file() and (
                not parts.fragment or target.suffix != ".html" or unquote(parts.fragment) in parsed(target).places
            )
            if not found:
                dead.append(f"{page.relative_to(built_site.folder)}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(built_site: BuiltSite) -> None:
    loaded = {source for page in built_pages(built_site) for source in parsed(page).loaded}
    assert [source for source in loaded if urlsplit(source).netloc] == []
    sheets = "".join(path.read_text(encoding="utf-8") for path in built_site.folder.rglob("*.css"))
    assert "url(http" not in sheets
    assert "@import" not in sheets


def test_build_is_quick(built_site: BuiltSite) -> None:
    # Processor time: other tests may be running beside this one.
    assert built_site.seconds < 10


def test_a_page_does_not_grow_with_the_catalog(built_site: BuiltSite) -> None:
    frame = built_site.page("methods/indictti").split("<article")[0]
    links = _Links()
    links.feed(frame)
    assert len(frame.encode()) < 40_000
    assert not [link for link in links.links if "methods/" in link and not link.endswith("methods/")]


def test_code_stays_out_of_the_search_index(built_site: BuiltSite) -> None:
    index = json.loads((built_site.folder / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = " ".join(document["text"] for document in index["docs"])
    assert "kaiming_uniform_(self.A" not in text
    assert "@inproceedings" not in text
    assert "@misc" not in text
    titles = [document["title"] for document in index["docs"] if document["location"].startswith("methods/lora/")]
    assert titles[0] == "LoRA"
    assert "Implementation" not in titles
    assert not [document for document in index["docs"] if document["location"].startswith(("find/", "compare/"))]


def test_unimplemented_unmeasured_and_pointless_say_so(built_site: BuiltSite) -> None:
    clip = built_site.page("methods/clip")
    assert clip.count("<strong>Nothing to implement.</strong>") == 1
    assert 'id="claims"' not in clip
    assert 'id="reversibility"' not in clip
    assert "<strong>Not yet.</strong>" in built_site.page("methods/hostile")
    assert "class LoRALinear" not in built_site.page("methods/hostile")


def test_measurements_are_on_the_page(built_site: BuiltSite) -> None:
    page = built_site.page("methods/dora")
    assert "contradicted" in page
    assert "tolerance 1e-10" in page
    assert "a test machine" in page


def test_entry_pages_carry_what_the_entry_says(built_site: BuiltSite) -> None:
    page = built_site.page("methods/lora")
    for words in (
        "Edward J. Hu",
        "ICLR 2022",
        "Summary",
        "How it differs",
        "Pitfalls",
        "Facts to check",
        "Reversibility",
    ):
        assert words in page
    for words in (
        "Built on by",
        "Citation",
        "What they say wrongly",
        "Sources",
        "Not confirmed:",
        "Facts as of 2026-11",
    ):
        assert words in page


@pytest.mark.parametrize(
    "address",
    ["methods/hostile", "methods", "", "categories/reparameterized", "compare/timeline", "compare/deviations"],
)
def test_hostile_text_is_text(built_site: BuiltSite, address: str) -> None:
    page = built_site.page(address)
    for signs in (
        "<script>window",
        "<img src=x",
        "<svg onload",
        "<i>Mallory",
        "<b>alias",
        "<who>",
        "<style>body",
        "49 ",
    ):
        assert signs not in page.replace("&lt;", "[")


def test_hostile_list_and_index(built_site: BuiltSite) -> None:
    listed = built_site.page("lists/peft-adapter-papers-gist")
    assert "&lt;em&gt;as&lt;/em&gt; | printed" in listed
    index = json.loads((built_site.folder / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = [document for document in index["docs"] if document["location"].startswith("methods/hostile/")]
    assert found
    assert "<script" not in json.dumps(found)


def test_downloads(built_site: BuiltSite) -> None:
    index = json.loads((built_site.folder / "api" / "v1" / "index.json").read_text(encoding="utf-8"))
    assert index
    assert "2106.09685" in (built_site.folder / "peft.bib").read_text(encoding="utf-8")
    assert len(json.loads((built_site.folder / "peft.csl.json").read_text(encoding="utf-8"))) == len(index["papers"])
    for paper in index["papers"]:
        assert (built_site.folder / "api" / "v1" / paper["file"]).is_file()
    with sqlite3.connect(f"file:{built_site.folder / 'catalog.sqlite'}?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0] > 5
    database.close()


def test_pages_are_finished_markdown(built_site: BuiltSite) -> None:
    page = (built_site.docs / "methods" / "lora.md").read_text(encoding="utf-8")
    assert page.startswith('---\ntitle: "LoRA"\n')
    assert "\n# LoRA { #entry }\n" in page
    assert "{%" not in page
    assert "```python\n" in page
    indented = [line for line in page.split("```")[0].splitlines() if line.startswith("    ")]
    assert indented == []
