"""All entries from all sources: each source at its own pace, each answer kept as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Engine

from catalog.database import reading
from catalog.enrichment import cache
from catalog.enrichment.answers import Unusable
from catalog.enrichment.client import Client, GivenUp, Refused
from catalog.enrichment.facts import Facts, key
from catalog.enrichment.sources import Request, Source
from catalog.entry import Entry


@dataclass
class Report:
    """How it went with one source: requests due, answered, of those news; and why it was given up, or single ones."""

    source: str
    due: int = 0
    answered: int = 0
    news: int = 0
    given_up: str | None = None
    refused: str | None = None
    missing: int = 0
    """Papers about which nothing is known from this source, neither now nor from before."""


def enrich(
    engine: Engine,
    entries: Iterable[Entry],
    sources: Iterable[Source],
    refresh: bool = False,
    progress: Callable[[int, int], None] = lambda done, due: None,
) -> list[Report]:
    """Ask every source about every entry it was not asked about lately; ``progress`` gets numbers done and due."""
    return asyncio.run(_enrich(engine, list(entries), list(sources), refresh, progress))


async def _enrich(
    engine: Engine,
    entries: list[Entry],
    sources: list[Source],
    refresh: bool,
    progress: Callable[[int, int], None],
) -> list[Report]:
    plans = [_due(engine, entries, source, refresh) for source in sources]
    reports = [Report(source.name, due=len(plan)) for source, plan in zip(sources, plans, strict=True)]
    total = sum(map(len, plans))

    def step() -> None:
        progress(sum(report.answered for report in reports), total)

    step()
    await asyncio.gather(
        *(
            _ask(engine, source, plan, report, step)
            for source, plan, report in zip(sources, plans, reports, strict=True)
        )
    )
    for source, report in zip(sources, reports, strict=True):
        with reading(engine) as connection:
            known = cache.kept(connection, source.name)
        report.missing = sum(source.request(entry) is not None and key(entry) not in known for entry in entries)
    return reports


def _due(engine: Engine, entries: list[Entry], source: Source, refresh: bool) -> list[tuple[Entry, Request]]:
    """What to ask a source now."""
    good = set() if refresh else cache.good(engine, source.name)
    requests = ((entry, source.request(entry)) for entry in entries if key(entry) not in good)
    return [(entry, request) for entry, request in requests if request is not None]


async def _ask(
    engine: Engine, source: Source, plan: list[tuple[Entry, Request]], report: Report, step: Callable[[], None]
) -> None:
    async with Client() as client:
        for entry, request in plan:
            try:
                body = await client.ask(request)
                facts = Facts() if body is None else _without(source.facts(entry, body), request)
            except GivenUp as error:
                report.given_up = str(error)
                return
            except (Refused, Unusable) as error:
                report.refused = str(error)
                continue
            report.news += await asyncio.to_thread(cache.keep, engine, source.name, key(entry), facts)
            report.answered += 1
            step()


def _without(facts: Facts, request: Request) -> Facts:
    """The facts, unless a server has sent a secret back: then none."""
    text = facts.model_dump_json()
    return Facts() if any(secret in text for secret in request.secrets.values()) else facts
