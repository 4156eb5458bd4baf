"""Reads a list in any of the known layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from catalog.errors import CatalogError
from catalog.lists.blocks import Block, blocks
from catalog.lists.item import Item, Notice, ReadList
from catalog.lists.readers import (
    bracketed_paper,
    field_name,
    is_numbered_title,
    read_awesome,
    read_badges,
    read_gist,
    read_numbered,
    starts_with_link,
)
from catalog.lists.sections import mended
from catalog.lists.source import Source, clean, load
from catalog.lists_data import Style

Reader = Callable[[list[Block], str], list[Item]]

READERS: dict[Style, Reader] = {
    Style.AWESOME: read_awesome,
    Style.BADGES: read_badges,
    Style.NUMBERED: read_numbered,
    Style.GIST: read_gist,
}
# What only items of a layout have; the layout with most of them is the list's. Ties go to the first.
_SIGNS: dict[Style, Callable[[Block], bool]] = {
    Style.NUMBERED: is_numbered_title,
    Style.GIST: lambda block: field_name(block) == "Adapter",
    Style.BADGES: lambda block: bracketed_paper(block) >= 0,
    Style.AWESOME: lambda block: starts_with_link(block) and not block.links[0].url.startswith("#"),
}
_OWN_MARK = re.compile(r"<!-- Written by peft-catalog list write --style (\w+)")
_HALF_LINK = re.compile(r"(?<![\[\w])\w+\]\(https?://")


def read_file(path: Path) -> ReadList:
    """The list in a file; a CatalogError says why there is none."""
    return _read(load(path), str(path))


def read_text(text: str) -> ReadList:
    """The list in a text."""
    return _read(clean(text), "the text")


def _read(source: Source, where: str) -> ReadList:
    shown, hidden = blocks(source.shown), blocks(source.hidden)
    style = _style(source, shown)
    items = READERS[style](shown, source.shown) if style else []
    if style is None or not items:
        raise CatalogError(
            "no list is recognized here",
            where=where,
            allowed=f"one of the layouts {', '.join(Style)}",
            hint="peft-catalog list write --style STYLE shows what a layout looks like",
        )
    commented = [replace(item, commented=True) for item in READERS[style](hidden, source.hidden)]
    items = sorted([*items, *commented], key=lambda item: item.line)
    notices = sorted([*source.notices, *_notices(shown), *_notices(hidden)], key=lambda notice: notice.line)
    return ReadList(style, tuple(items), tuple(dict.fromkeys(notices)))


def _style(source: Source, document: list[Block]) -> Style | None:
    own = _OWN_MARK.search("\n".join(source.lines[:10]))
    if own and own[1] in list(Style):
        return Style(own[1])
    counts = {style: sum(map(sign, document)) for style, sign in _SIGNS.items()}
    best = max(counts, key=lambda style: counts[style])
    return best if counts[best] else None


def _notices(document: list[Block]) -> list[Notice]:
    half = "a link without its opening bracket; read as a link"
    found = [Notice(block.line, half) for block in document if _HALF_LINK.search(block.text)]
    garbled = [block.line for block in document if block.level and mended(block.text) != block.text]
    if garbled:
        message = f"saved in the wrong encoding (UTF-8 read as Mac Roman); so are {len(garbled)} headings in all"
        found.append(Notice(garbled[0], message))
    return found
