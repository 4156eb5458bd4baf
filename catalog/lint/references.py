"""What an entry says about the public lists is true of these lists."""

from __future__ import annotations

from collections.abc import Iterator

from catalog.entry import Listing
from catalog.lint.core import Collection, Finding, shorten
from catalog.lists_data import ListItem, SourceList


def list_known(collection: Collection) -> Iterator[Finding]:
    """Every list that is named exists."""
    known = [source.slug for source in collection.lists]
    for file in collection.files:
        for key in ("listed_in", "errata"):
            for index, row in enumerate(getattr(file.entry, key)):
                if row.list_slug not in known:
                    yield file.finding("list-known", f"{key}[{index}].list", "names no list", row.list_slug, known)


def listing_is_item(collection: Collection) -> Iterator[Finding]:
    """Every appearance is an item of the list: its section, its link and the first words of how it is printed."""
    lists = {source.slug: source for source in collection.lists}
    for file in collection.files:
        for index, listing in enumerate(file.entry.listed_in):
            source = lists.get(listing.list_slug)
            if source is not None and not any(_is(listing, source, item) for item in source.items):
                message = f"the list has no such item in {listing.section!r}"
                allowed = "an item of lists.toml: section, title, link and commented as there"
                yield file.finding("listing-is-item", f"listed_in[{index}]", message, listing.printed_as, allowed)


def item_has_entry(collection: Collection) -> Iterator[Finding]:
    """Every item of a list, commented out or not, is accounted for by exactly one entry."""
    if not collection.complete:
        return
    listings = [(file.name, listing) for file in collection.files for listing in file.entry.listed_in]
    for source in collection.lists:
        for index, item in enumerate(source.items):
            found = [name for name, listing in listings if _is(listing, source, item)]
            if len(found) != 1:
                message = f"is in {' and '.join(found)}" if found else "is in no entry"
                key, allowed = f"{source.slug}.items[{index}]", "one entry that has it in its listed_in"
                yield Finding("lists.toml", key, "item-has-entry", message, shorten(item.title), allowed)


def _is(listing: Listing, source: SourceList, item: ListItem) -> bool:
    """Whether an appearance is this item of this list."""
    here = (listing.list_slug, listing.section, listing.link, listing.commented)
    printed = listing.printed_as.casefold().startswith(item.title.casefold())
    return printed and here == (source.slug, item.section, item.link, item.commented)
