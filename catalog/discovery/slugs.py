"""A name for a paper that has none in the catalog yet, from its title."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container

from catalog.scaffold import LONGEST_SLUG, is_slug

MOST_WORDS = 4
"""Words of a title that make a slug where it has no short name."""
LONGEST_NAME = 30
_UNIMPORTANT = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at by can do does for from how in into is it its not of on or our that the their to toward "
        "towards under using via we what when where why with without",
    )
)
_TEX = re.compile(r"\\[A-Za-z]+|[{}$\\]")
_SPELLED = {"+": " plus ", "&": " and ", "^": "", "(": "", ")": ""}


def short_name(title: str) -> str | None:
    """What stands before the first colon of a title, when it is short enough to be the name of a method."""
    name, colon, _ = title.partition(":")
    name = " ".join(_TEX.sub("", name).split())
    return name if colon and 0 < len(name) <= LONGEST_NAME and len(name.split()) <= 3 and slugged(name) else None


def suggested(title: str, arxiv: str, taken: Container[str]) -> str:
    """A valid slug that is not taken: the paper's short name, else the first words that mean something.

    One that is taken gets the paper's arXiv number, so that the same paper always gets the same.
    """
    number = slugged(arxiv) or "x"
    found = slugged(short_name(title) or "") or _from_words(title) or f"arxiv-{number}"
    if is_slug(found) and found not in taken:
        return found
    return _numbered(f"{found[: LONGEST_SLUG - len(number) - 1].strip('-')}-{number}", taken)


def _numbered(found: str, taken: Container[str]) -> str:
    number, free = 2, found
    while free in taken:
        free = f"{found[: LONGEST_SLUG - 5].strip('-')}-{number}"
        number += 1
    return free


def _from_words(title: str) -> str:
    words = [word for word in slugged(title).split("-") if word and word not in _UNIMPORTANT]
    return "-".join(words[:MOST_WORDS])[:LONGEST_SLUG].strip("-")


def slugged(text: str) -> str:
    """The text as lower-case words of a to z and 0 to 9 joined by dashes; empty where nothing of it is left."""
    spelled = "".join(_SPELLED.get(sign, _greek(sign)) for sign in _TEX.sub("", text))
    letters = (sign for sign in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(sign))
    return re.sub(r"[^a-z0-9]+", "-", "".join(letters).lower()).strip("-")


def _greek(sign: str) -> str:
    """A Greek letter by its name, for methods are called by them."""
    name = unicodedata.name(sign, "") if sign > "\u036f" else ""
    return f" {name.split()[-1].lower()} " if re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER \w+", name) else sign
