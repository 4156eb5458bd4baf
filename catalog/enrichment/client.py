"""Asking one index: a request a second, with patience for failures that pass, and given up after that."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

import httpx

from catalog.enrichment.sources import Request
from catalog.errors import UsageError
from catalog.links.pace import Pace
from catalog.network.identity import user_agent
from catalog.network.waiting import Backoff, retry_after

SECONDS_APART = 1.0
TIMEOUT = 30.0
"""Seconds for a whole answer."""
MOST_BYTES = 2 * 2**20
TRIES = 3
LONGEST_WAIT = 60.0
"""Seconds beyond which a server that asks to wait is given up."""
FIRST_WAIT = 2.0


class GivenUp(Exception):
    """The index is not asked any more in this run; says why, in words that hold nothing secret."""


class Refused(Exception):
    """This one request is not answered; the next may be."""


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Client:
    """Asks one index; use it in `async with`."""

    def __init__(self) -> None:
        # It writes whole addresses, with the key in them, into the log of a program that keeps one.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._pace = Pace(SECONDS_APART)
        self._backoff = Backoff(FIRST_WAIT)
        headers = {"User-Agent": user_agent(), "Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            self._client = httpx.AsyncClient(headers=headers, timeout=TIMEOUT)
        except (ValueError, ImportError) as error:
            raise UsageError("the proxy that the environment names cannot be used", where="HTTPS_PROXY") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, request: Request) -> bytes | None:
        """The answer; None where the index does not have the paper. GivenUp or Refused otherwise."""
        for failures in range(1, TRIES + 1):
            await self._pace.turn("")
            try:
                return await self._once(request)
            except _Again as problem:
                wait = self._backoff.seconds(failures, problem.wait)
                if failures == TRIES or (problem.wait or 0) > LONGEST_WAIT:
                    raise GivenUp(str(problem)) from None
                self._pace.hold("", wait)
        raise AssertionError("TRIES below one")

    async def _once(self, request: Request) -> bytes | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._answer(request)
        except (TimeoutError, httpx.TimeoutException):
            raise _Again("no answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            # Only the kind of the failure: its words could name the address, and the key with it.
            raise _Again(f"the connection failed ({type(error).__name__})") from None

    async def _answer(self, request: Request) -> bytes | None:
        parameters = {**request.parameters, **request.secrets}
        async with self._client.stream("GET", request.url, params=parameters) as response:
            status = response.status_code
            if status == 429 or status >= 500:
                raise _Again(f"status {status}", retry_after(response.headers))
            if status == 404:
                return None
            if status in (401, 403):
                raise GivenUp(f"status {status}: it asks for a key, or does not like the one it got")
            if status != 200:
                raise Refused(f"status {status}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise Refused("an answer in an encoding that was not asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Refused(f"an answer of more than {MOST_BYTES >> 20} MB")
            return bytes(body)
