"""Every item of the source lists is in exactly one entry, and every listing of an entry is an item of its list."""

from __future__ import annotations

from collections import Counter

import pytest

from catalog.entry import Listing, load_entries
from catalog.errors import EntryError
from catalog.lists_data import ListItem, load_lists

LISTS = load_lists()
ENTRIES = load_entries()
LISTINGS = [(entry.slug, listing) for entry in ENTRIES for listing in entry.listed_in]


def is_item(listing: Listing, item: ListItem) -> bool:
    """Whether a listing is this item: same section, same link, and the printed words start with its title."""
    return (
        listing.section == item.section
        and listing.link == item.link
        and listing.commented == item.commented
        and listing.printed_as.casefold().startswith(item.title.casefold())
    )


@pytest.mark.parametrize(
    ("slug", "items", "commented"),
    [
        ("peft-state-of-the-art", 47, 0),
        ("awesome-peft-for-foundation-models", 80, 8),
        ("peft-adapter-papers-gist", 71, 0),
    ],
)
def test_lists_have_all_their_items(slug, items, commented):
    source = next(source for source in LISTS if source.slug == slug)
    assert len(source.items) == items
    assert sum(item.commented for item in source.items) == commented


@pytest.mark.parametrize("source", LISTS, ids=lambda source: source.slug)
def test_every_item_is_in_exactly_one_entry(source):
    found = {
        (item.section, item.title, item.link): [
            slug for slug, listing in LISTINGS if listing.list_slug == source.slug and is_item(listing, item)
        ]
        for item in source.items
    }
    assert {item: slugs for item, slugs in found.items() if len(slugs) != 1} == {}


@pytest.mark.parametrize("source", LISTS, ids=lambda source: source.slug)
def test_items_are_told_apart(source):
    assert max(Counter(source.items).values()) == 1


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.slug)
def test_every_listing_is_an_item_of_its_list(entry):
    items = {source.slug: source.items for source in LISTS}
    strays = [
        listing for listing in entry.listed_in if sum(is_item(listing, item) for item in items[listing.list_slug]) != 1
    ]
    assert strays == []
    assert entry.listed_in, "an entry comes from at least one list"


def test_the_counts_agree():
    """With both directions one to one, the two sides have the same number of appearances."""
    assert len(LISTINGS) == sum(len(source.items) for source in LISTS)


def address(link: str) -> str:
    """A link without what does not change where it leads."""
    return link.split("?")[0].removeprefix("https://").rstrip("/").casefold()


def test_a_code_link_of_a_list_is_the_entry_s_or_an_erratum():
    items = [(source.slug, item) for source in LISTS for item in source.items if item.code]
    assert len(items) == 43
    wrong = []
    for slug, item in items:
        entry = next(e for e in ENTRIES for x in e.listed_in if x.list_slug == slug and is_item(x, item))
        told = any(address(item.code) in erratum.claim.casefold() for erratum in entry.errata)
        if not told and address(item.code) != address(entry.code or ""):
            wrong.append((entry.slug, item.code))
    assert wrong == []


def test_errata_speak_of_lists_that_have_the_entry():
    """A list may also get an entry wrong by printing its arXiv id at another item."""
    strays = [
        (entry.slug, erratum.list_slug)
        for entry in ENTRIES
        for erratum in entry.errata
        if not any(
            listing.list_slug == erratum.list_slug
            and (slug == entry.slug or (entry.arxiv and listing.link and entry.arxiv in listing.link))
            for slug, listing in LISTINGS
        )
    ]
    assert strays == []


def test_a_broken_file_of_lists_is_an_error_for_people(tmp_path):
    path = tmp_path / "lists.toml"
    path.write_text('[[lists]]\nslug = "x"\n', encoding="utf-8")
    with pytest.raises(EntryError, match="cannot be read"):
        load_lists(path)
