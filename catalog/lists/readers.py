"""One reader a layout: from the blocks of a document to the items of the list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from catalog.lists.blocks import Block, BlockLink
from catalog.lists.item import Item, Link, Role
from catalog.lists.sections import Sections

YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")

_CODE_WORDS = re.compile(r"\b(code|github|implementation|repo(sitory)?)\b", re.IGNORECASE)
_PAPER_WORDS = re.compile(r"^(paper|pdf|arxiv|link|html|openreview)$", re.IGNORECASE)
_PREPRINT_BADGES = frozenset({"arxiv", "code", "paper"})


@dataclass
class _Draft:
    """An item while its blocks are being read."""

    item: Item
    spans: list[tuple[int, int]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        self.spans.append((block.line, block.end))

    def finished(self, lines: list[str]) -> Item:
        numbers = [number for start, end in self.spans for number in range(start, end + 1)]
        return replace(self.item, lines=tuple((number, lines[number - 1]) for number in numbers))


def _finish(drafts: list[_Draft], text: str) -> list[Item]:
    lines = text.split("\n")
    return [draft.finished(lines) for draft in drafts]


def _role(link: BlockLink) -> Role:
    if _CODE_WORDS.search(link.text):
        return Role.CODE
    return Role.PAPER if not link.text or _PAPER_WORDS.match(link.text) else Role.OTHER


def _link(link: BlockLink, role: Role | None = None) -> Link:
    return Link(link.url, link.line, role or _role(link))


def _year(text: str | None) -> int | None:
    found = YEAR.findall(text or "")
    return int(found[-1]) if found else None


def _is_anchor(block: Block) -> bool:
    return bool(block.links) and all(link.url.startswith("#") for link in block.links)


# awesome: - [Title](address) - Description. *ICLR 2022*. [Code](address).


def read_awesome(document: list[Block], text: str) -> list[Item]:
    """Bullets that begin with a link; a bullet without one is an item too when nothing is nested in it."""
    drafts: list[_Draft] = []
    sections = Sections()
    for block in document:
        if block.level:
            sections.enter(block.level, block.text)
        elif block.bullet and sections.holds_papers and not _is_anchor(block):
            item = _awesome_item(block, sections.path)
            if item:
                drafts.append(_Draft(item, [(block.line, block.end)]))
        elif drafts and block.depth:
            drafts[-1].add(block)
    return _finish(drafts, text)


def starts_with_link(block: Block) -> bool:
    """Whether the first words of a bullet are a link."""
    return bool(block.bullet and block.links and block.links[0].text and block.flat.startswith(block.links[0].text))


def _awesome_item(block: Block, section: str) -> Item | None:
    venue = next((words for words in reversed(block.emphasized) if YEAR.search(words)), None)
    if starts_with_link(block):
        first, *rest = block.links
        links = (_link(first, Role.PAPER), *(_link(link) for link in rest if link.text and link.url != first.url))
        return Item(block.line, first.text, section, links, venue, _year(venue))
    title = block.flat.split(" - ")[0] if block.depth == 1 else ""
    links = tuple(_link(link) for link in block.links if link.text)
    return Item(block.line, title, section, links, venue, _year(venue)) if title else None


# badges: - Title [[Paper](address)] and badges for venue and code below


def read_badges(document: list[Block], text: str) -> list[Item]:
    """Bullets of a title, a link in brackets, and badges."""
    drafts: list[_Draft] = []
    sections = Sections()
    for block in document:
        if block.level:
            sections.enter(block.level, block.text)
        elif block.bullet and block.depth == 1 and not _is_anchor(block):
            drafts.append(_Draft(_badges_item(block, sections.path), [(block.line, block.end)]))
    return _finish(drafts, text)


def bracketed_paper(block: Block) -> int:
    """Where the bracketed link to the paper begins in the text of a bullet, or -1."""
    first = block.text.split("\n")[0]
    marks = [link.text for link in block.links if _PAPER_WORDS.match(link.text)] if block.bullet else []
    return first.rfind(f"[{marks[0]}]") if marks else -1


def _badges_item(block: Block, section: str) -> Item:
    where = bracketed_paper(block)
    title = block.text.split("\n")[0][: where if where >= 0 else None].strip()
    links = tuple(_link(link) for link in block.links if link.text and _role(link) is not Role.OTHER)
    venue = next((words for words in block.images if words.casefold() not in _PREPRINT_BADGES), None)
    return Item(block.line, title, section, links, venue, _year(venue))


# numbered: 1. **Title**. **ACL'2022**. / *Authors* / [paper](address)


def read_numbered(document: list[Block], text: str) -> list[Item]:
    """Numbered titles in bold with the venue; authors in italics and the link follow, indented or not."""
    drafts: list[_Draft] = []
    sections = Sections()
    for block in document:
        if block.level:
            sections.enter(block.level, block.text)
        elif is_numbered_title(block) or _is_broken_title(block, sections):
            drafts.append(_Draft(_numbered_item(block, sections.path), [(block.line, block.end)]))
        elif drafts and sections.path == drafts[-1].item.section:
            drafts[-1].item = _with_details(drafts[-1].item, block)
            drafts[-1].add(block)
    return _finish(drafts, text)


def is_numbered_title(block: Block) -> bool:
    """Whether a numbered item begins here."""
    return block.bullet and block.ordered and block.strong_first and bool(block.strong[0])


def _is_broken_title(block: Block, sections: Sections) -> bool:
    """Whether a numbered item begins here whose title is not printed bold as it should be."""
    return block.bullet and block.ordered and block.depth == 1 and sections.holds_papers and not _is_anchor(block)


def _numbered_item(block: Block, section: str) -> Item:
    if not is_numbered_title(block):
        return _with_details(Item(block.line, _bare_title(block), section), block)
    title, *rest = block.strong
    venue = rest[0].strip(". ") if rest else "" if "****" in block.text else None
    item = Item(block.line, title, section, (), venue, _year(venue))
    return _with_details(item, block)


def _bare_title(block: Block) -> str:
    """What stands before the venue, or the first sentence, of a title without its bold marks."""
    words = block.flat.lstrip("* ")
    for mark in (*block.strong[:1], "**", ". "):
        words = words.split(mark)[0].rstrip(". ") or words
    return words


def _with_details(item: Item, block: Block) -> Item:
    # An address without words is a link where it stands alone, and a part of the text among titles and names.
    is_text = bool(block.strong or block.emphasized)
    links = [
        _link(link)
        for link in block.links
        if (not link.url or link.url.startswith("http")) and _role(link) is not Role.OTHER
        if link.text or not is_text
    ]
    if not item.authors and block.emphasized:
        item = replace(item, authors=split_authors(block.emphasized[0]))
    return replace(item, links=(*item.links, *links))


def split_authors(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip(" .*") for name in re.split(r",|\band\b", text) if name.strip(" .*"))


# gist: a heading `slug (year)`, then bullets Adapter, Paper, Year, How it differs, Reversibility

_FIELD = re.compile(
    r"^(?P<name>Adapter|Paper|Year|Status|Authors|Abstract|How it differs|Reversibility|Code)\s*:\s*(?P<value>.*)$",
    re.DOTALL,
)
_SLUG_LINE = re.compile(r"^(?P<name>[\w.+^³-]+(?:[ -][\w.+^³-]+){0,4}) \((?P<note>[^()]{1,40})\)$")
_LABEL = re.compile(r"\b([A-Z][\w-]+(?: [a-z]+)?):\s")
_BARE_NAME = re.compile(r"^(?=.*[^\W_])[\w()^³+.-]+(?: [\w()^³+.-]+){0,3}$")
_TRAILING_NAMES = re.compile(r"[.;]\s+((?:[A-Z][\w-]{1,20}, )+[A-Z][\w-]{1,20})$")
_NAME_BEFORE_URL = re.compile(r"^(?P<name>[^:]{1,60}?)\s+https?://")
_PLACE_BEHIND_YEAR = re.compile(r"^\d{4} \((.*(?:19|20)\d\d.*)\)$")
_OVERVIEW = "Overview"
_LABEL_LEVEL = 7  # below every heading


def field_name(block: Block) -> str | None:
    """The field a bullet holds, where it holds one."""
    match = _FIELD.match(block.text) if block.bullet else None
    return match["name"] if match else None


def read_gist(document: list[Block], text: str) -> list[Item]:
    """Items headed `slug (year)` with fields, bullets that are items themselves, and names in passing."""
    reading = _Gist()
    for block, following in pairwise([*document, None]):
        if block:
            reading.take(block, following)
    return _finish(reading.drafts, text)


class _Gist:
    """The state while a gist is read: its section, and the item whose fields are being read."""

    def __init__(self) -> None:
        self.sections = Sections(_OVERVIEW)
        self.drafts: list[_Draft] = []
        self.current: _Draft | None = None
        self.bullet: _Draft | None = None

    def take(self, block: Block, following: Block | None) -> None:
        """Read one block; the one after it tells headings from other lines."""
        begins_item = bool(following and field_name(following) and _SLUG_LINE.match(block.flat))
        if begins_item:
            self._begin(block)
        elif block.level:
            self.current = None
            self.sections.enter(block.level + 1 if block.level == 1 else block.level, block.text)
        elif block.depth == 0 and _is_plain_heading(block, following):
            self._label(block)
        elif block.depth == 0:
            self._paragraph(block)
        elif block.bullet and block.depth == 1:
            self._bullet(block)
        elif self.bullet or self.current:
            (self.bullet or self.current).add(block)  # type: ignore[union-attr]

    def _begin(self, block: Block) -> None:
        match = _SLUG_LINE.match(block.flat)
        assert match
        self.sections.leave(_LABEL_LEVEL)
        item = Item(block.line, match["name"], self.sections.path, year=_year(match["note"]))
        self.current, self.bullet = _Draft(item, [(block.line, block.end)]), None
        self.drafts.append(self.current)

    def _label(self, block: Block) -> None:
        self.current = self.bullet = None
        is_label = block.flat.endswith(":")
        self.sections.enter(_LABEL_LEVEL if is_label else _LABEL_LEVEL - 1, block.flat)

    def _paragraph(self, block: Block) -> None:
        self.bullet = None
        if self.current:
            self.current.add(block)
            return
        for label, names in labelled_names(block.flat):
            section = f"{self.sections.path} / {label}"
            self._mention(block, names, section)

    def _mention(self, block: Block, names: list[str], section: str) -> None:
        for name in names:
            item = Item(block.line, name, section, mention=True)
            self.drafts.append(_Draft(item, [(block.line, block.end)]))

    def _bullet(self, block: Block) -> None:
        self.bullet = None
        name = field_name(block)
        if self.current and name:
            self.current.item = _with_field(self.current.item, name, block)
            self.current.add(block)
            trailing = _TRAILING_NAMES.search(block.flat) if name == "How it differs" else None
            if trailing:
                self._mention(block, trailing[1].split(", "), f"{self.sections.path} / {self.current.item.title}")
        elif self.current and block.flat.startswith("http"):
            self.current.item = replace(
                self.current.item, links=(*self.current.item.links, *(_link(link, Role.OTHER) for link in block.links))
            )
        elif not name:
            self._bullet_item(block)

    def _bullet_item(self, block: Block) -> None:
        links = tuple(_link(link) for link in block.links)
        before = _NAME_BEFORE_URL.match(block.flat)
        title = before["name"] if before else block.flat if links else block.flat.split(":")[0]
        if self.current and not before:
            self.current.add(block)
            return
        item = Item(block.line, title, self.sections.path, links, mention=not links)
        self.bullet = _Draft(item, [(block.line, block.end)])
        self.drafts.append(self.bullet)


def _is_plain_heading(block: Block, following: Block | None) -> bool:
    """A line of its own before bullets or an item: what a heading becomes when a web page is copied as text."""
    words = block.text
    if "\n" in words or not words[:1].isupper() or words.endswith((".", "!", "?")) or block.links:
        return False
    if following is None or " = " in words or _LABEL.search(words):
        return False
    return following.bullet or following.flat.endswith(":") or bool(_SLUG_LINE.match(following.flat))


def is_bare_name(text: str) -> bool:
    """Whether a text is a name alone, as a list of names has them."""
    return bool(_BARE_NAME.match(text))


def labelled_names(text: str) -> Iterator[tuple[str, list[str]]]:
    """Groups such as `Scaling methods: IA3, VeRA` in running text, where a group holds nothing but names."""
    _, *pieces = _LABEL.split(text)
    for label, listed in zip(pieces[::2], pieces[1::2], strict=False):
        names = [name.strip(" .") for name in listed.split(",")]
        if len(names) > 1 and all(map(is_bare_name, names)):
            yield label, names


def _with_field(item: Item, name: str, block: Block) -> Item:
    match = _FIELD.match(block.text)
    assert match
    value = " ".join(match["value"].split())
    in_brackets = re.search(r"\(([^()]*(?:19|20)\d\d[^()]*)\)", value)
    if name == "Paper":
        links = tuple(_link(link, Role.PAPER) for link in block.links)
        return replace(item, links=(*item.links, *links), venue=in_brackets[1] if in_brackets else item.venue)
    if name == "Year":
        first, place = YEAR.search(value), _PLACE_BEHIND_YEAR.match(value)
        year = int(first[0]) if first else item.year
        return replace(item, year=year, venue=place[1] if place else item.venue)
    if name == "Code":
        return replace(item, links=(*item.links, *(_link(link, Role.CODE) for link in block.links)))
    if name == "Authors":
        return replace(item, authors=split_authors(re.sub(r"\(.*?\)", "", value)))
    return item
