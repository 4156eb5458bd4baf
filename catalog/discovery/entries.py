"""What the catalog has already, finished or begun, as a candidate is held against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.discovery.slugs import slugged
from catalog.entry import read_table
from catalog.lists.matching import SAME_TITLE, folded
from catalog.locations import entry_paths
from catalog.words import fold


@dataclass(frozen=True)
class Catalogued:
    """The entries and drafts of a folder, by what they may be recognized by."""

    by_arxiv: Mapping[str, str]
    """arXiv id -> slug."""
    by_title: Mapping[str, str]
    """Title without case, accents and punctuation -> slug."""
    names: frozenset[str]
    """Slugs, and names and aliases as slugs: what no new entry may be called."""

    def slug_of(self, arxiv: str) -> str | None:
        """The slug of the entry with this arXiv id."""
        return self.by_arxiv.get(arxiv)

    def slug_titled(self, title: str) -> str | None:
        """The slug of the entry with this title or one that differs in a few letters."""
        from rapidfuzz import fuzz, process

        key = folded(title)
        if not key or not self.by_title:
            return None
        best = process.extractOne(key, self.by_title.keys(), scorer=fuzz.ratio, score_cutoff=SAME_TITLE)
        return self.by_title[best[0]] if best else None


def catalogued(root: Path | str | None = None) -> Catalogued:
    """Read a folder of entries; EntryError for a file that is no TOML. What a draft lacks does not matter."""
    by_arxiv, by_title, names = {}, {}, set()
    for path in entry_paths(root):
        table = read_table(path)
        slug = path.stem
        if arxiv := _text(table.get("arxiv")):
            by_arxiv[arxiv] = slug
        if title := folded(_text(table.get("title"))):
            by_title[title] = slug
        aliases = table.get("aliases")
        for name in (slug, table.get("name"), *(aliases if isinstance(aliases, list) else ())):
            names |= {fold(_text(name)), slugged(_text(name))}
    return Catalogued(by_arxiv, by_title, frozenset(names - {""}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
