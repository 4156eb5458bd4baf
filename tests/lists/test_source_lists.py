"""The lists that the entries come from, made anew from the items on record: all are recognized, all mistakes seen.

What is on record is title, links, section and the words printed for an item: enough to lay out each list as it is.
"""

from __future__ import annotations

import re
from itertools import groupby

import pytest

from catalog.entry import Entry, Erratum, Listing
from catalog.lists import Comparison, Style, compare, read_text
from catalog.lists.contradictions import Kind
from catalog.lists.errata import subject_of
from catalog.lists_data import ListItem, SourceList, load_lists

LISTS = load_lists()
Rows = list[tuple[ListItem, Listing]]


def rows(source: SourceList, entries: tuple[Entry, ...]) -> Rows:
    """The items in the order of the list, each with what its entry says is printed."""
    printed = {
        (row.section, row.link, row.printed_as.casefold()): row
        for entry in entries
        for row in entry.listed_in
        if row.list_slug == source.slug
    }
    return [
        (item, next(row for (section, link, words), row in printed.items() if _is(item, section, link, words)))
        for item in source.items
    ]


def _is(item: ListItem, section: str | None, link: str | None, words: str) -> bool:
    return (section, link) == (item.section, item.link) and words.startswith(item.title.casefold())


def numbered(rows: Rows) -> str:
    text = "# A list\n\n"
    for section, group in groupby(rows, lambda pair: pair[0].section):
        text += "".join(f"\n{'#' * level} {words}\n" for level, words in enumerate(section.split(" / "), 3))
        for item, row in group:
            venue = row.printed_as[len(item.title) :].strip(". ")
            shown = [f"1. **{item.title}**. **{venue}**.", "", f"   [paper]({item.link or ''})"]
            text += "\n" + "\n".join(f"[//]: # ({line})" if item.commented else line for line in shown) + "\n"
    return text


def badges(rows: Rows) -> str:
    text = "# A list\n"
    for section, group in groupby(rows, lambda pair: pair[0].section):
        text += f"\n## {section}\n\n" + "".join(_with_badges(item) for item, _ in group)
    return text


def _with_badges(item: ListItem) -> str:
    code = f"  [![Code](https://img.shields.io/badge/Code-2962FF)]({item.code})\n" if item.code else ""
    return f"- {item.title} [[Paper]({item.link})]\n{code}\n"


def gist(rows: Rows) -> str:
    text = ""
    for section, group in groupby(rows, lambda pair: pair[0].section):
        heading, *below = section.split(" / ")
        if heading == "Overview":
            text += f"{below[0]}: {', '.join(item.title for item, _ in group)}\n"
            continue
        text += f"\n# {heading}\n\n" + "".join(f"### {words}\n" for words in below)
        text += "\n".join(_note(item, row) for item, row in group) + "\n"
    return text


def _note(item: ListItem, row: Listing) -> str:
    title, *fields = re.split(r"; (?=\w+: )", row.printed_as)
    if not fields:
        words = title.split(", at the end of ")[0]
        return f"\n- {words}" + (f" {item.link}" if item.link and item.link not in words else "")
    shown = [f"- **{name}**: {value}" for name, value in (field.split(": ", 1) for field in fields)]
    return "\n".join(["", f"#### {title}", "", *shown, *([f"- **Paper**: {item.link}"] if item.link else [])])


LAYOUTS = {Style.NUMBERED: numbered, Style.BADGES: badges, Style.GIST: gist}


@pytest.fixture(scope="module", params=LISTS, ids=lambda source: source.slug)
def source(request: pytest.FixtureRequest) -> SourceList:
    found: SourceList = request.param
    return found


@pytest.fixture(scope="module")
def text(source: SourceList, entries: tuple[Entry, ...]) -> str:
    return LAYOUTS[source.style](rows(source, entries))


@pytest.fixture(scope="module")
def found(text: str, entries: tuple[Entry, ...]) -> Comparison:
    return compare(read_text(text), entries)


def test_every_item_means_the_entry_that_lists_it(
    source: SourceList, found: Comparison, entries: tuple[Entry, ...]
) -> None:
    assert found.new == ()
    meant = [known.match.paper.slug for known in found.known]
    expected = [
        entry.slug
        for item, row in rows(source, entries)
        for entry in entries
        if any(row is each for each in entry.listed_in)
    ]
    assert sorted(meant) == sorted(expected)


def test_items_in_comments_are_marked(source: SourceList, found: Comparison) -> None:
    assert sum(known.item.commented for known in found.known) == sum(item.commented for item in source.items)


def errata(source: SourceList, entries: tuple[Entry, ...], kind: Kind) -> set[tuple[str, str]]:
    every: list[tuple[str, Erratum]] = [(entry.slug, erratum) for entry in entries for erratum in entry.errata]
    return {(slug, each.claim) for slug, each in every if each.list_slug == source.slug and subject_of(each) is kind}


@pytest.mark.parametrize("kind", [Kind.PLACE, Kind.VENUE, Kind.YEAR, Kind.TITLE, Kind.CODE, Kind.SECONDARY_LINK])
def test_mistakes_on_record_are_reported(
    source: SourceList, found: Comparison, entries: tuple[Entry, ...], kind: Kind
) -> None:
    """Those that can be seen from what is printed of an item; authors and descriptions are not on record."""
    by_slug = {entry.slug: entry for entry in entries}
    evidence = {(each.slug, each.evidence) for each in found.contradictions if each.evidence}
    unseen = {
        (slug, claim)
        for slug, claim in errata(source, entries, kind)
        if not any((slug, row.evidence) in evidence for row in by_slug[slug].errata if row.claim == claim)
    }
    assert unseen == set()


def test_links_to_aggregators_are_reported(source: SourceList, found: Comparison) -> None:
    linked = sum("aminer.cn" in (item.link or "") for item in source.items)
    assert found.kinds.get(Kind.SECONDARY_LINK, 0) >= linked
    assert (linked > 0) is (source.style is Style.NUMBERED)
    dead = sum("paperswithcode.com" in (item.code or "") for item in source.items)
    assert found.kinds.get(Kind.DEAD_LINK, 0) == dead
    assert (dead > 0) is (source.style is Style.BADGES)
