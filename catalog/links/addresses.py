"""The addresses that entries name, and where each of them is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from catalog.entry import Entry
from catalog.network.guard import NoAddress, checked_url

_IN_DOI = "/:;().,_-+@!$&'*=~"
"""Signs of a DOI that may stand in an address as they are."""
_CREDENTIALS = re.compile(r"^([a-z]+://)[^/@]*@", re.IGNORECASE)


@dataclass(frozen=True)
class Use:
    """Where an address stands: an entry, the key in it, and the public list that prints it, if it is one's."""

    slug: str
    key: str
    list_slug: str | None = None


def used(entries: Iterable[Entry]) -> dict[str, list[Use]]:
    """Every address with its uses, in the order of the entries; credentials and fragments are left out."""
    found: dict[str, list[Use]] = {}
    for entry in entries:
        for text, use in _named(entry):
            found.setdefault(askable(text), []).append(use)
    return found


def askable(text: str) -> str:
    """An address without what is not sent, or must not be; text that is no address stays as it is."""
    text = text.strip()
    try:
        return str(checked_url(text)) if "@" in text or "#" in text else text
    except NoAddress:
        return _CREDENTIALS.sub(r"\1", text)


def _named(entry: Entry) -> Iterator[tuple[str, Use]]:
    doi = f"https://doi.org/{quote(entry.doi, safe=_IN_DOI)}" if entry.doi else None
    for key, address in (("url", entry.url), ("doi", doi), ("code", entry.code)):
        if address:
            yield address, Use(entry.slug, key)
    for number, listing in enumerate(entry.listed_in):
        if listing.link:
            yield listing.link, Use(entry.slug, f"listed_in[{number}].link", listing.list_slug)
