"""`peft-catalog export`: the catalog for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.errors import UsageError

if TYPE_CHECKING:
    from catalog.paper import Paper
    from catalog.query import Catalog

TEXTS = {
    "bibtex": "records for LaTeX",
    "csl": "CSL-JSON for Zotero, Pandoc and citation processors",
    "json": "one array of whole entries with what was measured",
    "jsonl": "the same, one object a line",
    "csv": "the main facts as a table",
    "markdown": "a table for a page",
}
WHOLE = {
    "api": "a folder of static JSON files, with a schema and a look-up of identifiers",
    "sqlite": "a copy of the database, with full-text search",
}
FORMATS = TEXTS | WHOLE

EXAMPLES = """Examples:  peft-catalog export bibtex --category prompt -o prompt.bib  |
peft-catalog export csl lora dora '(IA)^3'  |  peft-catalog export api -o build/api/v1  |
peft-catalog export sqlite -o catalog.sqlite"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", epilog=EXAMPLES)(export)


def export(
    ctx: typer.Context,
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()))],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Papers by slug, name, alias, arXiv id or DOI; all that meet the conditions if left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File, or folder for api. Default: standard output.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="selective, additive, prompt, reparameterized ...")] = None,
    subcategory: Annotated[str | None, typer.Option(help="Such as low-rank or soft-prompt.")] = None,
    kind: Annotated[str | None, typer.Option(help="method, framework, study, benchmark ...")] = None,
    modality: Annotated[str | None, typer.Option(help="llm, vfm, vlm, vgm, audio or mfm.")] = None,
    year: Annotated[str | None, typer.Option(help="2023, 2021-2023, 2021- or -2021.")] = None,
    listed_in: Annotated[str | None, typer.Option("--list", help="A public list that has it, by slug.")] = None,
    implemented: Annotated[
        bool | None, typer.Option("--implemented/--not-implemented", help="With an implementation here.")
    ] = None,
) -> None:
    """Write papers as BibTeX, CSL-JSON, JSON, CSV or Markdown, or the whole catalog as a JSON API or as SQLite.

    A file is replaced in one step. `peft-catalog query --format` has more conditions.
    """
    import catalog
    from catalog.cli.query import years

    if form not in FORMATS:
        raise UsageError(f"{form!r} is not a format of exports", allowed=FORMATS, hint=_nearest(form))
    first, last = years(year)
    conditions = {
        "category": category,
        "subcategory": subcategory,
        "kind": kind,
        "modality": modality,
        "year_from": first,
        "year_to": last,
        "listed_in": listed_in,
        "has_implementation": implemented,
    }
    given = {name: value for name, value in conditions.items() if value is not None}
    if given and names:
        raise UsageError("papers are chosen by name or by condition, not by both", hint="leave one of them out")
    if form in WHOLE and (given or names):
        raise UsageError(f"{form} always holds the whole catalog", allowed=f"conditions with {', '.join(TEXTS)}")
    with catalog.open(database(ctx)) as cat:
        if form in WHOLE:
            write_whole(cat, form, output)
        else:
            write_text(chosen(cat, names, given), form, output)


def chosen(cat: Catalog, names: list[str] | None, conditions: dict[str, Any]) -> list[Paper]:
    """The papers named, each once, or those that meet the conditions."""
    if names:
        return list({paper.slug: paper for paper in map(cat.paper, names)}.values())
    return cat.papers(**conditions)


def write_text(papers: list[Paper], form: str, output: Path | None) -> None:
    """Papers in a format of text, to a file or to standard output."""
    from catalog import present
    from catalog.exports import to_csl
    from catalog.files import write_atomic

    writers: dict[str, Callable[[list[Paper]], str]] = {
        "bibtex": present.to_bibtex,
        "csl": to_csl,
        "json": lambda papers: present.to_json(papers) + "\n",
        "jsonl": lambda papers: "".join(f"{line}\n" for line in present.to_jsonl(papers)),
        "csv": present.to_csv,
        "markdown": present.to_markdown,
    }
    text = writers[form](papers)
    if output is None or str(output) == "-":
        typer.echo(text, nl=False)
        return
    write_atomic(output, text)
    typer.echo(f"wrote {len(papers)} {'paper' if len(papers) == 1 else 'papers'} to {output}")


def write_whole(cat: Catalog, form: str, output: Path | None) -> None:
    """The whole catalog, into a folder or a file."""
    from catalog.exports import copy_database, write_api

    if output is None or str(output) == "-":
        what = "a folder" if form == "api" else "a file"
        raise UsageError(f"{form} is written to {what}", hint=f"name it: peft-catalog export {form} --output PATH")
    if form == "api":
        typer.echo(f"wrote {write_api(cat, output)} files to {output}")
    else:
        copy_database(cat.path, output)
        typer.echo(f"wrote {output}")


def _nearest(word: str) -> str | None:
    import difflib

    aliases = {"bib": "bibtex", "csl-json": "csl", "db": "sqlite", "database": "sqlite", "md": "markdown"}
    found = aliases.get(word.lower()) or next(iter(difflib.get_close_matches(word.lower(), FORMATS, n=1)), None)
    return f"did you mean {found}?" if found else None
