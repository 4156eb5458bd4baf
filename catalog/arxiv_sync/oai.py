"""The interface for harvests (OAI-PMH): an answer -> a page of records, or the error that it states."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from catalog.arxiv_sync.feed import parsed
from catalog.arxiv_sync.raw import RAW, record
from catalog.arxiv_sync.record import Record, UnusableRecord, bare_id, one_line
from catalog.arxiv_sync.transport import Again, Answer

OAI = "{http://www.openarchives.org/OAI/2.0/}"
LONGEST_TOKEN = 4_000
"""Characters of a resumption token; a longer one would not fit into an address."""
FEW = 5
"""Records of which all may be unreadable; when all of more are, it is the answer that is wrong."""
_MOMENT = re.compile(r"[12]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_DAY = re.compile(r"[12]\d{3}-\d\d-\d\d", re.ASCII)


class Refused(Exception):
    """The server answers with an error of the protocol: its code, such as badArgument, and its words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Page:
    """Part of a list. ``at`` is when it was made, where the server says so; no ``token`` means that the list ends here.

    ``records`` come with their datestamps, ``deleted`` are ids with theirs, ``unusable`` says what could not be read.
    """

    at: str = ""
    records: tuple[tuple[Record, str], ...] = ()
    deleted: Mapping[str, str] = field(default_factory=dict)
    unusable: tuple[str, ...] = ()
    token: str | None = None

    @property
    def size(self) -> int:
        """Records on it, whether they could be read or not."""
        return len(self.records) + len(self.deleted) + len(self.unusable)

    @property
    def stamps(self) -> Iterator[str]:
        """Datestamps of its records, where they are dates."""
        return filter(None, (*(stamp for _, stamp in self.records), *self.deleted.values()))


def read_page(answer: Answer) -> Page:
    """The page in an answer, an empty one where no records match. Refused for an error; Again for what is no page."""
    root = parsed(answer.body, f"{OAI}OAI-PMH")
    at = _at(root)
    error = root.find(f"{OAI}error")
    if error is not None:
        code = error.get("code", "")
        if code == "noRecordsMatch":
            return Page(at)
        raise Refused(code, (one_line(error.text) or "no reason given")[:500])
    listed = root.find(f"{OAI}ListRecords")
    elements = [] if listed is None else listed.findall(f"{OAI}record")
    if not elements:
        raise Again("an answer without a list of records")
    page = _page(at, elements, _token(listed))
    if page.size == len(page.unusable) > FEW:
        raise Again(f"a page of {page.size} records that cannot be read, such as {page.unusable[0]}")
    return page


def _page(at: str, elements: list[Any], token: str | None) -> Page:
    """Of a paper that is listed and deleted on the same page, what comes last counts."""
    records: list[tuple[Record, str]] = []
    deleted: dict[str, str] = {}
    unusable: list[str] = []
    for element in elements:
        try:
            arxiv, stamp, gone = _header(element)
            if gone:
                deleted[arxiv] = stamp
            else:
                records.append((_listed(arxiv, element), stamp))
                deleted.pop(arxiv, None)
        except UnusableRecord as problem:
            unusable.append(str(problem))
    return Page(at, tuple(records), deleted, tuple(unusable), token)


def _header(element: Any) -> tuple[str, str, bool]:
    """Id, datestamp (empty when it is none) and whether the record was deleted."""
    header = element.find(f"{OAI}header")
    identifier = "" if header is None else one_line(header.findtext(f"{OAI}identifier")) or ""
    arxiv = identifier.rpartition(":")[2]
    if bare_id(arxiv) != (arxiv, None):
        raise UnusableRecord(f"{identifier[:100] or 'a record without an id'}: not the form of an arXiv id")
    return arxiv, _day(header.findtext(f"{OAI}datestamp") or ""), header.get("status") == "deleted"


def _listed(arxiv: str, element: Any) -> Record:
    raw = element.find(f"{OAI}metadata/{RAW}arXivRaw")
    if raw is None:
        raise UnusableRecord(f"{arxiv}: its metadata are of another kind")
    return record(arxiv, raw)


def _token(listed: Any) -> str | None:
    token = (listed.findtext(f"{OAI}resumptionToken") or "").strip()
    if len(token) > LONGEST_TOKEN:
        raise Again(f"a resumption token of {len(token):,} characters")
    return token or None


def _at(root: Any) -> str:
    """When the answer was made; empty when that is no moment."""
    text = (root.findtext(f"{OAI}responseDate") or "").strip()
    try:
        return text if _MOMENT.fullmatch(text) and datetime.fromisoformat(text) else ""
    except ValueError:
        return ""


def _day(text: str) -> str:
    """The day of a datestamp; empty when it is none."""
    match = _DAY.match(text.strip())
    try:
        return date.fromisoformat(match[0]).isoformat() if match else ""
    except ValueError:
        return ""
