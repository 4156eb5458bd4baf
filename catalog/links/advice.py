"""What to do about an address that is not alive."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from catalog.entry import Entry
from catalog.links.outcome import State

_PLAIN = {
    State.PRIVATE: "name a public address",
    State.INVALID: "correct it: an address starts with https:// or http://",
    State.UNREACHABLE: "try again another day",
    State.REFUSED: "look at it in a browser",
}


def advice(entry: Entry, key: str, url: str, state: State, leads_to: str | None) -> str:
    """One line for the person who keeps the entry; empty where there is nothing to do."""
    if state is State.MOVED:
        return _moved(url, leads_to or "")
    if state is State.CLOSED:
        return " or ".join(replacements(entry, url)) or _removed(entry)
    if state is State.GONE:
        return _gone(entry, key, url)
    return _PLAIN.get(state, "")


def replacements(entry: Entry, url: str) -> list[str]:
    """Addresses in place of one on a site that indexed papers and has closed: of the paper, or of its code."""
    try:
        section = urlsplit(url).path.strip("/").split("/")[0]
    except ValueError:
        section = ""
    if section in ("method", "methods") or url == entry.code:
        return [entry.code] if entry.code and entry.code != url else []
    if entry.arxiv:
        return [f"https://arxiv.org/abs/{entry.arxiv}", f"https://huggingface.co/papers/{entry.arxiv}"]
    others = (entry.url, entry.doi and f"https://doi.org/{entry.doi}", entry.code)
    return [other for other in others if other and other != url][:1]


def _removed(entry: Entry) -> str:
    """What is left where nothing takes the place of an address: Hugging Face's page of a paper names its code."""
    return f"remove it; https://huggingface.co/papers/{entry.arxiv} may name the code" if entry.arxiv else "remove it"


def _moved(url: str, leads_to: str) -> str:
    """The new address; with a warning where a site sends everything it no longer has to its front page."""
    old, new = httpx.URL(url), httpx.URL(leads_to)
    if new.path in ("", "/") and not new.query and old.path not in ("", "/"):
        return f"leads to a front page, {leads_to}: find the page itself"
    return f"put {leads_to} in its place"


def _gone(entry: Entry, key: str, url: str) -> str:
    if key == "url" and entry.doi:
        return f"put https://doi.org/{entry.doi} in its place, if it answers"
    if key == "doi":
        return "check the DOI"
    return f"find its new address; there may be a copy at https://web.archive.org/web/{url}"
