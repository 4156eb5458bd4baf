"""A paper in arXiv's metadata format arXivRaw -> the record that all interfaces share."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from catalog.arxiv_sync.authors import names
from catalog.arxiv_sync.feed import moment
from catalog.arxiv_sync.record import (
    Person,
    Record,
    State,
    UnusableRecord,
    checked,
    is_withdrawn,
    one_line,
    paragraphs,
    person_name,
)

RAW = "{http://arxiv.org/OAI/arXivRaw/}"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SUBMITTED = re.compile(
    rf"(?:[A-Z][a-z]{{2}}, )?(\d{{1,2}}) ({'|'.join(_MONTHS)}) ([12]\d{{3}}) (\d\d):(\d\d):(\d\d) (?:GMT|UTC)", re.ASCII
)
_VERSION = re.compile(r"v([1-9]\d{0,3})", re.ASCII)


def record(arxiv: str, raw: Any) -> Record:
    """The record of the paper with this id in an arXivRaw element; UnusableRecord says what is wrong with it."""
    texts = _texts(raw)
    if texts.get("id", "").strip() != arxiv:
        raise UnusableRecord(f"{arxiv}: its metadata are those of another paper")
    versions = _versions(arxiv, raw)
    comment = one_line(texts.get("comments"))
    return checked(
        Record(
            arxiv=arxiv,
            version=versions[-1][0],
            title=one_line(texts.get("title")) or "",
            authors=tuple(map(Person, names(person_name(texts.get("authors")) or ""))),
            abstract=paragraphs(texts.get("abstract", "")),
            published=versions[0][1],
            updated=versions[-1][1],
            categories=tuple(dict.fromkeys(texts.get("categories", "").split())),
            comment=comment,
            journal_ref=one_line(texts.get("journal-ref")),
            doi=one_line(texts.get("doi")),
            state=State.WITHDRAWN if is_withdrawn(comment) else State.LISTED,
            license=one_line(texts.get("license")),
            versions=versions,
        )
    )


def _texts(raw: Any) -> dict[str, str]:
    """Name of an element -> its text; of two with the same name, the first one's."""
    found: dict[str, str] = {}
    for child in raw.iterchildren(f"{RAW}*"):
        text = child.text if not len(child) else "".join(child.itertext("{*}*"))
        found.setdefault(child.tag.removeprefix(RAW), text or "")
    return found


def _versions(arxiv: str, raw: Any) -> tuple[tuple[int, str], ...]:
    """Number and moment of every version, in order."""
    found: dict[int, str] = {}
    for element in raw.iterchildren(f"{RAW}version"):
        number = _VERSION.fullmatch(element.get("version", ""))
        if number is None:
            raise UnusableRecord(f"{arxiv}: it has a version without a number")
        found[int(number[1])] = _submitted(arxiv, element.findtext(f"{RAW}date") or "")
    if not found:
        raise UnusableRecord(f"{arxiv}: its versions are missing")
    return tuple(sorted(found.items()))


def _submitted(arxiv: str, text: str) -> str:
    """A moment such as Thu, 17 Jun 2021 17:37:18 GMT, as the catalog writes it."""
    match = _SUBMITTED.fullmatch(" ".join(text.split()))
    try:
        if match is None:
            raise ValueError
        day, month, *rest = match.groups()
        year, hour, minute, second = map(int, rest)
        return moment(datetime(year, _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC))
    except ValueError:
        raise UnusableRecord(f"{arxiv}: it has a date that is none") from None
