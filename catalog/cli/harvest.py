"""`peft-catalog harvest`: everything that changed in a part of arXiv since a day, without a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.output import Json, count, print_json, table
from catalog.cli.sync import Url

if TYPE_CHECKING:
    from datetime import date

    from catalog.arxiv_sync.bookmark import Bookmark
    from catalog.arxiv_sync.harvest import Outcome
    from catalog.discovery.candidates import Candidate
    from catalog.errors import Unreachable
    from catalog.query import Catalog

EXAMPLES = """Examples:  peft-catalog harvest --from 2026-11-01  |  peft-catalog harvest  |
peft-catalog harvest --from 2021-01-01 --until 2021-12-31 --set stat"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("harvest", epilog=EXAMPLES)(harvest)


def harvest(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="DATE", help="First day of change. Default: where the last harvest ended."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE", help="Last day of change. Default: up to now.")
    ] = None,
    set_name: Annotated[str, typer.Option("--set", metavar="SET", help="Part of arXiv: cs, stat, cs:cs:LG ...")] = "cs",
    restart: Annotated[
        bool, typer.Option("--restart", help="Leave a harvest that is under way, and begin anew.")
    ] = False,
    arxiv_url: Url = None,
    as_json: Json = False,
) -> None:
    """Store all metadata of a part of arXiv that changed since a day, and put new candidates into the inbox.

    The days are those on which arXiv changed the metadata, not those of the papers; they begin on 2005-09-16. All of cs
    is about a million records, which take some hours at its pace and some 2.5 GB of disk; a day is a request or two.

    A harvest that was stopped, by Ctrl-C, by a failure or by the machine, goes on where it was: give the same command
    again, or no dates. Other dates need --restart. Without --from, the next harvest begins two days before the newest
    change of the last one: changes can appear a day late, and what is known already is no news.

    Exit code 0: the harvest is complete.

    Exit code 3: arXiv could not be asked to the end; what arrived before is stored.
    """
    import catalog

    days = day(since, "--from"), day(until, "--until")
    with catalog.open(database(ctx)) as cat:
        bookmark, before = begin(cat, arxiv_url, set_name, days, restart=restart)
        outcome = ask(cat, bookmark, arxiv_url, quiet=as_json)
    if as_json:
        print_json(outcome_as_dict(outcome))
    else:
        show(outcome, before)
    if outcome.failure:
        raise failed(outcome)


def day(text: str | None, option: str) -> date | None:
    """The day that an option names; UsageError for anything else."""
    from datetime import date

    from catalog.errors import UsageError

    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise UsageError(f"{text!r} is no day", where=option, allowed="a day such as 2026-01-01") from None


def begin(
    cat: Catalog, url: str | None, set_name: str, days: tuple[date | None, date | None], *, restart: bool
) -> tuple[Bookmark, str | None]:
    """Where to begin, and the day to which harvests had come before."""
    import re

    from catalog.arxiv_sync.bookmark import chosen, stored
    from catalog.arxiv_sync.settings import settings
    from catalog.database import reading
    from catalog.errors import UsageError

    if not re.fullmatch(r"[a-z-]+(:[a-z-]+(:[A-Za-z-]+)?)?", set_name):
        raise UsageError(f"{set_name!r} is no set of arXiv", where="--set", allowed="cs, stat, cs:cs:LG ...")
    address = settings(url).oai
    with reading(cat.engine) as connection:
        last = stored(connection, address, set_name)
    return chosen(last, address, set_name, *days, restart=restart), last.complete_to if last else None


def ask(cat: Catalog, bookmark: Bookmark, url: str | None, *, quiet: bool) -> Outcome:
    """Harvest behind a progress display; interrupted, it says what was kept."""
    from catalog.arxiv_sync.harvest import Outcome
    from catalog.arxiv_sync.harvest import harvest as run
    from catalog.arxiv_sync.settings import settings
    from catalog.arxiv_sync.transport import Transport
    from catalog.cli.meter import Meter
    from catalog.discovery.sieve import Sieve

    reached = Outcome(bookmark)

    def arrived(outcome: Outcome) -> None:
        nonlocal reached
        reached = outcome
        meter.arrived(outcome.pages, outcome.records)

    with Meter(f"harvesting {bookmark.set_name}", quiet=quiet) as meter:
        try:
            with Transport(settings(url), meter.waiting, meter.noticed) as transport:
                return run(cat.engine, transport, Sieve(cat.engine), bookmark, arrived=arrived, noticed=meter.noticed)
        except KeyboardInterrupt:
            meter.noticed(f"stopped; kept: {kept(reached)}")
            raise


def kept(outcome: Outcome) -> str:
    """What is stored of a harvest that is not complete, and how it goes on."""
    pages, records = outcome.bookmark.pages, outcome.bookmark.records
    if not pages:
        return "nothing yet" if not outcome.pages else f"{count(outcome.records, 'record')}; the list begins again"
    return f"{count(pages, 'page')}, {count(records, 'record')}; the same command goes on there"


def failed(outcome: Outcome) -> Unreachable:
    """The failure, with what was kept."""
    assert outcome.failure
    outcome.failure.message += f" (kept: {kept(outcome)})"
    return outcome.failure


# What is shown.


def show(outcome: Outcome, before: str | None) -> None:
    """A harvest for people: what matters most stands last."""
    from catalog.terminal import clean

    bookmark = outcome.bookmark
    table("not taken in", ("what arXiv sent",), ((each,) for each in outcome.problems))
    if outcome.unusable > len(outcome.problems):
        typer.echo(f"... and {outcome.unusable - len(outcome.problems)} more like these\n")
    table("new candidates", ("score", "arXiv", "paper", "title"), map(candidate_row, outcome.best))
    if outcome.candidates > len(outcome.best):
        typer.echo(f"... and {outcome.candidates - len(outcome.best)} more\n")
    earlier = f", after {count(outcome.earlier, 'page')} that was stored before" if outcome.earlier else ""
    arrived = f"{count(outcome.pages, 'page')}, {count(outcome.records, 'record')}{earlier}"
    typer.echo(f"{bookmark.set_name} {bookmark.window.words}: {arrived}")
    typer.echo(
        f"{outcome.new} new, {outcome.changed} changed, {outcome.deleted} deleted, {outcome.unusable} unreadable"
    )
    typer.echo(f"{count(outcome.candidates, 'new candidate')}" + next_step(outcome))
    if outcome.newest:
        typer.echo(f"newest paper: {clean(outcome.newest)}")
    if outcome.complete:
        typer.echo(f"newest change: {bookmark.complete_to}; the next harvest begins on {bookmark.next_day}")
    first = bookmark.window.since.isoformat()
    if before and bookmark.complete_to and before < first <= bookmark.complete_to:
        typer.echo(f"not harvested: {before} to {first}; --from {before} brings it")


def next_step(outcome: Outcome) -> str:
    """What to do with the candidates."""
    return "; next: peft-catalog inbox list" if outcome.candidates else ""


def candidate_row(candidate: Candidate) -> tuple[Any, ...]:
    """A candidate in one row."""
    return f"{candidate.score:.0f}", candidate.arxiv, candidate.slug, candidate.title


def outcome_as_dict(outcome: Outcome) -> dict[str, Any]:
    """A harvest for programs; the keys are stable."""
    bookmark = outcome.bookmark
    plain = ("pages", "records", "new", "changed", "deleted", "newest", "requests", "complete")
    return {
        "set": bookmark.set_name,
        "from": bookmark.window.since.isoformat(),
        "until": bookmark.window.until and bookmark.window.until.isoformat(),
        **{name: getattr(outcome, name) for name in plain},
        "earlier_pages": outcome.earlier,
        "complete_to": bookmark.complete_to,
        "candidates": {"count": outcome.candidates, "best": [each.as_dict() for each in outcome.best]},
        "unusable": {"count": outcome.unusable, "first": outcome.problems},
        "failure": outcome.failure and outcome.failure.message,
    }
