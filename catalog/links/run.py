"""All addresses, host by host: four hosts at once, each outcome kept as soon as it is known."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum

from catalog.links.ask import Asker
from catalog.links.exchange import Limits
from catalog.links.outcome import REACHED, Outcome, State
from catalog.lists.addresses import host
from catalog.network.guard import guarded_transport

HOSTS_AT_ONCE = 4


class Reach(Enum):
    """How far a run got."""

    SOMEBODY = "somebody answered, or nobody had to be asked"
    NOBODY = "nobody answered"
    NO_NAMES = "nobody answered, and host names cannot be looked up"


def check(
    addresses: Iterable[str], keep: Callable[[Outcome], None], limits: Limits, allow_private: bool = False
) -> Reach:
    """Ask all addresses, and hand every outcome to ``keep``, in threads. A KeyboardInterrupt stops it at once."""
    return asyncio.run(_check(list(addresses), keep, limits, allow_private))


async def _check(addresses: list[str], keep: Callable[[Outcome], None], limits: Limits, allow_private: bool) -> Reach:
    queues: dict[str, list[str]] = defaultdict(list)
    for address in addresses:
        queues[host(address)].append(address)
    gate = asyncio.Semaphore(HOSTS_AT_ONCE)
    states: set[State] = set()
    async with guarded_transport(allow_private) as transport:
        asker = Asker(transport, limits)

        async def work(queue: list[str]) -> None:
            async with gate:
                for address in queue:
                    outcome = await asker.outcome(address)
                    states.add(outcome.state)
                    # In a thread, so that a database in use elsewhere does not make servers look slow.
                    await asyncio.to_thread(keep, outcome)

        # The longest first: the run takes as long as the host with the most addresses.
        await asyncio.gather(*(work(queue) for queue in sorted(queues.values(), key=len, reverse=True)))
        if State.UNREACHABLE not in states or states & REACHED:
            return Reach.SOMEBODY
        return Reach.NOBODY if await asker.names_work() else Reach.NO_NAMES
