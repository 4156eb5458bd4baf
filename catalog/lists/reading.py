"""Reads a list in any of the known layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
_LINK = re.compile(r"(?<!\\)\](?:\(| \(https?://)")
_CODE = re.compile(r"(`+)[^`]+\1")
_AUTOLINK = re.compile(r"<https?://[^<>]*>")
_ADDRESS = re.compile(r"https?://\S+")
_EMPTY_BOLD = "****"
_HEADING = re.compile(r"^#{1,6}[^#\s!\d]")


def read_file(path: Path) -> ReadList:
    """The list in a file; a CatalogError says why there is none."""
    return _read(load(path), str(path))


def read_text(text: str) -> ReadList:
    """The list in a text."""
    return _read(clean(text), "the text")


def _read(source: Source, where: str) -> ReadList:
    shown, hidden = blocks(source.shown), blocks(source.hidden)
    odd = [*source.notices, *_notices(shown, source.shown), *_notices(hidden, source.hidden)]
    notices = sorted(dict.fromkeys(odd), key=lambda notice: notice.line)
    own = _own_style(source)
    style = own or _style(shown)
    items = READERS[style](shown, source.shown) if style else []
    if style is None or not (items or own):
        raise _not_a_list(where, notices)
    commented = [replace(item, commented=True) for item in READERS[style](hidden, source.hidden)]
    items = sorted([*items, *commented], key=lambda item: item.line)
    return ReadList(style, tuple(items), tuple(notices), source.lines)


def _not_a_list(where: str, notices: list[Notice]) -> CatalogError:
    broken = [f"line {notice.line}: {notice.message}" for notice in notices[:3]]
    return CatalogError(
        "no list is recognized here",
        where=where,
        allowed=f"one of the layouts {', '.join(Style)}",
        hint="; ".join(broken) or "peft-catalog list write --style STYLE shows what a layout looks like",
    )


def _own_style(source: Source) -> Style | None:
    """The layout of a list that the program wrote, which may be empty."""
    own = _OWN_MARK.search("\n".join(source.lines[:10]))
    return Style(own[1]) if own and own[1] in list(Style) else None


def _style(document: list[Block]) -> Style | None:
    counts = {style: sum(map(sign, document)) for style, sign in _SIGNS.items()}
    best = max(counts, key=lambda style: counts[style])
    return best if counts[best] else None


def _notices(document: list[Block], text: str) -> list[Notice]:
    lines = text.split("\n")
    found = [notice for block in document for notice in _broken(block, lines[block.line - 1 : block.end])]
    garbled = [block.line for block in document if block.level and mended(block.text) != block.text]
    if garbled:
        message = f"saved in the wrong encoding (UTF-8 read as Mac Roman); so are {len(garbled)} headings in all"
        found.append(Notice(garbled[0], message))
    return found


def _broken(block: Block, lines: list[str]) -> Iterator[Notice]:
    """Marks of a block that do not come to anything: what was meant as a link, as bold text or as a heading."""
    sources = [_AUTOLINK.sub("", _CODE.sub("", line)) for line in lines]
    for number, source in enumerate(sources, block.line):
        if len(_LINK.findall(source)) > block.closed.count(number):
            half = _HALF_LINK.search(block.text)
            what = "without its opening bracket; read as a link" if half else "that is broken off; read as text"
            yield Notice(number, f"a link {what}")
    if block.depth and _has_open_bold(block, "\n".join(lines)):
        yield Notice(block.line, "bold text that is never closed")
    if _HEADING.match(lines[0]) and not block.level:
        yield Notice(block.line, "a heading without a space after its signs; read as text")


def _has_open_bold(block: Block, source: str) -> bool:
    """Whether a reader sees two asterisks that nobody meant: neither escaped nor in code or an address."""
    seen = _ADDRESS.sub("", block.text).replace(_EMPTY_BOLD, "").count("**")
    meant = source.count("\\*\\*") + sum(match[0].count("**") for match in _CODE.finditer(source))
    return seen > meant
