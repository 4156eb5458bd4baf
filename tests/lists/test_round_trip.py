"""Reading what was written gives the same papers back, whatever their texts hold; no text ever breaks a reader."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import catalog
from catalog.entry import Entry
from catalog.errors import CatalogError
from catalog.lists import Style, compare, read_text, write_list
from catalog.lists.blocks import blocks
from catalog.lists.reading import READERS
from catalog.lists.source import clean
from catalog.markdown import plain
from catalog.taxonomy import Category
from tests.lists.conftest import shipped

AWESOME = Path(catalog.__file__).parents[1] / "AWESOME.md"

SIGNS = [*"|`[]()<>{}*_#-!\\&~^$:;=+\"'.,%? \n\tab1é漢🚀/@", "\u202e", "\x1b", "\u200b", "\u00a0"]
WORDS = [
    "http://x.y/", "](", "<!--", "-->", "**", "{{ 7*7 }}", "{% raw %}", "<script>alert(1)</script>", "[Paper]", "1. ",
    "- ", "&lt;", "```", " - ", "arXiv:2305.14314", "https://arxiv.org/abs/2305.14314", "Year: 2020", "| - |", "&amp;",
]  # fmt: skip
hostile = st.one_of(st.lists(st.sampled_from(SIGNS + WORDS), max_size=12).map("".join), st.text(max_size=30))
titles = hostile.filter(plain)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("style", Style)
@pytest.mark.parametrize("category", [None, *Category])
def test_every_paper_comes_back(entries: tuple[Entry, ...], style: Style, category: Category | None) -> None:
    papers = [entry for entry in entries if category in (None, entry.category)]
    found = compare(read_text(write_list(papers, style)), entries)
    assert found.style is style
    assert found.slugs == {paper.slug for paper in papers}
    assert found.new == ()
    assert found.contradictions == ()
    assert found.notices == ()
    assert len([known for known in found.known if not known.item.mention]) == len(papers)


@pytest.mark.parametrize("style", Style)
def test_an_empty_list_comes_back_empty(style: Style) -> None:
    read = read_text(write_list([], style))
    assert (read.style, read.items, read.notices) == (style, (), ())


@pytest.mark.parametrize("style", [Style.AWESOME, Style.BADGES, Style.NUMBERED])
def test_titles_links_and_venues_come_back(entries: tuple[Entry, ...], style: Style) -> None:
    read = read_text(write_list(entries, style))
    assert {item.title for item in read.items} == {plain(entry.title) for entry in entries}
    assert all(item.links for item in read.items if item.title != plain(_without_address(entries)))


def _without_address(entries: tuple[Entry, ...]) -> str:
    return next((e.title for e in entries if not (e.arxiv or e.doi or e.url or e.code)), "")


@pytest.mark.parametrize("style", Style)
def test_lists_are_recognized_without_their_mark_too(entries: tuple[Entry, ...], style: Style) -> None:
    lines = write_list(entries, style).splitlines()
    bare = "\n".join(line for line in lines if "Written by peft-catalog" not in line)
    found = compare(read_text(bare), entries)
    assert (found.style, len(found.slugs), found.consistent) == (style, len(entries), True)


def test_the_awesome_list_of_the_repository_is_not_stale(entries: tuple[Entry, ...]) -> None:
    assert AWESOME.read_text(encoding="utf-8") == write_list(entries, Style.AWESOME), "run: make AWESOME.md"


# Hostile papers.


def comes_back(style: Style, change: dict[str, object]) -> None:
    """A paper with hostile texts is read back as itself, beside a neighbor that is left alone."""
    one, other = (entry.model_copy(update={"errata": ()}) for entry in shipped() if entry.slug in ("lora", "dora"))
    lora, dora = (one, other) if one.slug == "lora" else (other, one)
    papers = [lora.model_copy(update=change), dora]
    read = read_text(write_list(papers, style))
    found = compare(read, papers)
    assert found.slugs == {"lora", "dora"}
    assert (found.new, found.contradictions, found.notices) == ((), (), ())
    if style is not Style.GIST:
        assert {item.title for item in read.items} == {plain(paper.title) for paper in papers}


each_style = pytest.mark.parametrize("style", Style)


@each_style
@quick
@given(title=titles)
@example(title="<script>alert(1)</script> | `code` {{ 7*7 }} [link](javascript:alert(1)) ![x](http://y)")
@example(title="*emphasis* **strong** _under_ __score__ ~~struck~~ $x$ ^up^ :smile: # not a heading")
@example(title="1. Not a list - Not a description. *Not a venue 2020*. [Code](https://x.y).")
@example(title="](https://arxiv.org/abs/2305.14314) **. **ACL'2020**.")
@example(title="QLoRA [[Paper](https://arxiv.org/abs/2305.14314)]")
def test_hostile_titles_survive_as_text(style: Style, title: str) -> None:
    comes_back(style, {"title": title})


@each_style
@quick
@given(name=titles, summary=titles, how=titles)
def test_hostile_words_do_no_harm(style: Style, name: str, summary: str, how: str) -> None:
    comes_back(style, {"name": name, "summary": summary, "how_it_differs": how})


@each_style
@quick
@given(venue=hostile, authors=st.lists(hostile, min_size=1, max_size=4))
def test_hostile_venues_and_authors_survive(style: Style, venue: str, authors: list[str]) -> None:
    # Commas and the word between the last two names part authors, whoever writes the list.
    names = tuple(f"Ann{plain(name).replace(',', '').replace('and', '')}Lee" for name in authors)
    # A venue with a year that is not the paper's would be a contradiction.
    comes_back(style, {"venue": f"Conf{re.sub('[0-9]', '', venue)}", "authors": names})


@each_style
@quick
@given(path=hostile)
def test_hostile_addresses_survive(style: Style, path: str) -> None:
    # An arXiv id anywhere in an address is taken for the paper's, as in that of an archived page.
    tail = "".join(plain(path).split()).replace("arxiv", "").replace("arXiv", "")
    comes_back(style, {"arxiv": None, "url": f"https://x.y/{tail}", "code": f"https://github.com/a/b/tree/{tail}"})


# Arbitrary text.

LINES = [
    "# Heading", "## Papers", "### [Selective](#content)", "- [Title](https://arxiv.org/abs/2106.09685) - A. *A 2020*.",
    "- Title [[Paper](https://arxiv.org/abs/2106.09685)]", "  ![arXiv](https://img.shields.io/badge/x)",
    "1. **Title**. **ACL'2021**.", "   *Ann Lee, Bo Chan*", "   [paper](https://x.y)", "### lora (2021)",
    "- **Adapter**: LoraModel", "- **Paper**: https://arxiv.org/abs/2106.09685", "- **Year**: 2021 (ICLR 2022)",
    "[//]: # (1. **Hidden**. **ACL'2021**.)", "<!--", "-->", "```", "~~~", "", "  - nested", "Label: A, B", "> quote",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.sampled_from(LINES), hostile), max_size=25).map("\n".join))
def test_no_text_breaks_a_reader(text: str) -> None:
    """Every reader, also for texts of other layouts; and every line number is one of the text."""
    source = clean(text).shown
    for reader in READERS.values():
        reader(blocks(source), source)
    with suppress(CatalogError):
        read = read_text(text)
        found = compare(read, shipped())
        last = source.count("\n") + 1
        numbers = [each.line for each in (*read.items, *found.contradictions, *found.notices)]
        numbers += [number for item in read.items for number, _ in item.lines]
        assert all(1 <= number <= last for number in numbers)
        assert len(found.known) + len(found.new) == len(read.items)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_a_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    from catalog.lists import read_file

    path = tmp_path_factory.getbasetemp() / "list.md"
    path.write_bytes(data)
    with suppress(CatalogError):
        read_file(path)
