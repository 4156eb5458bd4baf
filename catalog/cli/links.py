"""`peft-catalog links`: whether the addresses that entries name still lead somewhere."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from catalog.cli.context import database
from catalog.cli.output import print_json, table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from catalog.entry import Entry
    from catalog.links.addresses import Use
    from catalog.links.exchange import Limits
    from catalog.links.report import Finding
    from catalog.links.run import Reach
    from catalog.query import Catalog

EXAMPLES = """Examples:  peft-catalog links  |  peft-catalog links lora dora --recheck  |
peft-catalog links --category prompt --json"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("links", epilog=EXAMPLES)(links)


def links(
    ctx: typer.Context,
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers by slug or alias; all if left out.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Papers of this category; repeat for several.")] = None,
    older_than: Annotated[
        int, typer.Option(metavar="DAYS", min=0, max=36_500, help="Ask again what was answered so many days ago.")
    ] = 7,
    recheck: Annotated[bool, typer.Option("--recheck", help="Ask everything: --older-than 0.")] = False,
    per_host: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, max=3600, help="Between requests to a host; below 1 for your own."),
    ] = 1,
    timeout: Annotated[int, typer.Option(metavar="SECONDS", min=1, max=3600, help="Longest time for an address.")] = 40,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Also ask hosts in private networks and on this machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything known, as JSON.")] = False,
) -> None:
    """Ask the addresses of papers, code and DOIs, and say which are dead, have moved, and since when.

    A host is asked at most once a second. Stopped or killed, the same command goes on where it was. Addresses on
    arXiv are left to `peft-catalog sync`.

    Exit code 0: nothing to do; a server that refuses to talk to programs, or fails this time, is no finding.

    Exit code 1: an address of an entry has moved, is gone, closed or private, or is no address. A link that only a
    public list prints is part of that list's history: it is counted apart, and changes nothing here.

    Exit code 3: nobody could be reached.
    """
    import catalog
    from catalog.database import reading
    from catalog.errors import Unreachable
    from catalog.links.exchange import Limits
    from catalog.links.outcome import REACHED
    from catalog.links.report import as_dict, findings
    from catalog.links.run import Reach

    limits = Limits(per_host=polite(per_host, allow_private), address=timeout)
    with catalog.open(database(ctx)) as cat:
        entries = chosen(cat, slugs or [], category or [])
        reach, asked = ask(cat.engine, entries, 0 if recheck else older_than, limits, allow_private, as_json)
        with reading(cat.engine) as connection:
            found = findings(connection, entries)
        known = any(finding.url not in asked and finding.state in REACHED for finding in found)
        failed = reach is Reach.NO_NAMES or (reach is Reach.NOBODY and not known)
        if not (failed or slugs or category):
            note(cat.engine, found, asked)
    if as_json:
        print_json(as_dict(found, asked))
    else:
        show(found, asked, failed)
    if failed:
        raise Unreachable(reach.value, hint="is there a network? Proxies are not used: they look names up unchecked")
    if any(finding.is_problem for finding in found):
        raise typer.Exit(1)


def chosen(cat: Catalog, slugs: list[str], categories: list[str]) -> list[Entry]:
    """The entries asked for, each once; all by default."""
    from catalog.errors import UsageError

    if slugs and categories:
        raise UsageError("papers are chosen by name or by category, not by both", hint="leave one of them out")
    if slugs:
        papers = [cat.paper(slug) for slug in slugs]
    else:
        papers = [paper for each in categories or (None,) for paper in cat.papers(category=each)]
    return list({paper.slug: paper.entry for paper in papers}.values())


def polite(per_host: float, allow_private: bool) -> float:
    """Seconds between requests; UsageError for fewer than one to servers of others."""
    from catalog.errors import UsageError

    if per_host < 1 and not allow_private:
        raise UsageError(
            f"{per_host:g} seconds between requests are too few for servers of others",
            where="--per-host",
            allowed="1 or more; less with --allow-private, for servers of your own",
        )
    return per_host


def ask(
    engine: Engine, entries: list[Entry], days: float, limits: Limits, allow_private: bool, quiet: bool
) -> tuple[Reach, dict[str, bool]]:
    """Ask what is not known well enough, behind a progress bar; interrupted, it says what was kept.

    How far that got, and the addresses looked into with whether their outcome is news.
    """
    from catalog.cli.progress import Waits
    from catalog.database import reading
    from catalog.links import record
    from catalog.links.addresses import used
    from catalog.links.outcome import Outcome
    from catalog.links.run import check

    addresses = list(used(entries))
    with reading(engine) as connection:
        known = record.fresh(connection, addresses, days)
    due = [address for address in addresses if address not in known]
    done: dict[str, bool] = {}

    def keep(outcome: Outcome) -> None:
        done[outcome.url] = record.keep(engine, outcome)
        bar.reached(len(done), len(due))

    with Waits("asking", len(due), quiet=quiet) as bar:
        try:
            return check(due, keep, limits, allow_private), done
        except KeyboardInterrupt:
            bar.noticed(f"stopped; kept: {len(done)} of {len(due)} addresses, and the same command goes on")
            raise


def note(engine: Engine, found: list[Finding], asked: dict[str, bool]) -> None:
    """Remember that all addresses were checked."""
    from catalog.arxiv_sync.follow import followed
    from catalog.database import writing
    from catalog.links.report import counted

    with writing(engine) as connection:
        followed(connection, "links", learned=any(asked.values()), note=counted(found))


def show(found: list[Finding], asked: dict[str, bool], failed: bool) -> None:
    """A table of what is not alive, then the counts; a run that reached nobody is no reason to list what it missed."""
    from catalog.links.outcome import ASKED, State
    from catalog.links.report import counted
    from catalog.lists.addresses import host
    from catalog.terminal import clean

    own = [finding for finding in found if not finding.only_printed]
    silent = {State.ALIVE, State.ARXIV, State.REFUSED} | ({State.UNREACHABLE} if failed else set())
    shown = [finding for finding in own if finding.state not in silent]
    headings = ("paper", "key", "address", "state", "since", "what to do")
    table("not alive", headings, [row(finding, use) for finding in shown for use in finding.uses if not use.list_slug])
    typer.echo(f"addresses of entries: {counted(own)}")
    refused = Counter(host(each.leads_to or each.url) for each in own if each.state is State.REFUSED)
    if refused:
        hosts = ", ".join(f"{name} ({number})" for name, number in refused.most_common())
        typer.echo(clean(f"refused by servers that do not talk to programs, look in a browser: {hosts}"))
    printed = [finding for finding in found if finding.only_printed]
    typer.echo(f"links printed by lists only, kept as their history: {counted(printed)}")
    now = sum(finding.url in asked and finding.state in ASKED for finding in found)
    typer.echo(f"asked now: {now}; known from before: {sum(finding.url not in asked for finding in found)}")


def row(finding: Finding, use: Use) -> tuple[str, ...]:
    """One use of an address that is not alive."""
    state = f"{finding.state}: {finding.detail}" if finding.detail else str(finding.state)
    return use.slug, use.key, finding.url, state, finding.since, finding.advice
