"""One address: asked with HEAD, then GET where HEAD says nothing, along its redirects, to an outcome."""

from __future__ import annotations

import asyncio

import httpx

from catalog.links.closed import closed_since
from catalog.links.exchange import Answer, Busy, Exchange, Limits
from catalog.links.outcome import Outcome, State
from catalog.links.trail import REDIRECTS, Astray, Trail, judged
from catalog.lists.addresses import host, is_on
from catalog.network import guard

KNOWN_NAME = "doi.org"
"""A host that exists: where even its name is not found, no name is."""
_HEAD_SAYS_NOTHING = (400, 403, 404, 405, 501)
_CUT_OFF = (httpx.ReadError, httpx.ReadTimeout, httpx.WriteError, httpx.RemoteProtocolError)
"""How a request fails that had a connection, so that another kind of request may fare better."""


class Asker:
    """Asks addresses through one transport, and never raises for what a server does."""

    def __init__(self, transport: httpx.AsyncBaseTransport, limits: Limits) -> None:
        self._exchange = Exchange(transport, limits)
        self._seconds = limits.address
        self._names: asyncio.Task[bool] | None = None

    async def outcome(self, address: str) -> Outcome:
        """What became of an address."""
        trail = Trail(address, self._seconds)
        try:
            trail.start()
            return await self._follow(trail)
        except guard.NoAddress as error:
            return trail.outcome(State.INVALID, str(error))
        except guard.NotPublic as error:
            return trail.outcome(State.PRIVATE, str(error))
        except guard.NoSuchHost as error:
            if await self.names_work():
                return trail.outcome(State.GONE, f"there is no host {error}")
            return trail.outcome(State.UNREACHABLE, "host names cannot be looked up")
        except Busy as error:
            return trail.outcome(State.REFUSED, str(error), 429)
        except Astray as error:
            return trail.outcome(State.UNREACHABLE, str(error))
        except httpx.TimeoutException:
            return trail.outcome(State.UNREACHABLE, "no answer in time")
        except Exception as error:  # whatever a server sends must not stop the run
            return trail.outcome(State.UNREACHABLE, _words(error))

    async def names_work(self) -> bool:
        """Whether host names can be looked up at all; found out once."""
        if self._names is None:
            self._names = asyncio.create_task(_is_known(KNOWN_NAME))
        return await asyncio.shield(self._names)

    async def _follow(self, trail: Trail) -> Outcome:
        while True:
            unasked = _unasked(trail)
            if unasked:
                return unasked
            answer = await self._answer(trail)
            if answer.status not in REDIRECTS:
                return judged(trail, answer.status)
            trail.redirect(answer.status, answer.location)

    async def _answer(self, trail: Trail) -> Answer:
        """The answer to HEAD, or to GET where that one tells more."""
        try:
            answer = await self._exchange.ask("HEAD", trail)
        except _CUT_OFF:
            return await self._exchange.ask("GET", trail)
        if answer.status in _HEAD_SAYS_NOTHING or answer.status >= 500:
            return await self._exchange.ask("GET", trail)
        return answer


def _unasked(trail: Trail) -> Outcome | None:
    """The outcome of an address that is not asked: on arXiv, or on a site that has closed."""
    address = str(trail.url)
    if is_on(address, ("arxiv.org",)):
        moved = trail.moved
        return trail.outcome(State.MOVED if moved else State.ARXIV, "leads to arXiv" if trail.hops else "")
    since = closed_since(address)
    return trail.outcome(State.CLOSED, f"{host(address)} closed in {since}") if since else None


async def _is_known(name: str) -> bool:
    try:
        return bool(await guard.resolve(name, 443))
    except Exception:  # any failure means the same
        return False


def _words(error: Exception) -> str:
    """What a failure says, in few words; its text may come from a server."""
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__
