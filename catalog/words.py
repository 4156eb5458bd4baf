"""Words as they are looked up."""

from __future__ import annotations

import unicodedata


def fold(name: str) -> str:
    """A name as it is looked up: without accents, case and surplus spaces."""
    marked = unicodedata.normalize("NFKD", sendable(name))
    return " ".join("".join(sign for sign in marked if not unicodedata.combining(sign)).casefold().split())


def sendable(text: str) -> str:
    """The text as UTF-8 can hold it: bytes of a command line that are no text become question marks."""
    return text.encode("utf-8", "replace").decode()
