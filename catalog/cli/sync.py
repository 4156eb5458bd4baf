"""`peft-catalog sync`, `history`, `status`: what arXiv says of catalogued papers, since when, and how fresh that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.output import Json, count, print_json, table
from catalog.terminal import clean

if TYPE_CHECKING:
    from pathlib import Path

    from catalog.arxiv_sync.archive import Statement
    from catalog.arxiv_sync.changes import Change
    from catalog.arxiv_sync.reconcile import Drift, Value
    from catalog.arxiv_sync.sync import Outcome
    from catalog.entry import Entry
    from catalog.errors import EntryError, Unreachable
    from catalog.query import Catalog

SYNC_EXAMPLES = """Examples:  peft-catalog sync  |  peft-catalog sync lora dora --write --key title  |
peft-catalog sync --check --json"""
Url = Annotated[
    str | None,
    typer.Option("--arxiv-url", envvar="PEFT_CATALOG_ARXIV_URL", help="Server to ask instead of arXiv."),
]


def register(app: typer.Typer) -> None:
    """Add the three commands."""
    app.command("sync", epilog=SYNC_EXAMPLES)(sync)
    app.command("history", epilog="Example:  peft-catalog history lora")(history)
    app.command("status", epilog="Example:  peft-catalog status || echo stale")(status)


def sync(
    ctx: typer.Context,
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers by slug or alias; all if left out.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Put corrections into the entry files.")] = False,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="With --write: only this key of entries; repeat for several.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Papers a request.")] = 200,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if anything drifted.")] = False,
    arxiv_url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask arXiv for every catalogued paper, store what it says, and show what changed and where entries disagree.

    Abstracts stay in your database. arXiv is asked once in three seconds at most, over all commands you run.

    --write puts title, authors, first date, categories and DOI of arXiv into the entries that disagree. What needs a
    judgment (a venue to fill in, a withdrawal) is shown and left to you. An entry that rightly differs says so under
    arxiv_differs, such as arxiv_differs = { title = "the published title" }, and is left in peace.

    Exit code 0: arXiv has answered for every paper.

    Exit code 1: with --check, an entry disagrees with arXiv, or arXiv does not know an id.

    Exit code 3: arXiv could not be asked to the end; what arrived before is stored.
    """
    import catalog
    from catalog.errors import UsageError

    if write and check:
        raise UsageError("--check changes nothing and --write changes entries", hint="give one of the two")
    require_keys(key or [], write)
    with catalog.open(database(ctx)) as cat:
        entries = chosen(cat, slugs or [])
        outcome = ask(cat, entries, arxiv_url, batch, store=not check, quiet=as_json)
    written, refused = correct(entries, outcome, key or []) if write else ([], None)
    if as_json:
        print_json(outcome_as_dict(outcome, written))
    else:
        show(outcome, written, stored=not check)
    if refused:
        raise refused
    if outcome.failure:
        raise failed(outcome)
    raise typer.Exit(1 if check and outcome.drifted else 0)


def require_keys(keys: Sequence[str], write: bool) -> None:
    """UsageError for a key that is not written, or where nothing is."""
    from catalog.arxiv_sync.reconcile import WRITTEN
    from catalog.errors import UsageError

    for key in keys:
        if key not in WRITTEN:
            raise UsageError(f"{key!r} is no key that --write can correct", where="--key", allowed=WRITTEN)
    if keys and not write:
        raise UsageError("--key chooses what --write writes", hint="add --write, or leave --key out")


def chosen(cat: Catalog, names: Sequence[str]) -> list[Entry]:
    """The entries asked for; all of them by default."""
    from catalog.entry import load_entries

    wanted = {cat.paper(name).slug for name in names}
    return [entry for entry in load_entries() if not names or entry.slug in wanted]


def ask(cat: Catalog, entries: list[Entry], url: str | None, batch: int, *, store: bool, quiet: bool) -> Outcome:
    """Sync behind a progress bar; interrupted, it says what was kept."""
    from catalog.arxiv_sync.settings import settings
    from catalog.arxiv_sync.sync import Outcome
    from catalog.arxiv_sync.sync import sync as run
    from catalog.arxiv_sync.transport import Transport
    from catalog.cli.progress import Waits

    reached = Outcome(asked=0)

    def arrived(outcome: Outcome) -> None:
        nonlocal reached
        reached = outcome
        bar.reached(outcome.received, outcome.asked)

    with Waits("asking arXiv", sum(bool(entry.arxiv) for entry in entries), quiet=quiet) as bar:
        try:
            with Transport(settings(url), bar.waiting, bar.noticed) as transport:
                return run(cat.engine, transport, entries, size=batch, store=store, arrived=arrived)
        except KeyboardInterrupt:
            kept = f"kept: what arXiv says of {count(reached.received, 'paper')}" if store else "nothing was changed"
            bar.noticed(f"stopped; {kept}")
            raise


def correct(entries: Sequence[Entry], outcome: Outcome, keys: Sequence[str]) -> tuple[list[Drift], EntryError | None]:
    """Write what can be written into the entry files; what was written, and the first correction that cannot be."""
    from catalog.arxiv_sync.correct import correct as write
    from catalog.errors import EntryError

    written: list[Drift] = []
    refused: EntryError | None = None
    for entry in entries:
        found = [each for each in outcome.drifts if each.slug == entry.slug and (not keys or each.key in keys)]
        try:
            written += write(path_of(entry), found)
        except EntryError as error:
            refused = refused or error
    return written, refused


def path_of(entry: Entry) -> Path:
    """The file of an entry."""
    from catalog.locations import entries_root

    return entries_root() / str(entry.category) / f"{entry.slug}.toml"


def failed(outcome: Outcome) -> Unreachable:
    """The failure, with what was kept."""
    assert outcome.failure
    outcome.failure.message += f" (kept: {outcome.received} of {count(outcome.asked, 'paper')})"
    return outcome.failure


# What is shown.


def show(outcome: Outcome, written: Sequence[Drift], *, stored: bool) -> None:
    """A sync for people: what matters most stands last."""
    from catalog.arxiv_sync.changes import Kind

    first = sum(change.kind is Kind.FIRST_SEEN for change in outcome.changes)
    news = [change for change in outcome.changes if change.kind not in (Kind.FIRST_SEEN, Kind.ABSTRACT)]
    table("changed on arXiv", ("arXiv", "what", "before", "now"), map(change_row, news))
    table(
        "entries and arXiv disagree", ("paper", "key", "entry", "arXiv", "what to do"), map(drift_row, outcome.drifts)
    )
    bad = [(each, "arXiv does not know this id") for each in outcome.unknown] + list(outcome.malformed.items())
    table("ids", ("id", "what is wrong"), bad)
    table("not taken in", ("what arXiv sent",), ((each,) for each in outcome.unusable))
    typer.echo(f"{outcome.received} of {count(outcome.asked, 'paper')} arrived in {count(outcome.requests, 'request')}")
    if stored:
        typer.echo(f"{count(outcome.learned - first, 'change')}, {first} seen for the first time")
    typer.echo(f"{count(len(outcome.drifts), 'disagreement')} between entries and arXiv")
    if written:
        typer.echo(
            f"wrote {count(len(written), 'correction')} into {count(len({d.slug for d in written}), 'entry file')}"
        )
    elif any(drift.correction is not None for drift in outcome.drifts):
        typer.echo("next: peft-catalog sync --write puts the corrections into the entries")
    for remark in outcome.remarks:
        typer.echo(clean(remark))
    if outcome.newest:
        typer.echo(f"newest announced paper: {clean(outcome.newest)}")


def change_row(change: Change) -> tuple[str, ...]:
    """A change in one row."""
    return change.arxiv, str(change.kind), change.before, change.now


def drift_row(drift: Drift) -> tuple[str, ...]:
    """A disagreement in one row."""
    advice = drift.advice or ("--write takes arXiv's" if drift.correction is not None else "")
    return drift.slug, drift.key, words(drift.entry), words(drift.arxiv), advice


def words(value: Value | None) -> str:
    """A value of an entry in a cell."""
    return ", ".join(value) if isinstance(value, tuple) else value or ""


def outcome_as_dict(outcome: Outcome, written: Sequence[Drift]) -> dict[str, Any]:
    """A sync for programs; the keys are stable."""
    from dataclasses import asdict

    data = asdict(outcome) | {"failure": outcome.failure and outcome.failure.message, "drifted": outcome.drifted}
    return data | {"written": [{"slug": drift.slug, "key": drift.key} for drift in written]}


# History.


def history(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A paper by slug, alias or arXiv id.")],
    as_json: Json = False,
) -> None:
    """Show what arXiv said about a paper, and when it said so."""
    import catalog
    from catalog.errors import UsageError

    with catalog.open(database(ctx)) as cat:
        paper = cat.paper(name)
        if paper.arxiv is None:
            raise UsageError(f"{paper.slug} is not on arXiv", hint=f"peft-catalog show {paper.slug}")
        found = cat.history(paper.slug)
    if as_json:
        print_json([statement_as_dict(statement, changes) for statement, changes in found])
        return
    table(f"{paper.name}: arXiv {paper.arxiv}", ("asked", "from", "version", "what"), history_rows(found))
    if not found:
        typer.echo("arXiv was not asked yet; next: peft-catalog sync")


def history_rows(found: Sequence[tuple[Statement, list[Change]]]) -> list[tuple[str, ...]]:
    """One row a change."""
    rows: list[tuple[str, ...]] = []
    for statement, changes in found:
        for change in changes:
            what = f"{change.kind}: {change.before} → {change.now}" if change.before else f"{change.kind}: {change.now}"
            rows.append((statement.as_of, statement.source, f"v{statement.record.version}", what))
    return rows


def statement_as_dict(statement: Statement, changes: Sequence[Change]) -> dict[str, Any]:
    """A statement for programs, abstract included: it is the user's own database that is read."""
    import json
    from dataclasses import asdict

    return {
        "as_of": statement.as_of,
        "source": statement.source,
        "datestamp": statement.datestamp,
        "record": json.loads(statement.record.to_json()),
        "changes": [asdict(change) for change in changes],
    }


# Status.


def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Say how fresh the catalog's knowledge of arXiv is: newest announcement seen, last sync, last change, inbox.

    Stale means that two announcements went by unseen; arXiv's weekends and holidays do not count.

    Exit code 0: fresh. Exit code 1: stale, or arXiv was never asked.
    """
    from dataclasses import asdict

    import catalog

    with catalog.open(database(ctx)) as cat:
        found = cat.status()
    if as_json:
        print_json(asdict(found) | {"stale": found.stale, "words": found.words})
    else:
        typer.echo(f"newest paper seen    {found.newest or 'none'}")
        typer.echo(f"last sync            {found.synced or 'never'}, {found.known} of {found.papers} papers known")
        typer.echo(f"last learned         {found.learned or 'nothing yet'}")
        for run in found.runs:
            if run.kind != "sync":
                typer.echo(f"last {run.kind:15} {run.succeeded or 'never'}{clean(f', {run.note}' if run.note else '')}")
        typer.echo(f"waiting in the inbox {found.waiting}")
        typer.echo(found.words)
    raise typer.Exit(1 if found.stale else 0)
