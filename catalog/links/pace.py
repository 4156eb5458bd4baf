"""How fast a host is asked."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable


class Pace:
    """At most one request to a host in so many seconds, from start to start, whoever asks."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._free: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def turn(self, host: str) -> None:
        """Wait until the host may be asked; the next turn comes so much later."""
        async with self._locks[host]:
            while (wait := self._free.get(host, 0.0) - self._clock()) > 0:
                await self._sleep(wait)
            self._free[host] = self._clock() + self._seconds

    def hold(self, host: str, seconds: float) -> None:
        """Nobody asks this host for so long."""
        self._free[host] = max(self._free.get(host, 0.0), self._clock() + seconds)
