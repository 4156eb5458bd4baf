"""`peft-catalog query|show|categories|authors|lineage`: asking the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.output import print_json
from catalog.errors import UsageError
from catalog.terminal import console

if TYPE_CHECKING:
    from catalog.query import Paper

FORMATS = ("table", "json", "jsonl", "csv", "markdown", "bibtex", "slugs")

Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Format = Annotated[str, typer.Option("--format", "-f", help=", ".join(FORMATS) + ".")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("query", epilog=QUERY_EXAMPLES)(query)
    app.command("show", epilog="Examples:  peft-catalog show lora  |  peft-catalog show '(IA)^3' --format bibtex")(show)
    app.command("categories", epilog="Example:  peft-catalog categories --json")(categories)
    app.command("authors", epilog="Example:  peft-catalog authors --limit 10")(authors)
    app.command("lineage", epilog="Example:  peft-catalog lineage lora")(lineage)


QUERY_EXAMPLES = """Examples:  peft-catalog query orthogonal  |
peft-catalog query --category reparameterized --strength linear --mergeable  |
peft-catalog query --max-parameters 300k --at roberta-base --format bibtex"""


def query(
    ctx: typer.Context,
    text: Annotated[list[str] | None, typer.Argument(help="Words in names, titles, authors or summaries.")] = None,
    category: Annotated[str | None, typer.Option(help="selective, additive, prompt, reparameterized ...")] = None,
    subcategory: Annotated[str | None, typer.Option(help="Such as low-rank or soft-prompt.")] = None,
    kind: Annotated[str | None, typer.Option(help="method, framework, study, benchmark ...")] = None,
    modality: Annotated[str | None, typer.Option(help="llm, vfm, vlm, vgm, audio or mfm.")] = None,
    year: Annotated[str | None, typer.Option(help="2023, 2021-2023, 2021- or -2021.")] = None,
    venue: Annotated[str | None, typer.Option(help="Part of the venue, such as ICLR.")] = None,
    author: Annotated[str | None, typer.Option(help="Part of a name; accents and case do not matter.")] = None,
    library: Annotated[str | None, typer.Option(help="A library that ships it, such as peft.")] = None,
    listed_in: Annotated[str | None, typer.Option("--list", help="A public list that has it, by slug.")] = None,
    builds_on: Annotated[str | None, typer.Option(help="What it builds on, directly or not.")] = None,
    code: Annotated[bool | None, typer.Option("--code/--no-code", help="With official code.")] = None,
    implemented: Annotated[
        bool | None, typer.Option("--implemented/--not-implemented", help="With an implementation here.")
    ] = None,
    mergeable: Annotated[
        bool | None, typer.Option("--mergeable/--not-mergeable", help="Can be folded into the weights.")
    ] = None,
    detachable: Annotated[
        bool | None, typer.Option("--detachable/--not-detachable", help="Can be taken off again.")
    ] = None,
    strength: Annotated[str | None, typer.Option(help="linear, antisymmetric, nonlinear or none.")] = None,
    identity: Annotated[bool | None, typer.Option("--identity/--no-identity", help="Starts as the base model.")] = None,
    status: Annotated[str | None, typer.Option(help="Its claims are verified, contradicted or unmeasured.")] = None,
    claim: Annotated[str | None, typer.Option(help="With --status: this claim, such as mergeable.")] = None,
    max_parameters: Annotated[str | None, typer.Option(help="Most trained parameters: 250000, 300k, 1.5M.")] = None,
    at: Annotated[str | None, typer.Option(help="With --max-parameters: at this model's size.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="name, published, slug or relevance. Default: relevance for text, else name.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Not more than so many.")] = None,
    output: Format = "table",
    as_json: Json = False,
) -> None:
    """Papers that meet all conditions. Exit code 0 also when there are none."""
    import catalog

    first, last = years(year)
    with catalog.open(database(ctx)) as cat:
        papers = cat.papers(
            text=" ".join(text) if text else None,
            category=category,
            subcategory=subcategory,
            kind=kind,
            modality=modality,
            year_from=first,
            year_to=last,
            venue=venue,
            author=author,
            library=library,
            listed_in=listed_in,
            builds_on=builds_on,
            has_code=code,
            has_implementation=implemented,
            mergeable=mergeable,
            detachable=detachable,
            strength=strength,
            identity_at_init=identity,
            status=status,
            claim=claim,
            max_parameters=None if max_parameters is None else number(max_parameters),
            at=at,
            sort=sort,
            limit=limit,
        )
    write(papers, "json" if as_json else output, at)


def show(ctx: typer.Context, name: str, output: Format = "table", as_json: Json = False) -> None:
    """Everything about one paper, by slug, name, alias, arXiv id or DOI."""
    import catalog
    from catalog.present import page

    with catalog.open(database(ctx)) as cat:
        paper = cat.paper(name)
        lines = cat.lineage(paper.slug)
    if as_json or output != "table":
        write([paper], "json" if as_json else output, None)
    else:
        console().print(page(paper, lines))


def categories(ctx: typer.Context, as_json: Json = False) -> None:
    """The categories, what they mean, and how many papers they have."""
    import catalog

    with catalog.open(database(ctx)) as cat:
        found = cat.categories()
    rows = [(c.category, c.papers, c.implemented, c.measured, c.definition) for c in found]
    table_or_json(("category", "papers", "implemented", "verified", "definition"), rows, as_json)


def authors(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Part of a name.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Not more than so many.")] = None,
    as_json: Json = False,
) -> None:
    """Authors by number of papers."""
    import catalog

    with catalog.open(database(ctx)) as cat:
        found = cat.authors(name, limit)
    table_or_json(("author", "papers"), [(a.name, a.papers) for a in found], as_json)


def lineage(ctx: typer.Context, name: str, as_json: Json = False) -> None:
    """What a paper builds on, and what builds on it."""
    import catalog

    with catalog.open(database(ctx)) as cat:
        found = cat.lineage(name)
    rows = [("builds on", slug, steps) for slug, steps in found.ancestors]
    rows += [("is built on by", slug, steps) for slug, steps in found.descendants]
    table_or_json((found.slug, "paper", "steps"), rows, as_json)


def years(text: str | None) -> tuple[int | None, int | None]:
    """A year, or a range open at either end."""
    import re

    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{4})?(-)?(\d{4})?", text.strip())
    if not match or not any(match.groups()[::2]):
        raise UsageError(f"{text!r} is not a year or a range of years", allowed="2023, 2021-2023, 2021-, -2021")
    first, dash, last = match.groups()
    if not dash:
        last = first
    return (int(first) if first else None), (int(last) if last else None)


def number(text: str) -> int:
    """A whole number with k, M or B for thousands, millions, billions."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbBgG]?)", text.strip().replace(",", "").replace("_", ""))
    if not match:
        raise UsageError(f"{text!r} is not a number of parameters", allowed="250000, 300k, 1.5M, 7B")
    return round(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}[match[2].lower()])


def write(papers: list[Paper], output: str, at: str | None) -> None:
    """Papers in one of the formats on standard output."""
    from catalog import present

    writers: dict[str, Callable[[], None]] = {
        "table": lambda: console().print(present.table(papers, at)),
        "json": lambda: typer.echo(present.to_json(papers)),
        "jsonl": lambda: lines_out(present.to_jsonl(papers)),
        "csv": lambda: typer.echo(present.to_csv(papers), nl=False),
        "markdown": lambda: typer.echo(present.to_markdown(papers), nl=False),
        "bibtex": lambda: typer.echo(present.to_bibtex(papers), nl=False),
        "slugs": lambda: lines_out(paper.slug for paper in papers),
    }
    if output not in writers:
        raise UsageError(f"{output!r} is not an output format", allowed=FORMATS)
    writers[output]()


def lines_out(lines: Iterable[str]) -> None:
    """One line each."""
    for line in lines:
        typer.echo(line)


def table_or_json(headings: tuple[str, ...], rows: list[tuple[Any, ...]], as_json: bool) -> None:
    """Rows for people, or for programs."""
    if as_json:
        print_json([dict(zip(headings, row, strict=True)) for row in rows])
        return
    from rich.table import Table

    from catalog.terminal import cell

    shown = Table(box=None, pad_edge=False)
    for heading, value in zip(headings, rows[0] if rows else headings, strict=True):
        shown.add_column(heading, justify="right" if isinstance(value, int) else "left")
    for row in rows:
        shown.add_row(*map(cell, row))
    console().print(shown)
