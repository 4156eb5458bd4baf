"""Links lead to sites that exist, by their canonical address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from catalog.links.closed import CLOSED_SINCE
from catalog.lint.core import Collection, EntryFile, Finding

DEAD_HOSTS = {host: f"the site closed in {since[:4]}" for host, since in CLOSED_SINCE.items()}
_MIRROR = re.compile(r"^(export|web3|www|\w\w)\.arxiv\.org$|^ar5iv|^arxiv-vanity")
_HOST = re.compile(r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}$")


def url_well_formed(collection: Collection) -> Iterator[Finding]:
    """An address has a host name."""
    for file, key, url in _links(collection):
        host = urlsplit(url).hostname or ""
        if not _HOST.match(host):
            yield file.finding("url-well-formed", key, "has no valid host", url, "https://host.name/path")


def url_alive(collection: Collection) -> Iterator[Finding]:
    """An address is not on a host known to be gone."""
    for file, key, url in _links(collection):
        reason = DEAD_HOSTS.get((urlsplit(url).hostname or "").removeprefix("www."))
        if reason:
            yield file.finding("url-alive", key, f"is dead: {reason}", url, "an address that answers")


def url_canonical(collection: Collection) -> Iterator[Finding]:
    """An address is not a mirror of arXiv; the arXiv number has its own key."""
    for file, key, url in _links(collection):
        if _MIRROR.match(urlsplit(url).hostname or ""):
            yield file.finding("url-canonical", key, "is a mirror", url, "the publisher's page, or the arxiv key")


def _links(collection: Collection) -> Iterator[tuple[EntryFile, str, str]]:
    for file in collection.files:
        for key in ("url", "code"):
            link = getattr(file.entry, key)
            if link is not None:
                yield file, key, link
