"""Asking arXiv so that every way in which it fails is told apart: what is asked again, what is not, and what it says.

A reader turns the body of an answer into something useful, and raises `Again` for one that cannot be right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from catalog.arxiv_sync.pace import Pace, Waiting, ignore
from catalog.arxiv_sync.settings import Settings, on_arxiv, state_folder
from catalog.errors import Unreachable
from catalog.network.identity import CONTACT_VARIABLE, contact, user_agent
from catalog.network.waiting import Backoff, retry_after

T = TypeVar("T")
ACCEPT = "application/atom+xml, application/xml;q=0.9, text/xml;q=0.8"
THROTTLED = (406, 429, 503)
"""406 is arXiv's answer to clients without an Accept header and, in bad hours, to anybody."""
MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)


class Again(Exception):
    """An answer that cannot be right: ask again. ``partial`` is what could be read of it all the same."""

    def __init__(self, message: str, *, wait: float | None = None, partial: Any = None) -> None:
        super().__init__(message)
        self.wait = wait
        self.partial = partial


class NoUsableAnswer(Unreachable):
    """Patience has ended; ``partial`` is what could be read of the last answer."""

    partial: Any = None


class TooLong(Exception):
    """The address of the request is longer than arXiv takes (414)."""


@dataclass(frozen=True)
class Answer:
    """Status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Asks with timeouts, pace, patience and backoff. ``noticed`` is told of every failure that is asked again."""

    def __init__(
        self, settings: Settings, waiting: Waiting = ignore, noticed: Callable[[str], None] = lambda message: None
    ) -> None:
        self.settings = settings
        self.requests = 0
        self._noticed = noticed
        if settings.real and contact() is None:
            noticed(f"arXiv likes to know who asks: set {CONTACT_VARIABLE} to your mail or web address")
        self._pace = Pace(state_folder(), settings.site, settings.pace, settings.patience, waiting)
        self._backoff = Backoff(max(settings.pace, 0.01))
        self._client = httpx.Client(
            headers={"User-Agent": user_agent(), "Accept": ACCEPT},
            timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
            limits=httpx.Limits(max_connections=1),
        )

    def close(self) -> None:
        """Release the connection."""
        self._client.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def ask(self, address: str, parameters: Mapping[str, str], read: Callable[[Answer], T]) -> T:
        """What ``read`` makes of the answer. TooLong for an address that is; Unreachable when patience ends."""
        url = str(httpx.URL(address, params=dict(parameters)))
        for failures in range(1, self.settings.tries + 1):
            try:
                return read(usable(self._follow(url)))
            except Again as problem:
                if failures == self.settings.tries:
                    raise self._gave_up(url, problem) from problem
                wait = self._backoff.seconds(failures, problem.wait)
                if wait > self.settings.patience:
                    self._pace.hold(wait)
                    raise self._gave_up(url, problem) from problem
                self._noticed(f"{problem}; asking again in {wait:.0f} s")
                self._pace.hold(wait)
        raise AssertionError("a Settings.tries below one")

    def _gave_up(self, url: str, problem: Again) -> NoUsableAnswer:
        tried = self.settings.tries
        error = NoUsableAnswer(
            f"no usable answer: {problem}",
            where=f"{urlsplit(url).scheme}://{urlsplit(url).netloc}",
            hint=f"asked {tried} times at growing distances; try again later"
            if problem.wait is None
            else f"it asks to wait {problem.wait:.0f} seconds; try again after that",
        )
        error.partial = problem.partial
        return error

    def _follow(self, url: str) -> Answer:
        """The answer at the end of redirects; each of them is a request with a turn of its own."""
        for _ in range(MOST_REDIRECTS + 1):
            with self._pace.turn():
                answer = self._fetch(url)
            if answer.status not in _REDIRECTS:
                return answer
            target = urljoin(url, answer.headers.get("location", ""))
            if not _trusted(url, target):
                raise Again(f"redirected to a stranger, {target[:200]}")
            url = target
        raise Again(f"redirected more than {MOST_REDIRECTS} times")

    def _fetch(self, url: str) -> Answer:
        self.requests += 1
        deadline = time.monotonic() + self.settings.answer_timeout
        body = bytearray()
        try:
            with self._client.stream("GET", url) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > self.settings.most_bytes:
                        raise Again(f"an answer of more than {self.settings.most_bytes >> 20} MB")
                    if time.monotonic() > deadline:
                        raise Again(f"the answer was not complete after {self.settings.answer_timeout:.0f} s")
                return Answer(response.status_code, response.headers, bytes(body))
        except httpx.TimeoutException as error:
            raise Again("no answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Again(f"the connection failed: {str(error) or type(error).__name__}") from error


def usable(answer: Answer) -> Answer:
    """An answer worth reading. Again for a failure that passes, TooLong for 414, Unreachable for one that stays."""
    wait = retry_after(answer.headers)
    if answer.status in THROTTLED or _says_throttled(answer.body):
        raise Again(f"too many requests (status {answer.status})", wait=wait)
    if answer.status >= 500:
        raise Again(f"arXiv is out of order (status {answer.status})", wait=wait)
    if answer.status == 414:
        raise TooLong
    if answer.status not in (200, 400):
        raise Unreachable(f"the server answers with status {answer.status}", hint="check --arxiv-url")
    return answer


def _says_throttled(body: bytes) -> bool:
    """Whether the text is that of too many requests, which arXiv sends now and then with status 200."""
    return len(body) < 1000 and b"rate exceeded" in body.lower()


def _trusted(url: str, target: str) -> bool:
    """Whether a redirect stays with the server that was asked, or among arXiv's own by https."""
    here, there = urlsplit(url), urlsplit(target)
    if on_arxiv(url):
        return on_arxiv(target) and there.scheme == "https"
    return (here.scheme, here.netloc) == (there.scheme, there.netloc)
