"""`peft-catalog list write|read`: public lists of papers, written from the catalog and held against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.output import Json, count, print_json, table
from catalog.lists_data import Style
from catalog.terminal import clean

if TYPE_CHECKING:
    from catalog.lists import Comparison
    from catalog.lists.comparison import Known
    from catalog.lists.contradictions import Contradiction
    from catalog.lists.item import Item, Notice
    from catalog.query import Paper

WRITE_EXAMPLES = """Examples:  peft-catalog list write --style awesome --output AWESOME.md  |
peft-catalog list write --style gist --category reparameterized --category hybrid"""
READ_EXAMPLES = """Examples:  peft-catalog list read README.md  |
peft-catalog list read README.md --json"""


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(help="Write lists of papers, and check those of others.", no_args_is_help=True)
    group.command("write", epilog=WRITE_EXAMPLES)(write)
    group.command("read", epilog=READ_EXAMPLES)(read)
    app.add_typer(group, name="list")


def write(
    ctx: typer.Context,
    style: Annotated[Style, typer.Option(help="Layout of the list.")] = Style.AWESOME,
    category: Annotated[
        list[str] | None, typer.Option(help="Papers of this category only; repeat for several.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: print it.")] = None,
) -> None:
    """Write the catalog as a Markdown list.

    The file is replaced in one step: nobody ever reads half of it.
    """
    from catalog.files import write_atomic
    from catalog.lists import write_list

    papers = chosen(ctx, category or [])
    text = write_list(papers, style)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(output, text)
        typer.echo(clean(f"wrote {output}: {count(len(papers), 'paper')}"))


def read(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A Markdown list in any of the layouts of `list write`.")],
    as_json: Json = False,
) -> None:
    """Hold a list against the catalog: which items are known and by what, which are new, what the list has wrong.

    Exit code 0: every item is known, and nothing is wrong.

    Exit code 1: items are new or contradict the catalog, or the Markdown is broken somewhere.

    Exit code 2: the file cannot be read as a list.
    """
    from catalog.lists import compare, read_file

    found = compare(read_file(file), chosen(ctx, []))
    if as_json:
        print_json(as_dict(file, found))
    else:
        show(file, found)
    if not found.consistent:
        raise typer.Exit(1)


def chosen(ctx: typer.Context, categories: list[str]) -> list[Paper]:
    """Papers of these categories; all papers without any."""
    import catalog

    with catalog.open(database(ctx)) as cat:
        if not categories:
            return cat.papers()
        return [paper for category in dict.fromkeys(categories) for paper in cat.papers(category=category)]


def as_dict(file: Path, found: Comparison) -> dict[str, Any]:
    """A comparison for programs; the keys are stable."""
    from catalog.words import sendable

    return {
        "file": sendable(str(file)),
        "style": str(found.style),
        "consistent": found.consistent,
        "counts": {
            "items": len(found.known) + len(found.new),
            "known": len(found.known),
            "new": len(found.new),
            "contradictions": found.kinds,
            "notices": len(found.notices),
        },
        "known": [known_as_dict(known) for known in found.known],
        "new": [item_as_dict(item) for item in found.new],
        "contradictions": [contradiction_as_dict(each) for each in found.contradictions],
        "notices": [{"line": notice.line, "message": notice.message} for notice in found.notices],
    }


def known_as_dict(known: Known) -> dict[str, Any]:
    """An item, the paper it means and the ways in which that was told."""
    match = known.match
    return {"slug": match.paper.slug, "by": list(match.ways), "score": round(match.score, 1)} | item_as_dict(known.item)


def item_as_dict(item: Item) -> dict[str, Any]:
    """An item as the list prints it."""
    return {
        "line": item.line,
        "section": item.section,
        "title": item.title,
        "authors": list(item.authors),
        "venue": item.venue,
        "year": item.year,
        "links": [{"line": link.line, "role": str(link.role), "url": link.url} for link in item.links],
        "commented": item.commented,
        "mention": item.mention,
    }


def contradiction_as_dict(each: Contradiction) -> dict[str, Any]:
    """What the list says and what is so."""
    return {
        "line": each.line,
        "slug": each.slug,
        "kind": str(each.kind),
        "says": each.says,
        "fact": each.fact,
        "evidence": each.evidence,
    }


def show(file: Path, found: Comparison) -> None:
    """A comparison for people: what matters most stands last, where a terminal leaves the eye."""
    tables = (
        ("known", ("line", "paper", "by", "title"), map(known_row, found.known)),
        ("new", ("line", "title", "link"), map(new_row, found.new)),
        ("odd", ("line", "what"), map(notice_row, found.notices)),
        ("wrong", ("line", "paper", "what", "the list", "the catalog"), map(contradiction_row, found.contradictions)),
    )
    for title, headings, rows in tables:
        table(title, headings, list(rows))
    kinds = "".join(f"\n  {number:4} {kind}" for kind, number in found.kinds.items())
    parts = (
        count(len(found.known) + len(found.new), "item"),
        f"{len(found.known)} known",
        f"{len(found.new)} new",
        count(len(found.contradictions), "contradiction"),
    )
    typer.echo(f"{clean(str(file))}: a list in the layout {found.style}, {', '.join(parts)}{kinds}")


def known_row(known: Known) -> tuple[Any, ...]:
    """How an item was recognized."""
    ways = ", ".join(known.match.ways)
    score = f" ({known.match.score:.0f} %)" if "similar title" in known.match.ways else ""
    return known.item.line, known.match.paper.slug, ways + score, known.item.title


def new_row(item: Item) -> tuple[Any, ...]:
    """An item that the catalog does not have."""
    return item.line, item.title, next((link.url for link in item.links), "")


def notice_row(notice: Notice) -> tuple[Any, ...]:
    """Something odd about the file."""
    return notice.line, notice.message


def contradiction_row(each: Contradiction) -> tuple[Any, ...]:
    """A mistake of the list."""
    fact = each.fact + (f" [{each.evidence}]" if each.evidence else "")
    return each.line, each.slug, str(each.kind), each.says, fact
