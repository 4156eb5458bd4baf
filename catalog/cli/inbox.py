"""`peft-catalog inbox list|show|accept|reject|restore`: papers found on arXiv, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.entries import Root
from catalog.cli.output import Json, count, print_json
from catalog.terminal import cell, clean, console

if TYPE_CHECKING:
    from catalog.arxiv_sync.record import Record
    from catalog.discovery.candidates import Candidate

Key = Annotated[str, typer.Argument(help="The suggested name, or the arXiv id, with or without version.")]

EXAMPLES = {
    "list": "Examples:  peft-catalog inbox list  |  peft-catalog inbox list --category prompt --json",
    "show": "Examples:  peft-catalog inbox show lora-xs  |  peft-catalog inbox show 2405.17604",
    "accept": "Examples:  peft-catalog inbox accept lora-xs  |  "
    "peft-catalog inbox accept 2405.17604 --slug lora-xs --category reparameterized",
    "reject": "Example:  peft-catalog inbox reject 2405.17604 'applies LoRA, proposes no method'",
    "restore": "Example:  peft-catalog inbox restore 2405.17604",
}


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(help="Decide on papers that discover and harvest have found.", no_args_is_help=True)
    for name, command in (
        ("list", list_command),
        ("show", show),
        ("accept", accept),
        ("reject", reject),
        ("restore", restore),
    ):
        group.command(name, epilog=EXAMPLES[name])(command)
    app.add_typer(group, name="inbox")


def list_command(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also those accepted and rejected.")] = False,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this suggested category; repeat for several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what waits for a decision, the most likely papers first."""
    import catalog
    from catalog.database import reading
    from catalog.discovery.inbox import listed

    with catalog.open(database(ctx)) as cat, reading(cat.engine) as connection:
        found = listed(connection, everything=everything, categories=known_categories(category or []))
    if as_json:
        print_json([candidate.as_dict() for candidate in found])
    else:
        print_table(found, everything)


def show(ctx: typer.Context, key: Key, as_json: Json = False) -> None:
    """Show a candidate: why it is one, what category is suggested and by which words, and arXiv's abstract."""
    import catalog
    from catalog.database import reading
    from catalog.discovery.inbox import find, record_of

    with catalog.open(database(ctx)) as cat, reading(cat.engine) as connection:
        candidate = find(connection, key)
        record = record_of(connection, candidate)
    if as_json:
        print_json(candidate.as_dict() | record_as_dict(record))
    else:
        print_candidate(candidate, record)


def accept(
    ctx: typer.Context,
    key: Key,
    slug: Annotated[str | None, typer.Option(help="Name of the entry. Default: the suggested one.")] = None,
    category: Annotated[str | None, typer.Option(help="Its category. Default: the suggested one.")] = None,
    root: Root = None,
    implementations: Annotated[
        Path | None, typer.Option(help="Package for the implementation. Default: reference_impls beside the entries.")
    ] = None,
) -> None:
    """Begin an entry for a candidate, with title, authors, date and categories as arXiv gives them.

    The entry is a draft, which queries leave out until it is filled in. A paper that has an entry is marked only.
    """
    import catalog
    from catalog.arxiv_sync.follow import now
    from catalog.discovery.accept import accept as run

    with catalog.open(database(ctx)) as cat:
        done = run(cat.engine, key, now=now(), slug=slug, category=category, root=root, implementations=implementations)
    for path in done.written:
        typer.echo(clean(f"wrote {path}"))
    if done.written:
        from catalog.scaffold import to_finish

        typer.echo(to_finish(done.entry.stem))
    else:
        typer.echo(clean(f"{done.candidate.arxiv} has an entry already: {done.entry}"))


def reject(
    ctx: typer.Context,
    key: Key,
    reason: Annotated[str, typer.Argument(help="Why the paper does not belong into the catalog.")],
) -> None:
    """Reject a candidate for good: it is never proposed again, in no version."""
    import catalog
    from catalog.arxiv_sync.follow import now
    from catalog.discovery.inbox import reject as run

    with catalog.open(database(ctx)) as cat:
        candidate = run(cat.engine, key, reason, now=now())
    typer.echo(clean(f"rejected {candidate.slug} ({candidate.arxiv}): {candidate.reason}"))


def restore(ctx: typer.Context, key: Key) -> None:
    """Take a decision back: the candidate waits again. An entry that was begun for it stays."""
    import catalog
    from catalog.discovery.inbox import restore as run

    with catalog.open(database(ctx)) as cat:
        candidate = run(cat.engine, key)
    typer.echo(clean(f"{candidate.slug} ({candidate.arxiv}) waits again"))


def known_categories(words: list[str]) -> list[str]:
    """The categories asked for; UsageError for one that the vocabulary does not have."""
    from catalog.scaffold import category_of

    return [str(category_of(word)) for word in words]


# What is shown.


def record_as_dict(record: Record | None) -> dict[str, Any]:
    """What arXiv says, as far as it helps to decide."""
    if record is None:
        return {"authors": [], "abstract": None, "arxiv_state": None}
    return {"authors": list(record.names), "abstract": record.abstract, "arxiv_state": str(record.state)}


def print_table(found: list[Candidate], everything: bool) -> None:
    """A line a candidate."""
    from rich.table import Table

    if not found:
        typer.echo("no candidates; peft-catalog discover looks for new ones")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    for heading in ("arXiv", "published", "category", "name", *(["state"] if everything else [])):
        table.add_column(heading, no_wrap=True)
    table.add_column("title", overflow="fold")
    for each in found:
        state = [str(each.state)] if everything else []
        row = (f"{each.score:g}", each.arxiv, each.published[:10], each.category or "?", each.slug, *state, each.title)
        table.add_row(*map(cell, row))
    console().print(table)
    typer.echo(count(len(found), "candidate"))


def print_candidate(candidate: Candidate, record: Record | None) -> None:
    """A candidate in full."""
    lines = [candidate.title, f"  https://arxiv.org/abs/{candidate.arxiv}v{candidate.version}"]
    lines += facts(candidate, record)
    lines.append(f"  score {candidate.score:g}:")
    lines += [f"    {reason.points:+6g}  {reason.word} ({reason.where})" for reason in candidate.reasons]
    led = ", ".join(f"{word} {points:g}" for word, points in candidate.words)
    lines.append(f"  category {candidate.category}: {led}" if led else "  category: no word leads to one")
    for line in lines:
        typer.echo(clean(line))
    if record and record.abstract:
        typer.echo("\n" + clean(record.abstract))


def facts(candidate: Candidate, record: Record | None) -> Iterable[str]:
    """Who wrote it, when, where it was found, and what was decided."""
    if record:
        yield f"  {', '.join(record.names)}"
        if record.state != "listed":
            yield f"  on arXiv: {record.state}"
    yield f"  published {candidate.published[:10]}, found {candidate.found} by {candidate.source}"
    decided = f", {candidate.decided}" if candidate.decided else ""
    reason = f": {candidate.reason}" if candidate.reason else ""
    yield f"  {candidate.slug}, {candidate.state}{decided}{reason}"
