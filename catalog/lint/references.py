"""What an entry says about the public lists is true of these lists."""

from __future__ import annotations

from collections.abc import Iterator

from catalog.lint.core import Collection, Finding


def list_known(collection: Collection) -> Iterator[Finding]:
    """Every list that is named exists."""
    known = [source.slug for source in collection.lists]
    for file in collection.files:
        for key in ("listed_in", "errata"):
            for index, row in enumerate(getattr(file.entry, key)):
                if row.list_slug not in known:
                    yield file.finding("list-known", f"{key}[{index}].list", "names no list", row.list_slug, known)


def listing_is_item(collection: Collection) -> Iterator[Finding]:
    """Every appearance is an item of the list, by section and link."""
    places = {(source.slug, item.section, item.link) for source in collection.lists for item in source.items}
    sections = {source.slug: {item.section for item in source.items} for source in collection.lists}
    for file in collection.files:
        for index, listing in enumerate(file.entry.listed_in):
            known = sections.get(listing.list_slug)
            if known is not None and (listing.list_slug, listing.section, listing.link) not in places:
                message = f"the list has no such item in {listing.section!r}"
                allowed = "an item of lists.toml, section and link as there"
                yield file.finding("listing-is-item", f"listed_in[{index}]", message, listing.printed_as, allowed)
