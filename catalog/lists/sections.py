"""Headings of a list: their path, mended where the file was saved in the wrong encoding."""

from __future__ import annotations

import re
import unicodedata

_NOT_PAPERS = frozenset(
    {"content", "contents", "table of contents", "citation", "contributing", "license", "footnotes"}
)
_ANCHOR_NOISE = re.compile(r"^\W+|[\s:]+$")


def mended(text: str) -> str:
    """Text that was UTF-8 and was read as Mac Roman, put right; other text as it is."""
    try:
        again = text.encode("mac_roman").decode("utf-8")
    except UnicodeError:
        return text
    return again if any(unicodedata.category(sign) == "So" for sign in again) else text


def heading_words(text: str) -> str:
    """A heading without emoji in front and colon behind."""
    return _ANCHOR_NOISE.sub("", mended(text)).strip()


class Sections:
    """Follows the headings of a document."""

    def __init__(self, untitled: str = "") -> None:
        self._path: dict[int, str] = {}
        self._untitled = untitled

    def enter(self, level: int, text: str) -> None:
        """A heading of this level begins; deeper ones end."""
        self._path = {known: words for known, words in self._path.items() if known < level}
        self._path[level] = heading_words(text)

    def leave(self, level: int) -> None:
        """Headings of this level and deeper end."""
        self._path = {known: words for known, words in self._path.items() if known < level}

    @property
    def path(self) -> str:
        """The headings from the second level on, joined; the first level is the document's title."""
        words = [words for level, words in sorted(self._path.items()) if level > 1]
        return " / ".join(words) or self._untitled

    @property
    def holds_papers(self) -> bool:
        """Whether items may stand here: not under contents, citation and the like."""
        return not any(words.casefold() in _NOT_PAPERS for words in self._path.values())
