"""Markdown as a flat run of blocks, each with its line, its links and what is printed bold or in italics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_BARE_URL = re.compile(r"https?://[^\s<>\"'`\\]+")
_TRAILING = ".,;:!?*"
_OPENED_BY = {")": "(", "]": "["}


@dataclass(frozen=True)
class BlockLink:
    """A link inside a block: its words, its address, its line, and whether an image stands for the words."""

    text: str
    url: str
    line: int
    badge: bool = False


@dataclass(frozen=True)
class Block:
    """A heading (level 1 to 6) or a piece of text; `depth` counts the lists around it."""

    line: int
    end: int
    level: int
    depth: int
    bullet: bool  # the first text of a bullet
    ordered: bool
    text: str  # what a reader sees, line breaks kept, images left out
    links: tuple[BlockLink, ...]
    images: tuple[str, ...]  # words of images that are no links
    strong: tuple[str, ...]
    emphasized: tuple[str, ...]
    strong_first: bool
    closed: tuple[int, ...]  # the line on which each link and image ends

    @property
    def flat(self) -> str:
        """The text as one line."""
        return " ".join(self.text.split())


def blocks(text: str) -> list[Block]:
    """The headings, paragraphs and list texts of a Markdown document, in order; code blocks and HTML are left out."""
    return list(_walk(_parser().parse(text)))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # HTML off: a title that holds a tag, written unescaped, is text; nothing here is ever shown as HTML.
    return MarkdownIt("commonmark", {"html": False})


def _walk(tokens: list[Token]) -> Iterator[Block]:
    level, first = 0, False
    ordered: list[bool] = []
    for token in tokens:
        match token.type:
            case "heading_open":
                level = int(token.tag[1])
            case "heading_close":
                level = 0
            case "bullet_list_open" | "ordered_list_open":
                ordered.append(token.type == "ordered_list_open")
            case "bullet_list_close" | "ordered_list_close":
                ordered.pop()
            case "list_item_open":
                first = True
            case "inline":
                yield _block(token, level, ordered, first)
                first = False


def _block(token: Token, level: int, ordered: list[bool], first: bool) -> Block:
    start, end = token.map or (0, 1)
    reading = _Inline(start + 1)
    for child in token.children or []:
        reading.take(child)
    text = "".join(reading.text)
    return Block(
        line=start + 1,
        end=end,
        level=level,
        depth=len(ordered),
        bullet=first,
        ordered=bool(ordered) and ordered[-1],
        text=text,
        links=(*reading.links, *_bare_links("".join(reading.unlinked), start + 1)),
        images=tuple(reading.images),
        strong=tuple(reading.runs["strong"]),
        emphasized=tuple(reading.runs["em"]),
        strong_first=reading.strong_first,
        closed=tuple(reading.closed),
    )


class _Inline:
    """Collects text, links and runs of emphasis from the tokens of one block."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.text: list[str] = []
        self.unlinked: list[str] = []
        self.links: list[BlockLink] = []
        self.images: list[str] = []
        self.runs: dict[str, list[str]] = {"strong": [], "em": []}
        self.strong_first = False
        self.closed: list[int] = []
        self._open: dict[str, list[int]] = {"strong": [], "em": []}
        self._link: tuple[str, int, int, bool] | None = None

    def take(self, token: Token) -> None:
        """Read one token."""
        kind, _, edge = token.type.rpartition("_")
        if token.type in ("link_close", "image") and token.markup != "autolink":
            self.closed.append(self.line)
        if kind in self.runs and edge == "open":
            self.strong_first = self.strong_first or (kind == "strong" and not "".join(self.text).strip())
            self._open[kind].append(len(self.text))
        elif kind in self.runs and edge == "close":
            self.runs[kind].append(" ".join("".join(self.text[self._open[kind].pop() :]).split()))
        elif token.type == "link_open":
            self._link = (unquote(str(token.attrs.get("href", ""))), len(self.text), self.line, False)
        elif token.type == "link_close" and self._link:
            url, start, line, badge = self._link
            self.links.append(BlockLink(" ".join("".join(self.text[start:]).split()), url, line, badge))
            self._link = None
        elif token.type == "image":
            self._image(token)
        elif token.type in ("softbreak", "hardbreak"):
            self._add("\n")
            self.line += 1
        else:
            self._add(token.content)

    def _add(self, words: str) -> None:
        self.text.append(words)
        if not self._link or words == "\n":
            self.unlinked.append(words)

    def _image(self, token: Token) -> None:
        """An image's words belong to the link around it, not to the text of the item."""
        words = "".join(child.content for child in token.children or [])
        if not self._link:
            self.images.append(words)
        else:
            url, _, line, _ = self._link
            self.links.append(BlockLink(words, url, line, badge=True))
            self._link = None


def _bare_links(text: str, line: int) -> Iterator[BlockLink]:
    """Addresses in running text, outside of links."""
    for number, words in enumerate(text.split("\n"), line):
        for match in _BARE_URL.finditer(words):
            yield BlockLink("", unquote(trimmed(match[0])), number)


def trimmed(url: str) -> str:
    """An address in running text without the punctuation, or a bracket, that belongs to the sentence."""
    while url and (url[-1] in _TRAILING or (url[-1] in _OPENED_BY and _OPENED_BY[url[-1]] not in url)):
        url = url[:-1]
    return url
