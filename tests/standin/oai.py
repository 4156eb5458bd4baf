"""The interface for harvests (OAI-PMH, arXivRaw): sets, windows of days, pages with resumption tokens, deletions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tests.standin.mischief import Mischief, Reply
from tests.standin.papers import Paper
from tests.standin.raw import record

if TYPE_CHECKING:
    from tests.standin.server import StandIn

FIRST = date(2005, 9, 16)
GROUPS = ("cs", "econ", "eess", "math", "physics", "q-bio", "q-fin", "stat")
RECORD = re.compile(rb"<record>.*?</record>\n", re.DOTALL)
TOKEN = re.compile(rb"<resumptionToken[^>]*(?:/>|>.*?</resumptionToken>)")


class Interface:
    """Answers ListRecords for the stand-in's papers. Tokens stay good until `forget` is called.

    With ``loops``, every token leads to the page that gave it.
    """

    def __init__(self, standin: StandIn) -> None:
        self.standin = standin
        self.loops = False
        self._lists = 0
        self._tokens: dict[str, tuple[list[Paper], int, str]] = {}
        self._rendered: dict[str, tuple[Paper, str]] = {}

    def forget(self) -> None:
        """Let all tokens expire."""
        self._tokens.clear()

    def prepare(self) -> None:
        """Render every record, so that pages cost nothing later."""
        for paper in self.standin.papers.values():
            self._record(paper)

    def reply(self, parameters: dict[str, str]) -> Reply:
        """The honest reply."""
        if parameters.get("verb") != "ListRecords":
            return failure("badVerb", "Invalid verb provided")
        if "resumptionToken" not in parameters:
            return self._first(parameters)
        if parameters.keys() != {"verb", "resumptionToken"}:
            return failure("badArgument", "No other parameters allowed with resumptionToken")
        listed = self._tokens.get(parameters["resumptionToken"])
        if listed is None:
            return failure("badResumptionToken", "The value of the resumptionToken argument is invalid or expired.")
        return self._page(*listed)

    def _first(self, parameters: dict[str, str]) -> Reply:
        try:
            since, until = (date.fromisoformat(parameters[k]) if k in parameters else None for k in ("from", "until"))
            belongs = in_set(parameters.get("set"))
        except ValueError as problem:
            return failure("badArgument", f"Reason: {problem}")
        since, until = since or FIRST, until or datetime.now(UTC).date()
        if parameters.get("metadataPrefix") != "arXivRaw":
            return failure("cannotDisseminateFormat", "Did not recognize requested format")
        if since < FIRST or since > until:
            return failure("badArgument", "Reason: start date too early" if since < FIRST else "Reason: until < from")
        matching = [each for each in self.standin.papers.values() if since <= each.stamp <= until and belongs(each)]
        if not matching:
            return failure("noRecordsMatch", "The combination of the values results in an empty list.")
        self._lists += 1
        return self._page(sorted(matching, key=lambda paper: (paper.stamp, paper.arxiv)), 0, f"list%20{self._lists}")

    def _page(self, papers: list[Paper], start: int, named: str) -> Reply:
        end = start + self.standin.page
        records = "".join(map(self._record, papers[start:end]))
        if end < len(papers):
            following = start if self.loops and start else end
            name = f"{named}/{following}"
            self._tokens[name] = papers, following, named
            token = f'<resumptionToken expirationDate="2099-01-01T00:00:00Z">{escape(name)}</resumptionToken>'
        else:
            token = "<resumptionToken/>" if start else ""
        return answered(f"<ListRecords>\n{records}{token}</ListRecords>")

    def _record(self, paper: Paper) -> str:
        known = self._rendered.get(paper.arxiv)
        if known is None or known[0] is not paper:
            known = self._rendered[paper.arxiv] = (paper, record(paper))
        return known[1]


def in_set(name: str | None) -> Callable[[Paper], bool]:
    """Whether a paper belongs to a set such as cs or cs:cs:LG; ValueError for one that does not exist."""
    if name is None:
        return lambda paper: True
    group, *rest = name.split(":")
    if group not in GROUPS or len(rest) > 2:
        raise ValueError("Set does not exist")
    category = ".".join(rest or [group])
    return lambda paper: any(each == category or each.startswith(f"{category}.") for each in paper.categories)


def answered(inside: str) -> Reply:
    """A whole answer."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Reply(
        body=f"""<?xml version="1.0" encoding="UTF-8"?>
<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<responseDate>{now}</responseDate>
<request verb="ListRecords">http://oaipmh.arxiv.org/oai</request>
{inside}
</OAI-PMH>
""".encode(),
        content_type="text/xml",
    )


def failure(code: str, words: str) -> Reply:
    """An error of the protocol, which comes with status 200."""
    return answered(f"<error code='{code}'>{escape(words)}</error>")


# Mischief.


def _edited(change: Callable[[bytes], bytes]) -> Mischief:
    return lambda reply: replace(reply, body=change(reply.body))


def _in_records(pattern: bytes, instead: bytes, times: int = 1) -> Mischief:
    """Edit the first so many records of a page, or all of them with 0."""
    return _edited(lambda body: re.sub(pattern, instead, body, count=times, flags=re.DOTALL))


def _half(body: bytes) -> bytes:
    records = RECORD.findall(body)
    for dropped in records[len(records) // 2 :]:
        body = body.replace(dropped, b"")
    return body


def _bomb(body: bytes) -> bytes:
    declared = b'<!DOCTYPE OAI-PMH [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>\n<OAI-PMH'
    return body.replace(b"<OAI-PMH", declared, 1).replace(b"<title>", b"<title>&b;", 1)


_OTHER_KIND = rb"<metadata>.*?</metadata>"
_DUBLIN_CORE = b'<metadata><dc xmlns="http://www.openarchives.org/OAI/2.0/oai_dc/"/></metadata>'

MISCHIEF: dict[str, Mischief] = {
    "expired resumption token": lambda reply: failure("badResumptionToken", "Token decoding failed"),
    "503 with Retry-After from the harvest interface": lambda reply: Reply(
        503, b"Retry after 1 second", "text/plain", (("Retry-After", "1"),)
    ),
    "no records match": lambda reply: failure("noRecordsMatch", "an empty list"),
    "error without a meaning": lambda reply: failure(
        "badVerb", "Invalid verb \x1b[31mprovided".replace("\x1b", "&#9;")
    ),
    "list without records": _edited(lambda body: RECORD.sub(b"", body)),
    "page of half the records": _edited(_half),
    "last page without a token element": _edited(lambda body: TOKEN.sub(b"", body)),
    "token of a megabyte": _edited(
        lambda body: TOKEN.sub(b"<resumptionToken>" + b"t" * 2**20 + b"</resumptionToken>", body)
    ),
    "every record twice": _edited(lambda body: RECORD.sub(rb"\g<0>\g<0>", body)),
    "record of another kind": _in_records(_OTHER_KIND, _DUBLIN_CORE),
    "records of another kind": _in_records(_OTHER_KIND, _DUBLIN_CORE, times=0),
    "record without versions": _in_records(rb"(</submitter>\n).*?(\n<title>)", rb"\1\2"),
    "record with a date that is none": _in_records(rb"<date>.*?</date>", b"<date>Thu, 31 Feb 2021 17:37:18 GMT</date>"),
    "record of another paper": _in_records(rb"<id>.*?</id>", b"<id>1706.03762</id>"),
    "record without an id": _in_records(rb"<identifier>.*?</identifier>", b""),
    "record with an abstract of two megabytes": _in_records(rb"(<abstract>)", rb"\1" + b"x" * 2_000_000),
    "record of six thousand authors too many": _in_records(rb"(<authors>)", rb"\1" + b"A. Crowd, " * 12_000),
    "record without a datestamp": _in_records(rb"<datestamp>.*?</datestamp>", b"<datestamp>soon</datestamp>"),
    "record with a datestamp in the future": _in_records(rb"(<datestamp>)\d{4}", rb"\g<1>2999"),
    "answer of the year 1": _edited(lambda body: re.sub(rb"(<responseDate>)\d{4}", rb"\g<1>0001", body)),
    "answer from the future": _edited(lambda body: re.sub(rb"(<responseDate>)\d{4}", rb"\g<1>2999", body)),
    "entity bomb in a harvest": _edited(_bomb),
}
"""Kinds that only this interface has."""
