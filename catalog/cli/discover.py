"""`peft-catalog discover`: candidates for the catalog, by stored queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.harvest import candidate_row, day
from catalog.cli.output import Json, count, print_json, table
from catalog.cli.sync import Url
from catalog.terminal import clean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from catalog.discovery.search import Outcome
    from catalog.query import Catalog

EXAMPLES = """Examples:  peft-catalog discover  |  peft-catalog discover --since 2026-11-01 --query low-rank  |
peft-catalog discover --query 'abs:"sparse fine tuning" AND cat:cs.LG'"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("discover", epilog=EXAMPLES)(discover)


def discover(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="First day of submission. Default: two weeks before the last search."),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="A stored query by name, or one in arXiv's syntax; repeat for several. Default: all stored."),
    ] = None,
    list_queries: Annotated[bool, typer.Option("--list-queries", help="List the stored queries and stop.")] = False,
    arxiv_url: Url = None,
    as_json: Json = False,
) -> None:
    """Search arXiv for papers that may belong into the catalog, and keep them in the inbox.

    Left out is what the catalog has, by id and by title, and what was rejected before. Candidates are scored by the
    words of title and abstract; peft-catalog inbox show tells the reasons. Words and queries are in
    catalog/discovery/queries.toml, and your own in the file that PEFT_CATALOG_QUERIES names.

    Exit code 0: arXiv has answered every query. Exit code 3: it could not be asked to the end; what came is kept.
    """
    import catalog
    from catalog.discovery.queries import load
    from catalog.discovery.search import first_day

    stored = load()
    if list_queries:
        table(
            "stored queries",
            ("name", "what for", "query"),
            ((n, stored.comments[n], q) for n, q in stored.queries.items()),
        )
        return
    queries = chosen(stored.queries, query or [])
    first = day(since, "--since")
    with catalog.open(database(ctx)) as cat:
        outcome = ask(cat, queries, first or first_day(cat.engine), arxiv_url, quiet=as_json)
    if as_json:
        print_json(outcome_as_dict(outcome))
    else:
        show(outcome)
    if outcome.failure:
        outcome.failure.message += f" (kept: {count(len(outcome.found.new), 'new candidate')})"
        raise outcome.failure


def chosen(stored: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """The queries asked for; a name that is none of the stored ones is a query itself when it has a field in it."""
    from catalog.errors import UsageError

    queries = {}
    for each in wanted or stored:
        if each not in stored and ":" not in each:
            raise UsageError(
                f"{each!r} is neither the name of a stored query nor a query in arXiv's syntax",
                where="--query",
                allowed=[*stored, 'abs:"some words"'],
            )
        queries[each] = stored.get(each, each)
    return queries


def ask(cat: Catalog, queries: Mapping[str, str], since: date, url: str | None, *, quiet: bool) -> Outcome:
    """Search behind a progress display; interrupted, it says what was kept."""
    from catalog.arxiv_sync.settings import settings
    from catalog.arxiv_sync.transport import Transport
    from catalog.cli.meter import Meter
    from catalog.discovery.search import Outcome
    from catalog.discovery.search import discover as run

    reached = Outcome(since)

    def arrived(outcome: Outcome, query: str) -> None:
        nonlocal reached
        reached = outcome
        meter.arrived(outcome.pages, outcome.found.seen)

    with Meter("searching arXiv", quiet=quiet) as meter:
        try:
            with Transport(settings(url), meter.waiting, meter.noticed) as transport:
                return run(cat.engine, transport, queries, since, arrived=arrived)
        except KeyboardInterrupt:
            meter.noticed(f"stopped; kept: {count(len(reached.found.new), 'new candidate')}")
            raise


def show(outcome: Outcome) -> None:
    """A search for people: what matters most stands last."""
    found = outcome.found
    table("not taken in", ("what arXiv sent",), ((each,) for each in outcome.unusable))
    table("found", ("query", "papers"), outcome.totals.items())
    table("new candidates", ("score", "arXiv", "paper", "title"), map(candidate_row, found.new))
    typer.echo(f"{count(found.seen, 'result')} since {outcome.since} in {count(outcome.pages, 'page')}")
    typer.echo(
        f"{len(found.catalogued)} in the catalog, {found.rejected} rejected before, {found.known} known, "
        f"{found.below} below the threshold"
    )
    if outcome.newest:
        typer.echo(f"newest paper: {clean(outcome.newest)}")
    more = "; next: peft-catalog inbox list" if found.new else ""
    typer.echo(f"{count(len(found.new), 'new candidate')}{more}")


def outcome_as_dict(outcome: Outcome) -> dict[str, Any]:
    """A search for programs; the keys are stable."""
    found = outcome.found
    return {
        "since": outcome.since.isoformat(),
        "queries": outcome.totals,
        "pages": outcome.pages,
        "seen": found.seen,
        "catalogued": found.catalogued,
        "rejected": found.rejected,
        "known": found.known,
        "below": found.below,
        "new": [candidate.as_dict() for candidate in found.new],
        "updated": [candidate.as_dict() for candidate in found.updated],
        "unusable": outcome.unusable,
        "newest": outcome.newest,
        "failure": outcome.failure and outcome.failure.message,
    }
