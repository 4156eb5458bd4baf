"""The way from an address along its redirects, and what the answer at its end means."""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx

from catalog.links.outcome import Hop, Outcome, State
from catalog.network.guard import NoAddress, checked_url

PERMANENT = (301, 308)
REDIRECTS = (*PERMANENT, 302, 303, 307)
MOST_REDIRECTS = 10
LONGEST = 4_000
"""Letters of an address that a redirect may name."""
_GONE = (404, 410)
_LOGIN = re.compile(
    r"(?:^|[/._-])(?:log-?in|sign-?in|sso|oauth2?|authorize|authenticate|consent|accounts?|captcha|cookieabsent)(?=$|[/._-])",
    re.IGNORECASE,
)


class Astray(Exception):
    """Redirects that lead nowhere."""


class Trail:
    """Where an address has led so far, and how much time is left for it."""

    def __init__(self, address: str, seconds: float) -> None:
        self.address = address
        self.hops: list[Hop] = []
        self.seconds_left = seconds
        self.waited = False
        self.url = httpx.URL()
        self._seen: set[str] = set()

    def start(self) -> None:
        """Read the address; NoAddress for text that is none."""
        self.url = checked_url(self.address)
        self._seen.add(str(self.url))

    def redirect(self, status: int, location: str | None) -> None:
        """Go where an answer says; Astray where that is nowhere, in a circle, or too far."""
        if not location:
            raise Astray(f"{status} without an address to go to")
        if len(location) > LONGEST:
            raise Astray(f"redirected to an address of {len(location):,} letters")
        try:
            target = checked_url(str(self.url.join(location)))
        except (NoAddress, httpx.InvalidURL, ValueError) as error:
            raise Astray("redirected to what is no address of the web") from error
        self.hops.append(Hop(status, str(target)))
        if str(target) in self._seen:
            raise Astray("redirected in a circle")
        if len(self.hops) > MOST_REDIRECTS:
            raise Astray(f"redirected more than {MOST_REDIRECTS} times")
        self.url = target
        self._seen.add(str(target))

    @property
    def moved(self) -> bool:
        """Whether all redirects are permanent, and there is one."""
        return bool(self.hops) and all(hop.status in PERMANENT for hop in self.hops)

    @property
    def at_login(self) -> bool:
        """Whether redirects have led to a page that asks to log in or to consent."""
        return bool(self.hops) and bool(_LOGIN.search(f"{self.url.host}{self.url.path}"))

    def outcome(self, state: State, detail: str = "", status: int | None = None) -> Outcome:
        """What became of the address, at this point of its way."""
        leads_to = self.hops[-1].to if self.hops else None
        return Outcome(self.address, state, status, leads_to, tuple(self.hops), detail)


def judged(trail: Trail, status: int) -> Outcome:
    """What the last answer means. Statuses that are the program's fault, or nobody's, tell nothing of the address."""
    words = f"{status} {_phrase(status)}".strip()
    if status < 400:
        if trail.at_login:
            return trail.outcome(State.ALIVE, f"{words}, at a page to log in or consent", status)
        return trail.outcome(State.MOVED if trail.moved else State.ALIVE, words, status)
    if status in _GONE:
        return trail.outcome(State.GONE, words, status)
    return trail.outcome(State.UNREACHABLE if 500 <= status < 600 else State.REFUSED, words, status)


def _phrase(status: int) -> str:
    """The name of a status; never the server's own words for it."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
