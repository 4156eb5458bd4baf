"""Every way in which arXiv misbehaves, on demand. A mischief gets the honest reply and gives another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from time import time

from tests.standin import atom


@dataclass(frozen=True)
class Reply:
    """What is sent. ``cut`` resets the connection after so many bytes; ``pause`` holds each piece back, in seconds."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/atom+xml"
    headers: tuple[tuple[str, str], ...] = ()
    cut: int | None = None
    hang: bool = False
    drip: float = 0.0


Mischief = Callable[[Reply], Reply]
RATE = b"Rate exceeded."
ENTRY = re.compile(rb"  <entry>.*?</entry>\n", re.DOTALL)


def _plain(status: int, body: bytes, *headers: tuple[str, str]) -> Mischief:
    return lambda reply: Reply(status, body, "text/plain", headers)


def _edited(change: Callable[[bytes], bytes]) -> Mischief:
    return lambda reply: replace(reply, body=change(reply.body))


def _without_entries(body: bytes) -> bytes:
    return ENTRY.sub(b"", body)


def _half_of_the_entries(body: bytes) -> bytes:
    entries = ENTRY.findall(body)
    for dropped in entries[len(entries) // 2 :]:
        body = body.replace(dropped, b"")
    return body


def _bomb(body: bytes) -> bytes:
    levels = b"".join(b'<!ENTITY l%d "%s">' % (i, b"&l%d;" % (i - 1) * 10) for i in range(1, 10))
    declared = b'<!DOCTYPE feed [<!ENTITY l0 "lol">' + levels + b"]>\n<feed"
    return body.replace(b"<feed", declared, 1).replace(b"<title>", b"<title>&l9;", 2)


def _file(body: bytes) -> bytes:
    declared = b'<!DOCTYPE feed [<!ENTITY secret SYSTEM "file:///etc/passwd">]>\n<feed'
    return body.replace(b"<feed", declared, 1).replace(b"<summary>", b"<summary>&secret;", 1)


def _long_title(body: bytes) -> bytes:
    return re.sub(rb"(<entry>.*?<title>)", rb"\g<1>" + b"x" * 2_000_000, body, count=1, flags=re.DOTALL)


def _empty_with_no_total(body: bytes) -> bytes:
    return re.sub(rb"(totalResults[^>]*>)\d+", rb"\g<1>0", _without_entries(body))


def _undated(body: bytes) -> bytes:
    return re.sub(rb"<published>.*?</published>", b"", body, count=1)


def _misdated(body: bytes) -> bytes:
    return re.sub(rb"<published>.*?</published>", b"<published>yesterday</published>", body, count=1)


HTML = b"<!DOCTYPE html>\n<html><head><title>arXiv</title></head><body>Something went wrong</body></html>"

MISCHIEF: dict[str, Mischief] = {
    "429 with the rate text": _plain(429, RATE),
    "429 with Retry-After in seconds": _plain(429, RATE, ("Retry-After", "1")),
    "503 with Retry-After as a date": lambda reply: Reply(
        503, RATE, "text/plain", (("Retry-After", formatdate(time() + 1.5, usegmt=True)),)
    ),
    "429 that asks for an hour": _plain(429, RATE, ("Retry-After", "3600")),
    "rate text with status 200": _plain(200, RATE),
    "406 in a throttling window": _plain(406, b"Not Acceptable"),
    "500": _plain(500, b"Internal Server Error"),
    "empty page although there is more": _edited(_without_entries),
    "empty page that says there is nothing": _edited(_empty_with_no_total),
    "short page": _edited(_half_of_the_entries),
    "truncated XML": _edited(lambda body: body[: len(body) * 2 // 3]),
    "invalid XML": _edited(lambda body: body.replace(b"<title>", b"<title>&nbsp;\x08", 1)),
    "HTML with status 200": lambda reply: Reply(200, HTML, "text/html"),
    "connection reset": lambda reply: replace(reply, cut=len(reply.body) // 3),
    "connection reset at once": lambda reply: replace(reply, cut=0),
    "connection that hangs": lambda reply: replace(reply, hang=True),
    "connection that drips": lambda reply: replace(reply, drip=0.2),
    "entity bomb": _edited(_bomb),
    "entity that reads a file": _edited(_file),
    "title of two megabytes": _edited(_long_title),
    "entry without a date": _edited(_undated),
    "entry with a date that is none": _edited(_misdated),
    "414": _plain(414, b"Request-URI Too Large"),
    "error feed that names no id": lambda reply: Reply(400, atom.error("malformed request")),
    "redirect to a stranger": _plain(302, b"", ("Location", "http://127.0.0.9:9/api/query")),
    "redirect without end": _plain(302, b"", ("Location", "")),
}
"""Kind -> what it makes of an honest reply. The interface for harvests has some of its own, in tests.standin.oai."""
