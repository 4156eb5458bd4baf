"""What a list holds, whatever its layout: items with their line, and notices about the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from catalog.lists_data import Style


class Role(StrEnum):
    """What a link of an item leads to, as far as the list says."""

    PAPER = "paper"
    CODE = "code"
    OTHER = "other"


@dataclass(frozen=True)
class Link:
    """A link as printed; `url` is empty where the list has a link without an address."""

    url: str
    line: int
    role: Role = Role.PAPER


@dataclass(frozen=True)
class Item:
    """One item as the list prints it."""

    line: int
    title: str
    section: str = ""
    links: tuple[Link, ...] = ()
    venue: str | None = None
    year: int | None = None
    authors: tuple[str, ...] = ()
    commented: bool = False
    mention: bool = False  # a name in passing: no link, no year, nothing but the name
    lines: tuple[tuple[int, str], ...] = field(default=(), repr=False)  # number and words of each of its lines

    @property
    def text(self) -> str:
        """The item as it stands in the file."""
        return "\n".join(words for _, words in self.lines)


@dataclass(frozen=True)
class Notice:
    """Something about the file that is odd but does not contradict the catalog."""

    line: int
    message: str


@dataclass(frozen=True)
class ReadList:
    """A list as read: its layout, its items in the order of the file, and what was odd about it."""

    style: Style
    items: tuple[Item, ...]
    notices: tuple[Notice, ...] = ()
    lines: tuple[str, ...] = field(default=(), repr=False)
