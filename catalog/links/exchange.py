"""Requests to hosts, in their turns, and none to hosts that have had enough, do not listen or do not exist."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass

import httpx

from catalog.links.pace import Pace
from catalog.links.trail import Astray, Trail
from catalog.lists.addresses import host
from catalog.network.guard import NoSuchHost
from catalog.network.identity import user_agent
from catalog.network.waiting import retry_after

_ASKS_TO_WAIT = (429, 503)
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout)
SILENT = 3
"""Connections in a row that fail before a host is asked no more in this run."""


@dataclass(frozen=True)
class Limits:
    """Seconds between requests to a host, for a connection, a request, an address in all, and of waiting when told."""

    per_host: float = 1.0
    connection: float = 10.0
    request: float = 20.0
    address: float = 40.0
    wait: float = 30.0


@dataclass(frozen=True)
class Answer:
    """What of an answer matters; bodies are never read."""

    status: int
    location: str | None
    wait: float | None


class Busy(Exception):
    """A host that wants to be left alone for now."""


class Exchange:
    """Makes requests through one transport, and remembers for a run how hosts took them."""

    def __init__(self, transport: httpx.AsyncBaseTransport, limits: Limits) -> None:
        self._transport = transport
        self._limits = limits
        self._headers = {"User-Agent": user_agent(), "Accept": "*/*", "Accept-Encoding": "identity"}
        self._pace = Pace(limits.per_host)
        self._busy: dict[str, str] = {}
        self._failed: dict[str, int] = defaultdict(int)
        self._missing: set[str] = set()

    async def ask(self, method: str, trail: Trail) -> Answer:
        """An answer, asked for a second time where the server says when; Busy where that is too late."""
        answer = await self._once(method, trail)
        wait = answer.wait
        if answer.status in _ASKS_TO_WAIT and wait is not None and wait <= self._limits.wait and not trail.waited:
            trail.waited = True
            self._pace.hold(host(str(trail.url)), wait)
            answer = await self._once(method, trail)
        if answer.status == 429:
            told = f", and says to wait {answer.wait:.0f} s" if answer.wait is not None else ""
            name = host(str(trail.url))
            self._busy[name] = f"not asked: {name} had enough of requests{told}"
            raise Busy(f"429 Too Many Requests{told}")
        return answer

    async def _once(self, method: str, trail: Trail) -> Answer:
        """One request in its turn. What it takes is taken from the address's time; waiting for the turn is not."""
        name = host(str(trail.url))
        if trail.url.host in self._missing:
            raise NoSuchHost(trail.url.host)
        await self._pace.turn(name)
        if name in self._busy:
            raise Busy(self._busy[name])
        if self._failed[name] >= SILENT:
            raise Astray(f"not asked: {SILENT} connections to {name} failed")
        seconds = min(self._limits.request, trail.seconds_left)
        if seconds <= 0:
            raise httpx.ReadTimeout("the time for this address is used up")
        started = time.monotonic()
        try:
            response = await self._send(method, trail.url, seconds)
        except NoSuchHost:
            self._missing.add(trail.url.host)
            raise
        except _NO_CONNECTION:
            self._failed[name] += 1
            raise
        finally:
            trail.seconds_left -= time.monotonic() - started
        self._failed[name] = 0
        return Answer(response.status_code, response.headers.get("location"), retry_after(response.headers))

    async def _send(self, method: str, url: httpx.URL, seconds: float) -> httpx.Response:
        """Status and headers; the connection is let go before the body is read."""
        timeout = httpx.Timeout(seconds, connect=min(seconds, self._limits.connection))
        request = httpx.Request(method, url, headers=self._headers, extensions={"timeout": timeout.as_dict()})
        try:
            async with asyncio.timeout(seconds):
                response = await self._transport.handle_async_request(request)
                await response.aclose()
                return response
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer in time") from error
