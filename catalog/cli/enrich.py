"""`peft-catalog enrich`: what other indexes know about papers, held against the entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.output import count, print_json, table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from catalog.enrichment.proposals import Proposal
    from catalog.enrichment.run import Report
    from catalog.enrichment.sources import Source
    from catalog.entry import Entry

EXAMPLES = """Examples:  peft-catalog enrich  |  peft-catalog enrich lora dora --source crossref  |
peft-catalog enrich --refresh --json"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("enrich", epilog=EXAMPLES)(enrich)


def enrich(
    ctx: typer.Context,
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers by slug or alias; all if left out.")] = None,
    source: Annotated[str | None, typer.Option(help="openalex or crossref. Default: both.")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask again what was asked in the last thirty days.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Proposals, and how each source did, as JSON.")] = False,
) -> None:
    """Ask OpenAlex and Crossref for venue, DOI, landing page and year, and propose what entries could take over.

    No entry is changed. Answers are kept for thirty days. OpenAlex is asked with the key in $OPENALEX_API_KEY where
    there is one, both with the mail address in $PEFT_CATALOG_CONTACT.

    Exit code 0: at least one source answered, or did not have to be asked.

    Exit code 3: no source answered.
    """
    import catalog
    from catalog.cli.links import chosen
    from catalog.database import reading
    from catalog.enrichment.proposals import proposals
    from catalog.errors import Unreachable

    sources = named(source)
    names = [each.name for each in sources]
    with catalog.open(database(ctx)) as cat:
        entries = chosen(cat, slugs or [], [])
        reports = ask(cat.engine, entries, sources, refresh, as_json)
        with reading(cat.engine) as connection:
            found = [proposal for proposal in proposals(connection, entries) if proposal.source in names]
        worked = any(report.answered or not report.due for report in reports)
        if worked and not slugs:
            note(cat.engine, reports, found)
    if as_json:
        print_json(as_dict(reports, found))
    else:
        show(reports, found)
    if not worked:
        raise Unreachable("no source answered", hint="is there a network? Proposals come from earlier answers")


def named(name: str | None) -> list[Source]:
    """The sources asked for; UsageError for an unknown one."""
    from catalog.enrichment.sources import SOURCES
    from catalog.errors import UsageError

    known = {source.name: source for source in SOURCES}
    if name is not None and name not in known:
        raise UsageError(f"{name!r} is not a source", where="--source", allowed=known)
    return list(SOURCES) if name is None else [known[name]]


def ask(engine: Engine, entries: list[Entry], sources: list[Source], refresh: bool, quiet: bool) -> list[Report]:
    """Ask the sources behind a progress bar; interrupted, it says what was kept."""
    from catalog.cli.progress import Waits
    from catalog.enrichment.run import enrich as run

    with Waits("asking", quiet=quiet) as bar:
        try:
            return run(engine, entries, sources, refresh, bar.reached)
        except KeyboardInterrupt:
            bar.noticed("stopped; the answers so far are kept, and the same command goes on")
            raise


def note(engine: Engine, reports: list[Report], found: list[Proposal]) -> None:
    """Remember that all entries were held against the sources."""
    from catalog.arxiv_sync.follow import followed
    from catalog.database import writing

    with writing(engine) as connection:
        learned = any(report.news for report in reports)
        followed(connection, "enrich", learned=learned, note=count(len(found), "proposal"))


def as_dict(reports: list[Report], found: list[Proposal]) -> dict[str, Any]:
    """Everything for programs; the keys are stable."""
    from dataclasses import asdict

    return {
        "sources": [asdict(report) for report in reports],
        "proposals": [proposal.as_dict() for proposal in found],
    }


def show(reports: list[Report], found: list[Proposal]) -> None:
    """A table of proposals, then how each source did."""
    from catalog.terminal import clean

    headings = ("paper", "key", "the entry", "the source", "source", "as of")
    rows = [(p.slug, p.key, p.entry_says, p.source_says, p.source, p.fetched[:10]) for p in found]
    table("proposals", headings, rows)
    for report in reports:
        typer.echo(clean(words(report)), err=report.answered < report.due)
    papers = len({proposal.slug for proposal in found})
    typer.echo(f"{count(len(found), 'proposal')} for {count(papers, 'paper')}; no entry was changed")


def words(report: Report) -> str:
    """How it went with a source."""

    why = report.given_up or report.refused
    if not report.due:
        return f"{report.source}: everything known from the last thirty days"
    asked = f"asked about {count(report.due, 'paper')}"
    if report.answered == report.due:
        return f"{report.source}: {asked}"
    how = f"answered {report.answered} of {report.due}" if report.answered else "not reached"
    missing = f"; venues of {count(report.missing, 'paper')} not compared" if report.missing else ""
    return f"{report.source}: {how} ({why}){missing}"
